"""Style tags: "a fox next to a lantern, golden hour, film grain, 4k" has two objects.

Prompts for picture generators end, and sometimes begin, with words for how the picture looks. A
fragment between commas is such a tag if its last word is one of the words of style below, or if it
comes, without an article, after things that have one and a relation or a list of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from stal.prompts.places import find
from stal.prompts.things import thing_of
from stal.prompts.words import (
    ANIMALS,
    AUXILIARIES,
    CONTAINERS,
    DETERMINERS,
    MEN,
    PEOPLE,
    PRONOUNS,
    SURFACES,
    WITH,
    WOMEN,
    WORN,
    is_adjective,
    is_adverb,
    is_known_verb,
    is_number,
    is_plural,
    singular,
    word_at,
    word_set,
)


def tags(text: str) -> frozenset[str]:
    """The tags of a text, of one or more words, between bars."""
    return frozenset(text.split("|"))


# What a tag ends in, ...
_STYLES = word_set(
    "photography photograph art artwork render rendering illustration watercolor watercolour"
    " gouache acrylic pastel engraving woodcut linocut lithograph origami claymation animation"
    " anime manga caricature fresco cinematography cinematic style styled aesthetic vibe vibes mood"
    " theme tone tones palette color colors colour colours gradient hue hues lighting backlight"
    " backlighting backlit glow bloom focus field bokeh grain noise lens 35mm 50mm 85mm macro"
    " closeup close-up perspective view composition framing symmetry resolution definition quality"
    " detail details detailed textures realistic photorealistic hyperrealistic surreal abstract"
    " minimal isometric low-poly lowpoly poly voxel 2d 3d 4k 8k hd uhd hdr raw masterpiece"
    " artstation deviantart pixiv unreal octane engine ghibli pixar geographic hour sunrise sunset"
    " dusk dawn twilight morning afternoon evening night midday noon day spring summer autumn"
    " winter weather mist fog haze rain snow atmosphere ambience ambiance fantasy cyberpunk"
    " steampunk vaporwave synthwave retro vintage noir gothic baroque rococo renaissance victorian"
    " deco nouveau age era century life chiaroscuro sepia monochrome headshot portrait landscape"
    " panorama wide-angle fisheye analog polaroid bioluminescent dreamy moody ethereal whimsical"
    " epic elegant intricate vivid vibrant award-winning iso eos solo"
)
# ... and with a word before them, for alone they are things.
_PICTURES = word_set(
    "photo picture image painting drawing sketch cartoon comic poster collage mosaic film movie"
    " light lights shot line lines outlines shadow shadows rays smoke sky background backdrop"
)
_MEDIA = word_set("oil watercolor watercolour ink pencil acrylic charcoal gouache pastel tempera")
_GROUNDS = word_set("paper canvas board wood linen silk")
# ... and begins with.
_OPENINGS = (
    ["by"],
    ["trending"],
    ["style", "of"],
    ["in", "the", "style", "of"],
    ["inspired", "by"],
    ["shot", "on"],
    ["shot", "with"],
    ["shot", "by"],
    ["taken", "with"],
    ["captured", "with"],
)
_SETTING = re.compile(r"f/[\d.]+|\d+/\d+s?|\d+mm")  # of a camera
_ENDINGS = ("ism", "istic", "esque", "punk", "graphy", "scape")
# Tags that say how good, how old and how decent the pictures were that a model learnt from, ...
_QUALITY = tags(
    "masterpiece|best quality|amazing quality|great quality|high quality|good quality"
    "|normal quality|average quality|medium quality|low quality|bad quality|worst quality"
    "|top quality|highest quality|absurdres|incredibly absurdres|highres|hires|lowres|hi-res"
    "|ultra-detailed|ultra detailed|extremely detailed|highly detailed|very aesthetic|aesthetic"
    "|displeasing|very displeasing|very awa|worst aesthetic|newest|recent|mid|early|oldest|sfw"
    "|nsfw|safe|sensitive|general|questionable|explicit|uncensored|censored|official art"
    "|official style|key visual|anime screencap|anime coloring|game cg|wallpaper"
    "|award winning|trending|no watermark|no text|commentary|english commentary|commission"
    "|signature|artist name|watermark|photorealistic|hyper-realistic|ultra-realistic|uhd|fhd"
)
_QUALITY_FORM = re.compile(
    r"score \d+(?: up)?|(?:rating|source) [\w-]+|(?:year )?(?:19|20)\d\ds?|\d+k(?: \w+)?"
    r"|(?:very|ultra|super|insanely|incredibly|hyper) (?:detailed|high res|highres|aesthetic|sharp)"
    r"|\d+x\d+ (?:pixels|resolution)|(?:ultra |full )?hd|(?:ultra |super )?high[ -]res"
)
# ... and how they show what they show.
_FRAMING = tags(
    "upper body|lower body|full body|cowboy shot|wide shot|from above|from below|from side"
    "|from behind|from outside|dutch angle|pov|straight-on|profile|multiple views|indoors|outdoors"
    "|no humans|solo focus|male focus|female focus|looking at viewer|looking back|looking away"
    "|looking down|looking up|looking to the side|facing viewer|facing away|simple background"
    "|lens flare|depth of field|lineart|greyscale|spot color|flat color|cropped|out of frame"
    "|scenery|still life|virtual youtuber|original|solo|contemporary"
)
# Those that nothing else is called, which need no comma: "masterpiece best quality 1girl".
_ALONE = tags(
    "masterpiece|best quality|amazing quality|high quality|worst quality|low quality|absurdres"
    "|highres|lowres|very aesthetic|ultra-detailed|solo"
)
_ALONE_FORM = re.compile(r"score \d+(?: up)?")
_LONGEST_ALONE = 3  # words

_CONCRETE = ANIMALS | PEOPLE | MEN | WOMEN | WORN | CONTAINERS | SURFACES


def without_tags(tokens: Sequence[str]) -> list[int]:
    """The positions of a sentence's tokens that belong to no style tag."""
    fragments = _fragments(tokens)
    kept = [not _is_style(tokens[start:end]) for start, end in fragments]
    end = fragments[0][1]
    lists = end + 1 < len(tokens) and is_number(tokens[end + 1])  # "cats: one black, one white"
    if tokens[end : end + 1] == [":"] and not (lists or _has_article(tokens[:end])):
        kept[0] = _states(tokens[:end])  # "Isometric room: a bed left of a desk"
    articles = [
        keep and _has_article(tokens[start:end])
        for keep, (start, end) in zip(kept, fragments, strict=True)
    ]
    stated = [_states(tokens[start:end]) for start, end in fragments]
    # From the end on: the first that is not alone ends the tags.
    for k in range(len(fragments) - 1, 0, -1):
        start, end = fragments[k]
        words = tokens[start:end]
        if not kept[k] or not words:
            continue
        lists = sum(articles[:k]) > 1 or any(stated[:k])
        if stated[k] or not articles[0] or not lists or not _may_be_tag(words):
            break
        kept[k] = False
    out: list[int] = []
    for (start, end), keep in zip(fragments, kept, strict=True):
        if keep:
            start, stop = _within_tags(tokens, start, end)
            out += range(start, stop)
            out += range(end, min(end + 1, len(tokens)))
    return out


def _within_tags(tokens: Sequence[str], start: int, end: int) -> tuple[int, int]:
    """[start, end) without the tags that stand there without a comma."""
    while (length := _length_of_tag(tokens[start : start + _LONGEST_ALONE])) and start < end:
        if word_at(tokens, start + length) == "of":
            break
        start += length
    stop = end
    said = not DETERMINERS.isdisjoint(tokens[start:end])  # "forming a masterpiece"
    while not said and stop > start:
        lengths = range(1, min(_LONGEST_ALONE, stop - start) + 1)
        length = next((k for k in lengths if _is_alone(tokens[stop - k : stop])), 0)
        if not length:
            break
        stop -= length
    return start, stop


def _is_alone(words: Sequence[str]) -> bool:
    tag = " ".join(words)
    return tag in _ALONE or _ALONE_FORM.fullmatch(tag) is not None


def _length_of_tag(words: Sequence[str]) -> int:
    """How many words the longest tag has that they begin with; 0 for none."""
    return next((k for k in range(len(words), 0, -1) if _is_alone(words[:k])), 0)


def _fragments(tokens: Sequence[str]) -> list[tuple[int, int]]:
    """[start, end) of what lies between commas, bars and colons."""
    cuts = [i for i, token in enumerate(tokens) if token in (",", "|", ":")]
    return [(a + 1, b) for a, b in zip([-1, *cuts], [*cuts, len(tokens)], strict=True)]


def _has_article(words: Sequence[str]) -> bool:
    return any((word in DETERMINERS and word != "'s") or is_number(word) for word in words)


def _states(words: Sequence[str]) -> bool:
    """Whether a fragment is more than a noun phrase."""
    return any(
        word in AUXILIARIES | PRONOUNS | WITH or is_known_verb(word) or find(words, i) is not None
        for i, word in enumerate(words)
    )


def _is_style(words: Sequence[str]) -> bool:
    if not words:
        return False
    if len(words) <= 4:
        tag = " ".join(words)
        if tag in _QUALITY or tag in _FRAMING or _QUALITY_FORM.fullmatch(tag):
            return True
    if any(list(words[: len(opening)]) == opening for opening in _OPENINGS):
        return not _has_article(words[4:] if words[0] == "in" else words)
    if words[0] in _MEDIA and words[1:2] == ["on"] and words[-1] in _GROUNDS:
        return True  # "watercolor on paper"
    if len(words) == 1 and _SETTING.fullmatch(words[0]):
        return True
    if is_number(words[-1]):
        words = words[:-1]  # "unreal engine 5"
    if _has_article(words) or any(find(words, i) for i in range(len(words))):
        return False
    last = words[-1] if words else ""
    if last in _STYLES or (len(words) > 1 and last in _PICTURES):
        return True
    return last.endswith(_ENDINGS) and not ("and" in words or _is_thing(words))


def _may_be_tag(words: Sequence[str]) -> bool:
    """Whether a fragment without an article is not plainly a thing."""
    if _has_article(words) or "and" in words or "or" in words:
        return False
    last = words[-1]
    if is_adjective(last) or is_adverb(last):
        return True
    return not (is_plural(last) or _is_thing(words))


def _is_thing(words: Sequence[str]) -> bool:
    return singular(words[-1]) in _CONCRETE or thing_of(" ".join(words)) is not None
