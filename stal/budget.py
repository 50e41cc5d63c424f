"""The most that a file, a record or a call may ask for before it is refused.

Files come from anywhere and a few bytes of one can ask for any amount of memory or time. Each
number here is far above what anybody draws, and low enough that a call stays below 1 GB and 10 s.
"""

# A layout, a configuration, weights or a record in a file. The densest JSON, objects of one short
# key, takes 25 times its size in memory.
MOST_TEXT_BYTES = 16 << 20
# A file of prompts. The largest in use, captions of COCO's training pictures, has 92 MB.
MOST_PROMPTS_BYTES = 128 << 20
# Annotations that something is trained on. COCO's have 470 MB.
MOST_DATASET_BYTES = 1 << 30
# A picture's file: as many bytes as its pixels have without compression.
MOST_IMAGE_BYTES = 128 << 20

# What a language model answers with: 1000 objects of 1000 characters each. The reader builds
# objects of 100 bytes from two characters.
MOST_ANSWER_CHARS = 1 << 20
# Lists inside lists in a language model's answer. A list of pairs has 3 levels.
MOST_ANSWER_DEPTH = 16
# An object's phrase, and what of it is searched for its noun. Text encoders read 77 tokens, the
# longest in use 512.
MOST_PHRASE_CHARS = 5_000
MOST_NOUN_CHARS = 200
# Digits of an integer in JSON: no float has more than 309. Time is quadratic in them.
MOST_DIGITS = 1_000

# Pixels of a picture: 8K, 7680 x 4320. Read and compared they take 20 bytes each.
MOST_IMAGE_PIXELS = 1 << 25
# Cells of a painted mask, which a picture of so many pixels can hold, and of a side of it: of each
# column sums are kept for the rows of a grid.
MOST_MASK_CELLS = MOST_IMAGE_PIXELS
MOST_MASK_SIDE = 1 << 14
# Cells of all painted masks of a layout: 1000 of 1024 x 1024. Each takes its time at every
# resolution, though not its memory.
MOST_LAYOUT_CELLS = 1 << 30
# Runs of a mask, and of all colours in a picture of masks: a thousand a row at 512 rows, written as
# JSON of 10 MB at most.
MOST_MASK_RUNS = 1 << 19
# Corners of all polygons of a layout. Masks take time for each at every resolution, and to find
# edges that cross takes time quadratic in those of one polygon, at worst.
MOST_CORNERS = 10_000

# Objects of a layout. Each is a prompt that all pixels may attend to.
MOST_OBJECTS = 1_000
# Relations of a layout: ten an object.
MOST_RELATIONS = 10_000

# Pictures of one call. Their noise is drawn at once, and a record may ask for any number.
MOST_IMAGES = 1_000
# Layouts of one prompt, which are placed one after the other, each in 2 ms.
MOST_SAMPLES = 4_096

# Of a config.json. The largest models read here have 5 levels, about 100 layers, 1280 channels.
MOST_LEVELS = 16
MOST_LAYERS = 1024  # of a network, of all levels together
MOST_WIDTH = 1 << 16  # channels, heads, features
MOST_ROWS = 1 << 24  # of a table of tokens or positions, pixels along a side
MOST_LATENT_CELLS = 1024  # of latents along a side, where nobody says a size

# Of a scheduler_config.json.
MOST_TRAIN_TIMESTEPS = 100_000

# Of a picture's record: characters of JSON, and pixels of all that is drawn because it says so.
MOST_RECORD_CHARS = 8_000_000
MOST_RECORD_PIXELS = 1 << 26

# Characters of a prompt, about 10 000 words; text encoders read some hundred.
MOST_PROMPT_CHARS = 50_000
# Objects and relations that the parser finds, to say of a long text what is in it; a layout of them
# may have fewer.
MOST_PROMPT_OBJECTS = 20_000
MOST_PROMPT_RELATIONS = 100_000
# Prompts of the shapes world that are drawn for each number of objects.
MOST_SHAPES = 100_000
