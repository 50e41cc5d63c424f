"""How much of what comes from elsewhere is read."""

# Of a picture's record: characters of JSON, and how much is drawn because it says so.
MOST_RECORD = 8_000_000
MOST_IMAGES = 1000
MOST_OBJECTS = 1000
MOST_PIXELS = 1 << 26  # of all images together
