"""What a pipeline will do, and what it will cost, before it does it."""
