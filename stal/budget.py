"""How much of what comes from elsewhere is read."""

from __future__ import annotations

# Of a config.json. The largest models read here have 5 levels, about 100 layers, 1280 channels.
MAX_LEVELS = 16
MAX_LAYERS = 1024  # of a network, of all levels together
MAX_WIDTH = 1 << 16  # channels, heads, features
MAX_ROWS = 1 << 24  # of a table of tokens or positions, pixels along a side
MAX_CELLS = 1024  # of latents along a side, where nobody says a size

# Of a scheduler_config.json.
MAX_TRAIN_TIMESTEPS = 100_000
