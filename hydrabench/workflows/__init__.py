"""The commands: the rooms with side effects (paths, seeds, devices, progress)."""
