"""How models are run to locate something: cases, values put into runs, and maps of what came out."""
