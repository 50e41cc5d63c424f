"""How good prompts, layouts and pictures are, on sets that the caller has."""
