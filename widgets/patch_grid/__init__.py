"""A map of the model as a grid; every cell opens on what a patch there does to the next token."""
