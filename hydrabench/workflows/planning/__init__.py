"""Dry runs: the plan of a pipeline and its estimated cost."""
