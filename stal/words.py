"""Closed lists of English words, and what the form of a word tells, for `stal.grammar`.

A word that no list knows is taken for a noun or an attribute by its position, so the lists hold
what position does not tell. To teach the grammar a noun of several words, extend `COMPOUNDS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence


def _list(text: str, separator: str | None = None) -> list[str]:
    return text.split(separator)


def _words(text: str) -> frozenset[str]:
    return frozenset(_list(text))


NUMBERS = {
    word: number
    for number, word in enumerate(
        _list(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
            " fifteen sixteen seventeen eighteen nineteen twenty"
        )
    )
}
# How many an uncounted quantity may be: least and most.
QUANTITIES = {
    "some": (2, 6),
    "several": (3, 7),
    "few": (2, 4),
    "many": (5, 20),
    "various": (3, 9),
    "multiple": (2, 9),
    "numerous": (5, 20),
    "lots": (5, 20),
}
UNCOUNTED = (2, 9)  # "red shoes"

POSSESSIVES = _words("my your his her its their our whose someone's 's")
DEFINITE = _words("the this these those")
DETERMINERS = (
    _words("a an no any another each every both either all other second")
    | POSSESSIVES
    | frozenset(QUANTITIES)
    | DEFINITE
)
PERSONAL = _words("he him she her his")
PLURAL_PRONOUNS = _words("they them their both")
PRONOUNS = _words("it they them he him she her")
MASCULINE = _words("he him his")
WOMEN = _words(
    "woman girl lady mother daughter sister grandmother wife queen princess bride witch waitress"
    " actress mermaid"
)
MEN = _words(
    "man boy guy gentleman father son brother grandfather husband king prince groom wizard monk"
    " cowboy fisherman policeman fireman businessman waiter"
)
PEOPLE = (
    WOMEN
    | MEN
    | _words(
        "person child kid baby toddler teenager adult someone people men women children skier"
        " surfer skater snowboarder cyclist biker hiker player rider driver pilot worker chef"
        " farmer soldier knight pirate astronaut doctor nurse teacher student artist painter"
        " musician singer dancer clown officer firefighter"
    )
)
ANIMALS = _words(
    "animal dog puppy cat kitten bird horse pony foal cow bull calf sheep lamb goat pig elephant"
    " bear zebra giraffe lion tiger deer fox wolf monkey rabbit mouse duck goose swan chicken owl"
    " parrot eagle pigeon seagull penguin dolphin turtle frog"
)
NEGATIONS = _words("not never without nor neither except")
COPULAS = _words("is are was were be being been isn't aren't wasn't weren't")
AUXILIARIES = COPULAS | _words(
    "am has have had do does did can could will would may might must shall should"
    " don't doesn't didn't can't won't hasn't haven't"
)
CONJUNCTIONS = _words(", and & or nor plus")
CLAUSE_BREAKS = _words("while whereas but as because so when if although though")
RELATIVES = _words("which that who whom")
# The noun phrase after these is what the next words of place speak about ("with a dog below it").
WITH = _words("with by having featuring including plus")
FUNCTION_WORDS = (
    DETERMINERS
    | PRONOUNS
    | AUXILIARIES
    | CONJUNCTIONS
    | CLAUSE_BREAKS
    | RELATIVES
    | WITH
    | NEGATIONS
    | _words(
        "of to in on at from for inside within into onto upon over under underneath"
        " beneath above below atop beside besides near nearby alongside between behind around"
        " about across through along against toward towards off up down out like than during past"
        " until since after before via per we us you i me what where there here also too just"
        " amid among beyond opposite"
        " only even still together apart away then yet very quite really ahead"
        " itself themselves himself herself etc front outside full visible present"
        " ready"
    )
)

COLOURS = _words(
    "red green blue yellow orange purple pink cyan magenta white black gray grey brown beige"
    " gold golden silver turquoise violet maroon navy teal crimson scarlet tan"
)
PURE_COLOURS = COLOURS - {"orange", "violet"}  # these are things as well
ADJECTIVES = COLOURS | _words(
    "big small large little tiny huge giant tall short long wide narrow thick thin round"
    " circular rectangular triangular oval new old young wooden metal metallic plastic golden"
    " rubber leather fluffy soft hard rough smooth shiny bright dark pale colorful colourful"
    " striped spotted plain empty blank solid clean dirty beautiful cute open closed sleek"
    " single same different identical majestic tasty delicious fresh hot cold warm heavy"
    " curious ripe furry wet dry snowy sunny sharp rich cool plump gentle delicate crisp sweet calm"
    " strong deep steep quiet vast tough vibrant gnarled broken upside-down upright high aloft idle"
)
# "with its mouth open"
AFTER_NOUN = _words("open closed shut ajar asleep awake")
# "'s" after these is a verb.
CONTRACTED = _words("it he she that there what here who where let")
MORE = _words("more greater larger higher bigger")
LESS = _words("less fewer smaller lower")
# Verbs that describe: no object follows.
LOOKS = COPULAS | _words("look looks looking looked seem seems seemed appears appeared")

# Words in -ing and -ed that are nouns.
NOT_VERBS = _words(
    "building painting ceiling wedding clothing evening morning drawing railing bedding"
    " earring pudding lightning dumpling duckling bread hundred thread king wing ring string"
    " sibling awning stocking"
)
VERB_STEMS = _words(
    "sit stand lie lay rest hang float hover fly run walk perch place locate situate position"
    " park hold ride wear carry eat drive sleep graze lean look watch swim jump play stack"
    " mount move point face tower soar surround appear contain show touch cover drift balance"
    " gallop trot scurry suspend tuck nestle install prop pull push chase grow travel wait"
    " greet observe stay remain seat hide climb throw catch kick hit feed drink read use cast"
    " arrange sandwich flank top dangle glide pass leave rise roll slide spin dance sail"
    " cross fill enclose attach connect gather reach grip clutch cradle straddle hug"
)
_IRREGULAR_VERBS = _words(
    "sat stood lay lain laid slung hung flew flown ran held rode ridden wore worn ate eaten"
    " drove driven slept threw thrown caught hid hidden made seen saw seems seem lit stuck set"
    " lying dying tying shone grew fell swam blew drew gave took taken came went kept led fed spun"
    " swung leapt crept broke sang sank rang sped fought dug stole woke wound met sent slid swept"
    " tore wove wrote shook froze built brought"
)
# What lies where is told by "parked by a car" but not by "driven by a man".
POSTURES = _words(
    "parked seated located positioned placed situated stacked stored perched mounted stopped"
    " installed nestled tucked curled"
)

# Nouns of the frame, of time and of thought: nothing that gets a place of its own.
NOT_OBJECTS = _words(
    "background backdrop foreground scene scenery canvas left right top bottom upper lower"
    " middle center centre corner side front back edge end half distance air"
    " mid-air midair way style order position direction contrast"
    " nothing something anything everything else other others rest place area vicinity"
    " atmosphere touch turn shade day night time color colour shape size composition"
    " setting focal number amount quantity nap daylight daytime look expression minute minutes"
    " hours taste scent smell aroma hue hues movement movements beauty artstation detail details"
    " sound moment trip voice voices wind breeze melody music ambiance adventure fun"
    " lighting resolution quality masterpiece bokeh 4k 8k hd"
)
PICTURES = _words(
    "photo photograph picture image painting drawing illustration render rendering sketch"
    " portrait closeup close-up close view shot snapshot collage"
)
SHOWING = ("of", "with", "showing", "containing", "featuring")
CANVASES = PICTURES | _words("scene canvas frame")
THE_CANVAS = _words("photo photograph picture image canvas frame scene")
# Surroundings; not objects where something is in, on or along them.
SCENERY = _words(
    "sky ground floor room street road field grass park beach water ocean sea forest meadow"
    " sidewalk kitchen bathroom bedroom lot snow slope hill track tracks sand"
    " yard desert city wall sun row line column light display space wild"
)
# Things, but surroundings of what is in or on them.
PLACES = _words(
    "building station zoo enclosure pasture river lake pool pond dirt mud garden hotel aquarium"
    " classroom library garage campsite campground hangar highway lounge office restaurant store"
    " airport stadium arena farm alley shore coast stage runway harbor harbour countryside village"
    " town jungle hall hallway barnyard courtyard"
)
BACKDROPS = _words("window door gate fence hedge")
SCENERY_COMPOUNDS = ("living room", "parking lot", "train station")
BODY_PARTS = _words(
    "hand hands arm arms foot feet leg legs shoulder shoulders head heads back face eyes mouth"
    " side lap wings wing tail tails fur body paw paws nose noses hair skin tongue beak ears neck"
    " stomach belly chest knee knees"
)
HELD_IN = _words("hand hands arm arms paw paws mouth")
CARRIED_OVER = _words("shoulder arm back")
FEET = _words("feet foot")
# Parts that are seen with their whole: "the hood of a car" is a car.
PARTS = _words(
    "seat lid tire tires wheel wheels hood roof bumper windshield fender trunk cushion cushions"
    " handlebar handlebars handle peel shade edge tip base top bottom middle back front underside"
    " surface side pipe end rim slice slices texture"
) | (BODY_PARTS - _words("hand hands foot feet"))
# ... and the nouns before which they are: "a toilet seat" is a toilet, a computer keyboard is none.
_VEHICLES = _words("car cars truck bus van motorcycle bike bicycle train scooter side")
PARTS_OF = {
    **dict.fromkeys(_list("tire tires wheel wheels hood roof bumper mirror trunk"), _VEHICLES),
    **dict.fromkeys(_list("handlebar handlebars windshield fender"), _VEHICLES),
    "seat": _VEHICLES | _words("toilet chair couch bench"),
    **dict.fromkeys(("lid", "bowl", "tank"), _words("toilet")),
    **dict.fromkeys(("cushion", "cushions"), _words("couch sofa chair")),
    **dict.fromkeys(("slice", "slices"), _words("pizza cake bread lemon orange apple cheese")),
    "peel": _words("orange banana apple lemon"),
    "keyboard": _words("laptop laptops"),
    "screen": _words("laptop laptops"),
    "top": _words("stove table counter desk"),
    "frame": _words("bed window door"),
    "spread": _words("bed"),
}
# What comes "with" these is in them, and what comes with those on them, ...
CONTAINERS = _words(
    "vase bowl cup mug glass pot basket box crate bucket jar pitcher bag sack backpack suitcase"
    " drawer cage aquarium tub bathtub pan wallet handbag purse flowerpot planter bin barrel nest"
    " wheelbarrow"
)
SURFACES = _words(
    "table desk shelf bookshelf tray plate counter countertop saucer platter windowsill cake"
)
# ... but what stands on the floor is beside them, and parts have no place of their own.
STANDING = _words(
    "chair stool bench sofa couch armchair bed table desk counter cabinet shelf bookshelf window"
    " door"
)
INSEPARABLE = _words("handle lid label leg drawer edge rim top pattern design face wheel logo")
CLOTHES = _words(
    "dress shirt t-shirt hat helmet suit coat jacket hoodie sweater uniform jeans pants shorts"
    " glasses sunglasses cap scarf skirt gown robe vest costume clothes clothing gear outfit"
    " kimono tuxedo apron pajamas swimsuit bikini cloak armor armour"
)
PORTIONS = _words(
    "slice piece stalk head bunch group herd flock pile stack bouquet pair set couple row lot"
    " bit cluster variety number kind type sort crowd pack team gang"
)
COMPOUNDS = frozenset(
    tuple(words.split())
    for words in _list(
        "traffic light|fire hydrant|stop sign|street sign|parking meter|parking lot|sports ball"
        "|baseball bat|baseball glove|tennis racket|tennis ball|wine glass|hot dog|potted plant"
        "|dining table|coffee table|cell phone|mobile phone|teddy bear|hair drier|hair dryer"
        "|fire truck|fire engine|polar bear|mouse pad|ice cream|ice cream cone|top hat|cowboy hat"
        "|soccer ball|bowling ball|tooth brush|skate board|washing machine|street lamp|street light"
        "|christmas tree|palm tree|sewing machine|vending machine|shopping cart|cutting board"
        "|wrist watch|paint brush|rubber duck|school bus|train station|tissue box"
        "|police car|pine cone|picture frame|umbrella stand|plus sign|swimming pool|living room"
        "|light bulb|rear view mirror|full moon|guinea pig|sea lion|hot air balloon|toilet paper"
        "|frying pan|high chair|bow tie|water bottle",
        "|",
    )
)
# Two nouns of which the first says what it is.
HEAD_FIRST = {
    ("laptop", "computer"),
    ("microwave", "oven"),
    ("remote", "control"),
    ("refrigerator", "freezer"),
    ("tv", "monitor"),
    ("tv", "screen"),
    ("tv", "set"),
    ("television", "set"),
    ("television", "screen"),
}
ALWAYS_PLURAL = _words(
    "scissors skis pants jeans shorts trousers glasses sunglasses goggles binoculars tongs"
    " pliers headphones shoes boots gloves socks"
)
_SINGULAR_IN_S = _words(
    "bus gas lens canvas iris atlas tennis chess sports christmas series species perhaps always"
)
_IRREGULAR_PLURALS = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "mice": "mouse",
    "geese": "goose",
    "feet": "foot",
    "teeth": "tooth",
    "oxen": "ox",
    "knives": "knife",
    "leaves": "leaf",
    "wolves": "wolf",
    "shelves": "shelf",
    "loaves": "loaf",
    "scarves": "scarf",
    "calves": "calf",
    "potatoes": "potato",
    "tomatoes": "tomato",
    "buses": "bus",
    "buss": "bus",
    "cookies": "cookie",
    "movies": "movie",
    "zombies": "zombie",
    "axes": "axe",
}


def article(word: str) -> str:
    """ "a" or "an", by the sound that the word begins with as far as spelling tells."""
    if word.startswith(("hour", "honest", "heir")):
        return "an"
    if re.match(r"uni(?!m|n)|use|usu|eu|one|ukulele|utensil", word):
        return "a"
    return "an" if word[:1] in set("aeiou") else "a"


def is_plural(word: str) -> bool:
    if word in _IRREGULAR_PLURALS or word in ALWAYS_PLURAL:
        return True
    return len(word) > 3 and re.search(r"[^sui]s$", word) is not None and word not in _SINGULAR_IN_S


def singular(word: str) -> str:
    """The singular of a noun as far as spelling tells; other words stay as they are."""
    if word in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[word]
    if not is_plural(word) or word in ALWAYS_PLURAL:
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if re.search(r"(?:ss|sh|ch|x|zz|[^aeo]us)es$", word):
        return word[:-2]
    return word[:-1]


def singular_noun(noun: str) -> str:
    """The singular of a noun of one or more words."""
    *before, last = noun.split(" ")
    return " ".join([*before, singular(last)])


def _possible_stems(word: str) -> Iterator[str]:
    """What a word could be a form of: "stopped" of "stopp", "stop" and "stoppe"."""
    for ending in ("ing", "ed", "es", "s", "d"):
        if word.endswith(ending):
            stem = word[: -len(ending)]
            yield stem
            yield stem + "e"
            if len(stem) > 2 and stem[-1] == stem[-2]:
                yield stem[:-1]
            if stem.endswith("i"):
                yield stem[:-1] + "y"


def verb_stem(word: str) -> str | None:
    """The stem of a known verb in one of its regular forms ("holding" -> "hold")."""
    if word in VERB_STEMS:
        return word
    return next((stem for stem in _possible_stems(word) if stem in VERB_STEMS), None)


def is_known_verb(word: str) -> bool:
    """An inflected form of a known verb; the bare form ("place") may be a noun."""
    return word in _IRREGULAR_VERBS or any(stem in VERB_STEMS for stem in _possible_stems(word))


def is_verb(word: str) -> bool:
    return word in AUXILIARIES or is_known_verb(word)


def looks_like_participle(word: str) -> bool:
    if word in NOT_VERBS or word.endswith("eed") or not word.endswith(("ing", "ed")):
        return False
    stem = word.removesuffix("ing").removesuffix("ed")
    return not set("aeiouy").isdisjoint(stem)  # no "ring", no "bed"


def is_adverb(word: str) -> bool:
    return (
        len(word) > 5
        and word.endswith("ly")
        and word not in ("butterfly", "family", "dragonfly", "assembly")
    )


def is_adjective(word: str) -> bool:
    return word in ADJECTIVES or word.endswith(("ful", "less", "ous", "-colored", "-coloured"))


def may_be_adjective(word: str) -> bool:
    """Whether a word that stands before a comma and a noun can be an adjective."""
    endings = ("y", "ing", "ed", "en", "ic", "al", "ive", "ent", "ant", "ish", "ular")
    return is_adjective(word) or word.endswith(endings)


def is_word(token: str) -> bool:
    return token[:1].isalnum()


def is_number(token: str) -> bool:
    return token in NUMBERS or token.isdecimal()


def is_boundary(tokens: Sequence[str], i: int) -> bool:
    """Whether a phrase cannot go on at position i."""
    if i >= len(tokens):
        return True
    token = tokens[i]
    return token in FUNCTION_WORDS or is_number(token) or not is_word(token)
