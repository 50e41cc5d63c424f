"""The commands of `stal`: plain functions, which `stal.__main__` registers with typer."""
