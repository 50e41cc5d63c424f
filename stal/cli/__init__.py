"""The commands of `stal`, one file each."""
