"""Features of a dictionary: search them, open one, read a text with it, steer with it."""
