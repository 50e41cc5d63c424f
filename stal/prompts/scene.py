"""What a prompt says of the picture as a whole: the kind of shot and the setting.

scene_of("close-up photo of a red fox in the snow", ["fox"])  # Scene("close-up", "landscape")
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stal.prompts.things import Thing, thing_of
from stal.prompts.words import ANIMALS, PEOPLE, singular_noun, word_set

# By their words; the first that a prompt has counts.
_SHOTS = (
    ("headshot", r"head ?-?shots?|selfie|passport photo|mugshot|face of|bust of"),
    ("full body", r"full[ -](?:body|length|figure)|head[ -]to[ -]toe|from head to foot"),
    ("macro", r"macro"),
    (
        "close-up",
        r"close[ -]?ups?(?: (?:photo|shot|view|portrait|image|picture))?|up close|detail shot"
        r"|close (?:shot|view)|extreme close",
    ),
    (
        "aerial",
        r"aerial|bird'?s[ -]eye|drone (?:shot|photo|view)|top[ -]down|overhead (?:view|shot)"
        r"|seen from above|view from above|flat ?-?lay|from the air",
    ),
    ("from below", r"low[ -]angle|worm'?s[ -]eye|from below|looking up at"),
    (
        "wide",
        r"wide[ -](?:angle|shot|view)|panoram\w*|establishing shot|long shot|extreme wide|vista",
    ),
    (
        "still life",
        r"still[ -]life|product (?:photo\w*|shot)|food photo\w*|studio (?:photo\w*|shot)",
    ),
    ("portrait", r"portraits?"),
)
SHOTS = ("", *(name for name, _ in _SHOTS))
_SHOT_FORMS = tuple(
    (name, re.compile(rf"(?<![\w-])(?:{forms})(?![\w-])")) for name, forms in _SHOTS
)

_SETTING_WORDS = {
    "space": word_set("space orbit galaxy nebula cosmos spacewalk"),
    "underwater": word_set("underwater seabed undersea coral reef"),
    "indoors": word_set(
        "room kitchen bedroom bathroom office classroom studio hall hallway corridor attic basement"
        " stage workshop laboratory lab indoors nursery living ballroom salon dungeon"
    ),
    "street": word_set(
        "street road city sidewalk pavement alley crossroads intersection highway downtown town"
        " square plaza market parking"
    ),
    "sea": word_set(
        "sea ocean beach lake river harbor harbour coast shore bay lagoon waves surf pond"
    ),
    "landscape": word_set(
        "field forest meadow mountain mountains hill hills park garden desert savanna savannah"
        " jungle valley woods farm snow grass lawn countryside prairie vineyard yard backyard"
        " canyon cliff swamp"
    ),
    "sky": word_set("sky clouds mid-air midair"),
}
# Buildings are a setting for what is in them.
_INSIDE = re.compile(
    r"\b(?:in|inside|within|at)(?: [\w-]+){1,3}? (?:garage|library|restaurant|bar|museum|gallery"
    r"|church|theat(?:er|re)|bakery|greenhouse|saloon|tavern|inn|gym|hospital|cafe|pub|castle|shop"
    r"|store|house|barn|palace|temple|cathedral|cabin|hotel|school|circus)\b"
)
# What the settings of `stal.prompts.things` are here.
_KIND = {
    "room": "indoors",
    "stage": "indoors",
    "workshop": "indoors",
    "kitchen": "indoors",
    "desk": "table",
    "table": "table",
    "street": "street",
    "field": "landscape",
    "water": "sea",
    "beach": "sea",
    "sky": "sky",
}
# Figures of geometry lie in no world.
_FIGURES = word_set(
    "circle square triangle diamond star cross ring rectangle ellipse hexagon pentagon octagon oval"
    " rhombus dot cube sphere cone cylinder pyramid"
)
# Whom a portrait shows.
_PORTRAYED = PEOPLE | ANIMALS | word_set("face god goddess emperor cyborg android")
SETTINGS = ("", "flat", "table", *_SETTING_WORDS)


@dataclass(frozen=True)
class Scene:
    """A picture as a whole.

    Attributes:
        shot: one of `SHOTS`; "" where nothing is said.
        setting: one of `SETTINGS`; "" where nothing is known, "flat" for figures of geometry,
            "table" for things on a table that is not in the picture itself.
    """

    shot: str = ""
    setting: str = ""


PLAIN = Scene()  # nothing is known of it


def scene_of(text: str, nouns: Sequence[str]) -> Scene:
    """The scene that a prompt describes.

    Args:
        text: the prompt.
        nouns: of its objects.
    """
    if nouns and all(singular_noun(noun) in _FIGURES for noun in nouns):
        return Scene("", "flat")
    lower = text.lower()
    heads = {singular_noun(noun).split(" ")[-1] for noun in nouns}
    shot = next((name for name, form in _SHOT_FORMS if form.search(lower)), "")
    if shot == "portrait" and ("portrait" in heads or heads.isdisjoint(_PORTRAYED)):
        shot = ""
    return Scene(shot, _setting(lower, nouns))


def _is_outdoors(thing: Thing) -> bool:
    return all(_KIND[each] not in ("indoors", "table") for each in thing.settings)


def _setting(lower: str, nouns: Sequence[str]) -> str:
    words = set(re.findall(r"[\w-]+", lower))
    said = [name for name, own in _SETTING_WORDS.items() if not own.isdisjoint(words)]
    known = [thing for thing in map(thing_of, nouns) if thing is not None]
    if _INSIDE.search(lower):
        said.insert(0, "indoors")
    if said and not (said == ["sky"] and any(t.rests_on not in ("air", "sky") for t in known)):
        return said[0]
    borne = [thing.rests_on in ("table", "flat", "hand") for thing in known]
    if known and all(borne):
        return "table"
    votes = Counter(_KIND[kind] for thing in known for kind in thing.settings)
    votes["sky"] *= all(thing.rests_on in ("air", "sky") for thing in known)
    votes["table"] = 0
    outdoor = [t.extent >= 3 and t.rests_on == "ground" and _is_outdoors(t) for t in known]
    votes["indoors"] *= not any(outdoor)
    best = max(votes, key=lambda name: votes[name], default="")
    return best if votes[best] else ""
