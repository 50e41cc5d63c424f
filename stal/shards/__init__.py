"""Many pictures into one folder: rows of a prompts file, in shards that survive a kill."""
