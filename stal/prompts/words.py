"""Closed lists of English words, and what the form of a word tells, for `stal.prompts.grammar`.

A word that no list knows is taken for a noun or an attribute by its position, so the lists hold
what position does not tell. To teach the grammar a noun of several words, extend `COMPOUNDS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set


def _list(text: str, separator: str | None = None) -> list[str]:
    return text.split(separator)


def word_set(text: str) -> frozenset[str]:
    """The words of a text, between spaces."""
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

POSSESSIVES = word_set("my your his her its their our whose someone's 's")
DEFINITE = word_set("the this these those")
DETERMINERS = (
    word_set("a an no any another each every both either all other second")
    | POSSESSIVES
    | frozenset(QUANTITIES)
    | DEFINITE
)
PERSONAL = word_set("he him she her his")
PLURAL_PRONOUNS = word_set("they them their both")
PRONOUNS = word_set("it they them he him she her")
MASCULINE = word_set("he him his")
WOMEN = word_set(
    "woman girl lady mother daughter sister grandmother wife queen princess bride witch waitress"
    " actress mermaid"
)
MEN = word_set(
    "man boy guy gentleman father son brother grandfather husband king prince groom wizard monk"
    " cowboy fisherman policeman fireman businessman waiter"
)
# What a later definite phrase may call it: "a pigeon ... the bird".
KINDS = {
    "bird": word_set(
        "pigeon dove sparrow robin owl eagle hawk falcon crow raven magpie parrot parakeet toucan"
        " seagull gull duck goose swan chicken hen rooster turkey peacock flamingo heron stork"
        " crane pelican penguin ostrich canary finch wren hummingbird woodpecker kingfisher"
    ),
    "dog": word_set(
        "puppy terrier poodle beagle bulldog dachshund corgi husky labrador retriever collie pug"
        " dalmatian greyhound spaniel hound shepherd"
    ),
    "cat": word_set("kitten tabby siamese persian"),
    "boat": word_set("ship yacht canoe kayak dinghy ferry gondola schooner raft"),
    "ship": word_set("boat schooner galleon yacht"),
    "car": word_set("taxi cab sedan limousine convertible van jeep"),
    "plane": word_set("jet airplane aeroplane seaplane"),
    "bike": word_set("bicycle motorcycle motorbike"),
    "sofa": word_set("couch"),
    "couch": word_set("sofa"),
    "fridge": word_set("refrigerator"),
    "tv": word_set("television"),
    "amp": word_set("amplifier"),
    "cup": word_set("mug"),
    "flower": word_set("rose tulip daisy sunflower cornflower lily orchid daffodil"),
    "fruit": word_set("apple orange banana pear lemon peach pineapple"),
    "fish": word_set("goldfish shark trout salmon"),
}
# What nouns begin with that are called by their end: a telephone is "the phone".
FIRST_PARTS = word_set(
    "tele bath dust sail motor row speed sea arm wheel rain sun gold over snow white black back"
    " base volley micro under tooth grand steam type wind wood"
)
PEOPLE = (
    WOMEN
    | MEN
    | word_set(
        "person child kid baby toddler teenager adult someone people men women children skier"
        " surfer skater snowboarder cyclist biker hiker player rider driver pilot worker chef"
        " farmer soldier knight pirate astronaut doctor nurse teacher student artist painter"
        " musician singer dancer clown officer firefighter samurai ninja viking elf angel fairy"
        " vampire couple customer guest visitor passenger tourist traveler photographer gardener"
        " baker butcher hunter warrior detective superhero magician bartender barista athlete"
        " runner swimmer mechanic carpenter ballerina scientist engineer"
    )
)
# Robots and scarecrows are spoken of as if they lived.
ANIMALS = word_set(
    "animal dog puppy cat kitten bird horse pony foal cow bull calf sheep lamb goat pig elephant"
    " bear zebra giraffe lion tiger deer fox wolf monkey rabbit mouse duck goose swan chicken owl"
    " parrot eagle pigeon seagull penguin dolphin turtle frog donkey camel moose squirrel hamster"
    " hedgehog raccoon panda koala kangaroo leopard cheetah jaguar panther gorilla ape hippo rhino"
    " corgi pug poodle husky labrador beagle bulldog chihuahua retriever terrier dachshund"
    " otter tortoise lizard snake crocodile crab fish shark whale octopus rooster hen turkey"
    " peacock flamingo crow raven sparrow hawk ostrich pelican butterfly bee ladybug spider"
    " dragonfly snail dragon unicorn dinosaur robot snowman scarecrow skeleton alien"
)
NEGATIONS = word_set("not never without nor neither except")
COPULAS = word_set("is are was were be being been isn't aren't wasn't weren't")
AUXILIARIES = COPULAS | word_set(
    "am has have had do does did could will would may might must shall should"
    " don't doesn't didn't can't won't hasn't haven't"
)
CONJUNCTIONS = word_set(", and & or nor plus")
CLAUSE_BREAKS = word_set("while whereas but as because so when if although though")
RELATIVES = word_set("which that who whom")
# The noun phrase after these is what the next words of place speak about ("with a dog below it").
WITH = word_set("with by having featuring including plus")
FUNCTION_WORDS = (
    DETERMINERS
    | PRONOUNS
    | AUXILIARIES
    | CONJUNCTIONS
    | CLAUSE_BREAKS
    | RELATIVES
    | WITH
    | NEGATIONS
    | word_set(
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

COLOURS = word_set(
    "red green blue yellow orange purple pink cyan magenta white black gray grey brown beige"
    " gold golden silver turquoise violet maroon navy teal crimson scarlet tan"
)
PURE_COLOURS = COLOURS - {"orange", "violet"}  # these are things as well
ADJECTIVES = COLOURS | word_set(
    "big small large little tiny huge giant tall short long wide narrow thick thin round"
    " circular rectangular triangular oval new old young wooden metal metallic plastic golden"
    " rubber leather fluffy soft hard rough smooth shiny bright dark pale colorful colourful"
    " striped spotted plain empty blank solid clean dirty beautiful cute open closed sleek"
    " single same different identical majestic tasty delicious fresh hot cold warm heavy"
    " low curious ripe furry wet dry snowy sunny sharp rich cool plump gentle delicate crisp sweet"
    " calm"
    " cozy cosy rustic ornate elegant ancient misty foggy messy tidy lush serene magical mystical"
    " strong deep steep quiet vast tough vibrant gnarled broken upside-down upright high aloft idle"
)
# "with its mouth open"
AFTER_NOUN = word_set("open closed shut ajar asleep awake low")
# "'s" after these is a verb.
CONTRACTED = word_set("it he she that there what here who where let")
MORE = word_set("more greater larger higher bigger")
LESS = word_set("less fewer smaller lower")
# Verbs that describe: no object follows.
LOOKS = COPULAS | word_set("look looks looking looked seem seems seemed appears appeared")

# Words in -ing and -ed that are nouns.
NOT_VERBS = word_set(
    "viking building painting ceiling wedding clothing evening morning drawing railing bedding"
    " earring pudding lightning dumpling duckling bread hundred thread king wing ring string"
    " sibling awning stocking"
)
VERB_STEMS = word_set(
    "sit stand lie lay rest hang float hover fly run walk perch place locate situate position park"
    " hold ride wear carry eat drive sleep graze lean look watch swim jump play stack mount move"
    " point face tower soar surround appear contain show touch cover drift balance gallop trot"
    " scurry suspend tuck nestle install prop pull push chase grow travel wait greet observe stay"
    " remain seat hide climb throw catch kick hit feed drink read use cast arrange sandwich flank"
    " top dangle glide pass leave rise roll slide spin dance sail cross fill enclose attach connect"
    " gather reach grip clutch cradle straddle hug crouch loom lounge peer gleam glisten glitter"
    " glimmer shimmer sparkle twinkle flicker flutter hum buzz whistle scowl stare gaze glance peek"
    " lurk prowl guard waddle wriggle snuggle nuzzle huddle cuddle snooze doze slumber munch nibble"
    " chew sniff lick bark purr growl howl chirp smile grin frown laugh wander roam stroll sprint"
    " crawl slither scuttle scamper hop leap bounce plunge swoop orbit sway droop drape sprawl"
    " recline relax bask soak bathe bob submerge emerge jut protrude kneel squat bend stoop slouch"
    " slump tilt teeter wobble topple tumble overlook dominate adorn decorate occupy inhabit"
    " accompany join follow haul tug drag hoist spill pour drip gush simmer sizzle blaze glow shine"
    " burn reflect illuminate thrive bloom sprout flourish wade chug rumble skid scratch pounce"
    " forage roost alight settle dwell linger loiter pose flap coil curl wrap bury cascade clamber"
    " ascend descend approach hunch squeeze wedge moor tether fasten hitch pin fluff preen await"
    " snore lodge turn shake blow kiss raise breathe sip say"
)
_IRREGULAR_VERBS = word_set(
    "sat stood lay lain laid slung hung flew flown ran held rode ridden wore worn ate eaten"
    " drove driven slept threw thrown caught hid hidden made seen saw seems seem lit stuck set"
    " lying dying tying shone grew fell swam blew drew gave took taken came went kept led fed spun"
    " swung leapt crept broke sang sank rang sped fought dug stole woke wound met sent slid swept"
    " tore wove wrote shook froze built brought come comes grown forgotten"
)
# What lies where is told by "parked by a car" but not by "driven by a man".
POSTURES = word_set(
    "parked seated located positioned placed situated stacked stored perched mounted stopped"
    " installed nestled tucked curled"
)

# Nouns of the frame, of time and of thought: nothing that gets a place of its own.
NOT_OBJECTS = word_set(
    "background backdrop foreground scene scenery canvas left right top bottom upper lower middle"
    " center centre corner side front back edge end half distance air mid-air midair way style"
    " order position direction contrast nothing something anything everything else other others"
    " rest place area vicinity atmosphere touch turn shade day night time color colour shape size"
    " composition setting focal number amount quantity nap daylight daytime look expression minute"
    " minutes age tune song owner glow blur sheen rain mist fog spot world heavens everyone"
    " somebody nobody anybody hours taste scent smell aroma hue hues movement movements beauty"
    " sunrise sunset dusk dawn twilight daybreak midnight storm thunderstorm snowstorm blizzard"
    " picnic party conversation"
    " sunlight moonlight daylight fantasy fiction weather"
    " artstation viewer detail details sound moment trip voice voices wind breeze melody music"
    " ambiance adventure fun lighting resolution quality masterpiece bokeh 4k 8k hd"
)
PICTURES = word_set(
    "photo photograph picture image painting drawing illustration render rendering sketch"
    " portrait headshot selfie mugshot closeup close-up close view shot"
    " snapshot collage poster artwork art rendition"
    " watercolor watercolour"
)
SHOWING = ("of", "with", "showing", "containing", "featuring")
CANVASES = PICTURES | word_set("scene canvas frame")
THE_CANVAS = word_set("photo photograph picture image canvas frame scene")
# What is crossed is under whoever goes across it.
CROSSED = word_set("river bridge lake desert field street road sea ocean stream meadow pond beach")
# Surroundings; not objects where something is in, on or along them.
SCENERY = word_set(
    "sky ground floor room street road field grass park beach water ocean sea forest meadow"
    " sidewalk pavement lawn driveway horizon ice surf waves kitchen bathroom bedroom lot snow"
    " slope hill track tracks sand yard desert city wall sun row line column light display space"
    " wild"
)
IN_THE_SKY = word_set("sun")  # surroundings unless there is one of them
# Things, but surroundings of what is in or on them.
PLACES = word_set(
    "building station zoo enclosure pasture river lake pool pond dirt mud garden hotel aquarium"
    " classroom library garage campsite campground hangar highway lounge office restaurant store"
    " intersection crossroads backyard attic basement corridor airport stadium arena farm alley"
    " shore coast stage runway harbor harbour countryside village town jungle hall hallway barnyard"
    " courtyard mars moon"
)
BACKDROPS = word_set("window door gate fence hedge")
SCENERY_COMPOUNDS = ("living room", "parking lot", "train station")
BODY_PARTS = word_set(
    "hand hands arm arms foot feet leg legs shoulder shoulders head heads back face eyes mouth"
    " side lap wings wing tail tails fur body paw paws nose noses hair skin tongue beak ears neck"
    " stomach belly chest knee knees jaw jaws claw claws horns antlers mane feathers whiskers"
    " hooves fins fingers teeth fangs"
)
HELD_IN = word_set("hand hands arm arms paw paws mouth")
CARRIED_OVER = word_set("shoulder arm back")
FEET = word_set("feet foot")
# Parts that are seen with their whole: "the hood of a car" is a car.
PARTS = word_set(
    "seat lid tire tires wheel wheels hood roof bumper windshield fender trunk cushion cushions"
    " handlebar handlebars handle peel shade edge tip base top bottom middle back front underside"
    " surface side pipe end rim slice slices texture"
) | (BODY_PARTS - word_set("hand hands foot feet"))
# ... and the nouns before which they are: "a toilet seat" is a toilet, a computer keyboard is none.
_VEHICLES = word_set("car cars truck bus van motorcycle bike bicycle train scooter side")
PARTS_OF = {
    **dict.fromkeys(_list("tire tires wheel wheels hood roof bumper mirror trunk"), _VEHICLES),
    **dict.fromkeys(_list("handlebar handlebars windshield fender"), _VEHICLES),
    "seat": _VEHICLES | word_set("toilet chair couch bench"),
    **dict.fromkeys(("lid", "bowl", "tank"), word_set("toilet")),
    **dict.fromkeys(("cushion", "cushions"), word_set("couch sofa chair")),
    **dict.fromkeys(("slice", "slices"), word_set("pizza cake bread lemon orange apple cheese")),
    "peel": word_set("orange banana apple lemon"),
    "keyboard": word_set("laptop laptops"),
    "screen": word_set("laptop laptops"),
    "top": word_set("stove table counter desk"),
    "frame": word_set("bed window door"),
    "spread": word_set("bed"),
}
# Who is small enough to be in one.
BABIES = word_set("baby toddler infant newborn")
# What comes "with" these is in them, and what comes with those on them, ...
CONTAINERS = word_set(
    "vase bowl cup mug glass pot basket box crate bucket jar pitcher bag sack backpack suitcase"
    " drawer cage aquarium tub bathtub pan wallet handbag purse flowerpot planter bin barrel nest"
    " wheelbarrow stroller pram crib cradle"
)
SURFACES = word_set(
    "table desk shelf bookshelf tray plate counter countertop saucer platter windowsill cake"
)
# ... but what stands on the floor is beside them, and parts have no place of their own.
STANDING = word_set(
    "chair stool bench sofa couch armchair bed table desk counter cabinet shelf bookshelf window"
    " door"
)
INSEPARABLE = word_set("handle lid label leg drawer edge rim top pattern design face wheel logo")
# What somebody is said to come with is drawn with them ("a woman with red hair"), ...
OF_BODIES = BODY_PARTS | word_set(
    "hairstyle haircut beard moustache mustache goatee stubble ponytail pigtail braid bangs"
    " dreadlocks curl freckle wrinkle smile grin frown expression lip eyebrow eyelash tattoo scar"
    " spot stripe scales marking trunk tusk hump horn hoof eye ear finger tooth feather fin fleece"
)
# ... and so are the parts of things ("a red roof").
OWN_PARTS = (
    OF_BODIES
    | INSEPARABLE
    | word_set(
        "polka-dots petal stem thorn leaf branch roof chimney spire"
        " tower dome windows door tire headlight seat screen sail mast bumper stitching trim lace"
        " sleeve button"
    )
) - word_set("side lap back")
# How far down whoever wears it a thing is, as a share of their height.
WORN_AT = {
    word: share
    for share, words in (
        (
            0.08,
            "hat helmet cap crown halo tiara headband headphones wig bandana turban bonnet beanie"
            " beret hood bow veil",
        ),
        (0.1, "glasses sunglasses goggles monocle eyepatch mask earring"),
        (0.2, "scarf tie bowtie ribbon collar necklace"),
        (
            0.38,
            "shirt t-shirt coat jacket hoodie sweater vest armor armour shawl poncho blouse"
            " cardigan raincoat cape cloak",
        ),
        (
            0.55,
            "dress gown robe kimono suit costume uniform outfit tuxedo pajamas swimsuit bikini"
            " spacesuit overalls suspenders",
        ),
        (0.5, "belt watch ring glove mitten bracelet"),
        (0.65, "skirt tutu shorts apron"),
        (0.72, "jeans pants leggings tights"),
        (0.95, "boot boots shoe shoes sneaker sandal sock"),
    )
    for word in words.split()
}
_PAIRED = word_set("boots shoes sneakers sandals socks gloves mittens earrings bracelets")
# What is on whoever comes with it.
WORN = frozenset(WORN_AT) | word_set("clothes clothing gear")
PORTIONS = word_set(
    "slice piece stalk head bunch group herd flock pile stack bouquet pair set couple row lot"
    " line column bit cluster variety number kind type sort crowd pack team gang"
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
ALWAYS_PLURAL = word_set(
    "scissors skis pants jeans shorts trousers glasses sunglasses goggles binoculars tongs"
    " pliers headphones shoes boots gloves socks"
)
_SINGULAR_IN_S = word_set(
    "bus gas lens mars canvas iris atlas tennis chess sports christmas series species perhaps"
    " always"
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


def is_for_one(noun: str) -> bool:
    """Whether a plural is what one wears: "boots", "glasses"."""
    return noun in _PAIRED or noun in ALWAYS_PLURAL


def is_plural(word: str) -> bool:
    """Whether a noun is in the plural as far as spelling tells."""
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
    """An auxiliary, or an inflected form of a known verb."""
    return word in AUXILIARIES or is_known_verb(word)


def looks_like_participle(word: str) -> bool:
    """Whether a word is a participle as far as spelling tells."""
    if word in NOT_VERBS or word.endswith("eed") or not word.endswith(("ing", "ed")):
        return False
    stem = word.removesuffix("ing").removesuffix("ed")
    return not set("aeiouy").isdisjoint(stem)  # no "ring", no "bed"


def is_adverb(word: str) -> bool:
    """Whether a word ends as adverbs do and is none of the nouns that do."""
    return (
        len(word) > 5
        and word.endswith("ly")
        and word not in ("butterfly", "family", "dragonfly", "assembly")
    )


def is_adjective(word: str) -> bool:
    """Whether a word is a known adjective, or ends as only adjectives do."""
    return word in ADJECTIVES or word.endswith(("ful", "less", "ous", "-colored", "-coloured"))


def may_be_adjective(word: str) -> bool:
    """Whether a word that stands before a comma and a noun can be an adjective."""
    endings = ("y", "ing", "ed", "en", "ic", "al", "ive", "ent", "ant", "ish", "ular")
    return is_adjective(word) or word.endswith(endings)


def is_word(token: str) -> bool:
    """Whether a token is no punctuation mark."""
    return token[:1].isalnum() or (token[:1] in ("#", "№") and len(token) > 1)


def is_number(token: str) -> bool:
    """Whether a token is a number up to twenty in letters, or any in digits."""
    return token in NUMBERS or token.isdecimal()


def is_one_of(word: str, words: Set[str]) -> bool:
    """Whether a noun, as it is or in the singular, is among the words."""
    return word in words or singular(word) in words


def number_of(token: str) -> int:
    """The value of a token that `is_number`, of its first nine digits."""
    return NUMBERS[token] if token in NUMBERS else int(token[:9])


def word_at(tokens: Sequence[str], i: int) -> str:
    """The token at position i; "" before the first and after the last."""
    return tokens[i] if 0 <= i < len(tokens) else ""


def is_boundary(tokens: Sequence[str], i: int) -> bool:
    """Whether a phrase cannot go on at position i."""
    if i >= len(tokens):
        return True
    token = tokens[i]
    return token in FUNCTION_WORDS or is_number(token) or not is_word(token)
