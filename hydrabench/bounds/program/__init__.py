"""A network as a program of operations, each of which says everything about itself."""
