"""What the commands do: the rooms with side effects (paths, seeds, devices, progress)."""
