"""The most that a file, a record or a call may ask for before it is refused.

Files come from anywhere and a few bytes of one can ask for any amount of memory or time. Each
number here is far above what anybody draws, and low enough that a call stays below 1 GB and 10 s.
"""

# A layout, a configuration, weights or a record in a file. The densest JSON, objects of one short
# key, takes 30 times its size in memory.
TEXT_BYTES = 16 << 20
# A file of prompts. The largest in use, captions of COCO's training pictures, has 92 MB.
PROMPTS_BYTES = 128 << 20
# Annotations that something is trained on. COCO's have 470 MB.
DATASET_BYTES = 1 << 30
# A picture's file: as many bytes as its pixels have without compression.
IMAGE_BYTES = 128 << 20

# What a language model answers with: 1000 objects of 1000 characters each. The reader builds
# objects of 100 bytes from two characters.
ANSWER_CHARS = 1 << 20
# Lists inside lists in a language model's answer. A list of pairs has 3 levels.
ANSWER_DEPTH = 16
# A prompt, a phrase of it, and what of a phrase is searched for its noun. Text encoders read 77
# tokens, the longest in use 512.
PROMPT_CHARS = 20_000
PHRASE_CHARS = 5_000
NOUN_CHARS = 500
# Digits of an integer in JSON: no float has more than 309. Time is quadratic in them.
DIGITS = 1_000

# Pixels of a picture: 8K, 7680 x 4320. Decoded and compared they take 14 bytes each.
IMAGE_PIXELS = 1 << 25
# Cells of a painted mask, which a picture of so many pixels can hold, and of a side of it: of each
# column sums are kept for the rows of a grid.
MASK_CELLS = IMAGE_PIXELS
MASK_SIDE = 1 << 14
# Runs of a mask, and of all colours in a picture of masks: a thousand a row at 512 rows, written as
# JSON of 10 MB at most.
MASK_RUNS = 1 << 19
# Corners of all polygons of a layout. Masks take time for each at every resolution, and to find
# edges that cross takes time quadratic in those of one polygon, at worst.
CORNERS = 10_000

# Objects of a layout. Each is a prompt that all pixels may attend to.
OBJECTS = 1_000
# Relations of a layout: ten an object.
RELATIONS = 10_000

# Pictures of one call. Their noise is drawn at once, and a record may ask for any number.
IMAGES = 4_096

# Of a config.json. The largest models read here have 5 levels, about 100 layers, 1280 channels.
MAX_LEVELS = 16
MAX_LAYERS = 1024  # of a network, of all levels together
MAX_WIDTH = 1 << 16  # channels, heads, features
MAX_ROWS = 1 << 24  # of a table of tokens or positions, pixels along a side
MAX_CELLS = 1024  # of latents along a side, where nobody says a size

# Of a scheduler_config.json.
MAX_TRAIN_TIMESTEPS = 100_000

# Of a picture's record: characters of JSON, and pixels of all that is drawn because it says so.
RECORD_CHARS = 8_000_000
RECORD_PIXELS = 1 << 26
