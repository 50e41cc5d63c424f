"""What only picture generators read in a prompt: weights, separators, networks, parameters.

`RULES` says, tool by tool, what a pattern is to the grammar and to the text encoder, which know
none of these languages; what a pattern cannot say is in the functions below it. Sources:

    AUTOMATIC1111   github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features: attention, prompt
                    editing, alternating words, BREAK, AND, extra networks, PNG info, comments
    Regional Prompter   github.com/hako-mikan/sd-webui-regional-prompter: ADDBASE, ADDCOMM, ADDCOL,
                    ADDROW
    Dynamic Prompts     github.com/adieyal/sd-dynamic-prompts: variants, wildcards
    Compel          github.com/damian0815/compel, of InvokeAI and diffusers: +, -, swap, and, blend
    Midjourney      docs.midjourney.com: parameters, multi-prompts, image prompts
    NovelAI         docs.novelai.net: braces, numeric emphasis, | between characters
    ComfyUI         docs.comfy.org: embeddings, comments; and prompt control: COUPLE, MASK, AREA
    Danbooru        danbooru.donmai.us/wiki_pages/help:tags: words joined by _, qualifiers
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from stal.prompts.places import find
from stal.prompts.words import FUNCTION_WORDS, is_adjective, is_known_verb, looks_like_participle

# Between the parts of a prompt, in the text that the grammar reads; no plain text has these.
PART = "\x1e"
SHARED = "\x1d"  # what is before it is said of all parts

_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
_FAR_ENOUGH = 32  # characters to look back: no word or weight that matters is longer

# Midjourney's parameters: with a number, with a name or an address, and alone.
_NUMBERED = (
    "ar|aspect|bs|c|cfg|chaos|cw|dw|exp|h|height|iw|mp|niji|ow|q|quality|r|repeat|s|sameseed|seed"
    "|steps|stop|stylize|sv|sw|v|version|vibe|w|weird|width"
)
_NAMED = "cref|dref|motion|niji|oref|p|personalize|profile|sref|style|video"
_ALONE = (
    "creative|draft|end|fast|hd|loop|public|raw|relax|stealth|test|testp|tile|turbo|upalpha"
    "|upanime|upbeta|uplight"
)
# What AUTOMATIC1111 writes below a prompt.
_INFO = (
    "CFG scale|Clip skip|Denoising strength|Hires steps|Hires upscale|Hires upscaler|Lora hashes"
    "|Model|Model hash|Sampler|Schedule type|Seed|Size|TI hashes|VAE|VAE hash|Version"
)


class Rule(NamedTuple):
    """What a pattern is.

    Attributes:
        tool: whose.
        pattern: what it looks like.
        reads: what it is to the grammar: nothing, a comma, the end of a part.
        draws: what it is to the text encoder; None: itself.
    """

    tool: str
    pattern: re.Pattern[str]
    reads: str
    draws: str | None


def _rule(tool: str, pattern: str, reads: str = "", draws: str | None = "") -> Rule:
    return Rule(tool, re.compile(pattern), reads, draws)


# In this order.
RULES = (
    _rule(
        "AUTOMATIC1111",
        r"(?i)(?<!\S)negative(?: prompts?)?\s?:(?:[^\n]|\n(?!\s?(?:positive )?prompt:))*",
    ),
    _rule("AUTOMATIC1111", r"(?<!\S)Steps:\s?\d[\s\S]*"),
    _rule("AUTOMATIC1111", rf"(?m)^[ ]?(?:{_INFO}): [^\n]*$"),
    _rule("AUTOMATIC1111", r"(?im)^ ?(?:positive )?prompt:"),
    # The same behind a comma: "a cat, steps: 20, cfg: 7".
    _rule(
        "AUTOMATIC1111",
        rf"(?i)(?:(?<=,)|(?<=, ))(?:steps|cfg|{_INFO})\s?[:=]\s?\d[\w.]*(?=\s?(?:[,\n]|$))",
    ),
    _rule("HTML", r"(?i)</?(?:b|br|em|i|p|s|span|strong|u)\s?/?>"),
    _rule("HTML", r"&(?:amp|#38);", "&", "&"),
    _rule("HTML", r"&(?:#39|gt|lt|nbsp|quot);", "", " "),
    # Smileys: ":d", ";)", ":smile:".
    _rule("Danbooru", r"(?<![^\s,])[:;]-?(?:[A-Za-z]|[()<>|/\\*])(?![^\s,])", "", None),
    _rule("emoji", r"(?<!\S):[a-z_]+:(?![^\s,])"),
    _rule("Midjourney", r"(?<!\S)https?://\S*"),
    _rule("ComfyUI", r"/\*[^*]*\*/"),
    _rule("AUTOMATIC1111", r"(?m)^[ ]?(?:#(?!\d)|//)[^\n]*|(?<=\s)(?:#{1,9}\s|//)[^\n]*"),
    _rule("hashtags", r"(?<!\S)#[^\W\d]\w*"),
    # "<lora:film:0.8>", "<hypernet:...>", and embeddings alone between commas.
    _rule("AUTOMATIC1111", r"<\w+:[^<>\n]*>"),
    _rule("AUTOMATIC1111", r"(?:^|(?<=[,(])|(?<=[,(] ))<[\w-]+>(?=\s?(?:[,)]|$))"),
    _rule("ComfyUI", r"\b[Ee]mbedding:[\w./\\-]+"),
    _rule("Midjourney", r"(?<!\S)(?:--|[–—])no\s(?:[^\n\s]|[^\n\S](?!--))*"),
    _rule("Midjourney", rf"(?<!\S)--(?:{_ALONE})\b"),
    # Editors join dashes.
    _rule(
        "Midjourney",
        rf"(?:--|(?<!\d)[–—])(?:{_NUMBERED})\s{{1,3}}{_NUMBER}(?:[:/]{_NUMBER})?\w*",
    ),
    _rule("Midjourney", rf"(?<!\S)--(?:{_NAMED})\b(?:\s[^\s,-]\S*)?"),
    _rule("Regional Prompter", r"(?<![\w-])(?:ADDBASE|ADDCOMM)(?![\w-])", SHARED, ","),
    _rule("Regional Prompter", r"(?<![\w-])(?:ADDCOL|ADDROW)(?![\w-])", PART, ","),
    _rule("AUTOMATIC1111", r"(?<![\w-])BREAK(?![\w-])", PART, ","),
    _rule("ComfyUI", r"(?<!\S)COUPLE(?:\([^()\n]*\)|(?!\S))", PART, ","),
    _rule("ComfyUI", r"(?<!\w)(?:AREA|FEATHER|FILL|I?MASK|SHIFT|STYLE)\([^()\n]*\)"),
    _rule("transformers", r"\[SEP\]", PART, ","),
    # "cat++", "(a cat)-", "cat--"; a dash between words stays.
    _rule("Compel", r"(?:(?<=[^\W\d])|(?<=[)\"']))\+{1,9}(?=[\s,.)]|$)"),
    _rule("Compel", r"(?:(?<=[^\W\d])|(?<=[)\"']))-{1,9}(?=\s?(?:[,.)]|$))|(?<=\))-{1,9}(?=\s)"),
    _rule("Compel", r"(?<=[)\]}])\d*\.\d+"),
    # What says how a picture looks by name: "artist:someone".
    _rule(
        "Danbooru",
        r"(?i)(?:^|(?<=[,(])|(?<=[,(] ))(?:artist|meta|quality|rating|score|source|style|year)"
        r"\s?:\s?[^,:()\n|]*",
        "",
        None,
    ),
    # A weight without brackets: "a cat:1.3, a dog".
    _rule("AUTOMATIC1111", rf"(?<=[^\W\d]):{_NUMBER}(?=\s?(?:[,;|\n]|$))"),
    _rule("Danbooru", r"(?<=\d)\+(?=[A-Za-z])", "", None),  # "6+girls"
    _rule("Danbooru", r"(?<![^\s,])\S_\S(?![^\s,])", "", None),  # "^_^"
    _rule("Danbooru", r"(?<=\w)_\([^()\n]*\)", "", None),  # "saber_(fate)"
)
_QUALIFIER = re.compile(r"(?<=\w)\s?\\\(([^()\\\n]*)\\\)")  # "a fox \(animal\)"
_ESCAPED = re.compile(r"\\([()\[\]{}])")
_SWAP = re.compile(
    r"(?:\([^()\n]*\)|\"[^\"\n]*\"|(?<![\w-])[\w-]+)\.swap\(\s?[\"']?([^()\"',\n]*)[^()\n]*\)"
)
_AND = re.compile(r"(?<![\w-])AND(?:_[A-Z]+)?(?![\w-])")
_WEIGHT_AT_END = re.compile(rf":\s?(-?)({_NUMBER})\s*$")
# NovelAI's "1.5::rain::" begins with a weight, Midjourney's "rain::1.5" ends with one.
_EMPHASIS = re.compile(rf"(?<![^\s,|])(-?){_NUMBER}::(?=\s?[^\s:])")
_CONCEPT = re.compile(rf"::(?:(-?){_NUMBER}(?![\w.]))?")
_WILDCARD = re.compile(r"__(?!_)((?:[^\W_]|[/*-]|_(?!_))+)__")
_JOINED = re.compile(r"(?<=[^\W_])_+(?=[^\W_])")  # "long_hair"
_CONJUNCTION = re.compile(r"\.(and|blend)\(([^()\n]*)\)")
_VARIANTS = re.compile(r"\s*(?:(\d+)(?:-\d+)?\$\$)(?:[^|$]*\$\$)?")
_VARIANT_WEIGHT = re.compile(rf"\s*{_NUMBER}::")

# No rule applies to a text without any of these.
_MARKED = re.compile(r"[^\w\s,.;!?'-]|_|[A-Z]{3}|--|-(?!\w)")
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_WEIGHT_BEFORE = re.compile(rf":\s*-?{_NUMBER}\s*$")
_WORD_BEFORE = re.compile(r"([\w'’-]+)\s*$")
_WEIGHT_OPEN = re.compile(r":\d*\.\d+(?=[\s,]|$)")
_HALF = 10  # of the 20 steps that AUTOMATIC1111 draws with, if nobody says how many


class _Page:
    """A text, what the grammar reads of it, character by character, and what is drawn."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.read = list(text)
        self.drawn = list(text)
        self._cuts: list[tuple[int, int]] = []

    def replace(self, start: int, end: int, reads: str = "", draws: str | None = "") -> None:
        """Puts a character, or nothing, in the place of [start, end); draws None leaves it."""
        self.read[start:end] = (reads + " " * (end - start))[: end - start]
        if draws is not None:
            self.drawn[start:end] = [draws, *[""] * (end - start - 1)][: end - start]

    def cut(self, start: int, end: int) -> None:
        """Leaves [start, end) out, at `settle`: of brackets in brackets each is once enough."""
        self._cuts.append((start, end))

    def settle(self) -> None:
        """Does the cuts; `text` becomes what the grammar reads."""
        done = 0
        for start, end in sorted(self._cuts):
            if end > done:
                self.replace(max(start, done), end)
                done = end
        self._cuts = []
        self.text = "".join(self.read)


def without_markup(text: str) -> tuple[str, list[str] | None]:
    """A prompt without what only generators read.

    Brackets go where they weigh words, "a ((red) cat:1.2)", and stay where they hold an aside, "a
    cat (on the left)".

    Args:
        text: in plain characters.

    Returns:
        What the grammar reads, as long as the text, with `PART` and `SHARED` between parts; and,
        for each character, what the text encoder reads in its place, or None for all as they are.
    """
    if _MARKED.search(text) is None:
        return text, None
    page = _Page(text)
    _read_escapes(page)
    page.settle()
    for rule in RULES:
        for found in rule.pattern.finditer(page.text):
            page.replace(*found.span(), rule.reads, rule.draws)
        page.settle()
    for read in (_read_swaps, _read_wildcards, _read_brackets, _read_and, _read_concepts):
        read(page)
        page.settle()
    for found in _JOINED.finditer(page.text):
        page.replace(*found.span(), draws=None)
    page.settle()
    return page.text, page.drawn if page.drawn != list(text) else None


def tidy(drawn: str) -> str:
    """A text after something was left out of it: no spaces and commas without words between."""
    drawn = re.sub(r"[^\S\n]+", " ", drawn)
    drawn = re.sub(r" ?,[ ,]*(?=\n|,|$)|(?m:^)[ ,]+| +(?=[,.;:!?)]|$)", "", drawn)
    return re.sub(r",[ ,]*,", ",", drawn).strip()


def _read_escapes(page: _Page) -> None:
    r""" "a fox \(animal\)" is a fox; other escaped brackets are brackets."""
    for found in _ESCAPED.finditer(page.text):
        page.replace(found.start(), found.start() + 1)
        if found[1] not in "()":
            page.replace(found.start(1), found.end(1), draws=None)
    for found in _QUALIFIER.finditer(page.text):
        words = found[1].lower().split()
        if FUNCTION_WORDS.isdisjoint(words) and not any(map(is_adjective, words)):
            page.replace(*found.span(), draws=None)


def _read_swaps(page: _Page) -> None:
    """Compel's "(a cat).swap(a dog)" draws a dog."""
    for found in _SWAP.finditer(page.text):
        page.replace(found.start(), found.start(1))
        page.replace(found.end(1), found.end())


def _read_wildcards(page: _Page) -> None:
    """ "A __animal__" is any animal; "a __colour__ cat" is a cat."""
    for found in _WILDCARD.finditer(page.text):
        words = re.findall(r"\w+|[^\w\s]", page.text[found.end() : found.end() + _FAR_ENOUGH])
        words = [word.lower() for word in words]
        described = words and words[0].isalnum() and words[0] not in FUNCTION_WORDS
        described = described and not (
            is_known_verb(words[0]) or looks_like_participle(words[0]) or find(words, 0)
        )
        start, end = found.span()
        name = "" if described else found[1].strip("/*-").split("/")[-1].replace("_", " ")
        page.replace(start, end, name, name)


@dataclass
class _Bracket:
    """An open one.

    Attributes:
        start: where it is.
        aside: whether it may hold an aside.
        bars, colons: where those are that are in no other bracket within.
    """

    start: int
    aside: bool
    bars: list[int] = field(default_factory=list)
    colons: list[int] = field(default_factory=list)


def _read_brackets(page: _Page) -> None:
    """Weights, variants, prompt editing, and "|" outside brackets, which separates parts."""
    text = page.text
    opened: list[_Bracket] = []
    for i, character in enumerate(text):
        if character in _CLOSING:
            word = _WORD_BEFORE.search(text[max(0, i - _FAR_ENOUGH) : i])
            follows = word is not None and word[1].lower()
            aside = follows and not (follows in FUNCTION_WORDS or is_adjective(follows))
            opened.append(_Bracket(i, bool(aside)))
        elif opened and character == "|":
            opened[-1].bars.append(i)
        elif opened and character == ":":
            opened[-1].colons.append(i)
        elif character == "|":
            page.replace(i, i + 1, PART, ",")
        elif opened and character == _CLOSING[text[opened[-1].start]]:
            _read_bracket(page, opened.pop(), i)
    for bracket in opened:  # for ever
        page.cut(bracket.start, bracket.start + 1)
        for colon in bracket.colons:
            weight = _WEIGHT_OPEN.match(text, colon)
            if weight is not None:
                page.cut(*weight.span())


def _read_bracket(page: _Page, bracket: _Bracket, end: int) -> None:
    """What a bracket that ends at `end` makes of its words."""
    text, start, weight = page.text, bracket.start, None
    conjunction = _CONJUNCTION.match(text, end + 1) if text[start] == "(" else None
    if conjunction is not None:
        _read_conjunction(page, start, end, conjunction)
    elif text[start] == "[" and bracket.bars:
        page.cut(bracket.bars[0], end)  # "[cat|dog]" in turn: the first
    elif text[start] == "{" and bracket.bars:
        _read_variants(page, bracket, end)
    elif bracket.colons:
        last = bracket.colons[-1]
        weight = _WEIGHT_BEFORE.fullmatch(text, last, end) if end - last <= _FAR_ENOUGH else None
        if weight is not None and text[start] == "[":
            _read_editing(page, bracket, end)
        elif weight is not None:
            page.cut(last, end)
    elif bracket.aside:
        return
    if bracket.aside and weight is None and not (conjunction or bracket.bars):
        return
    page.cut(start, start + 1)
    page.cut(end, end + 1)


def _read_editing(page: _Page, bracket: _Bracket, end: int) -> None:
    """ "[from:to:when]" is what more steps read; "[to:when]" and "[from::when]" are words."""
    text, last = page.text, bracket.colons[-1]
    if len(bracket.colons) > 1:
        before, when = bracket.colons[-2], text[last + 1 : end].strip()
        late = float(when) > (0.5 if "." in when or when == "0" else _HALF)
        first, second = text[bracket.start + 1 : before].strip(), text[before + 1 : last].strip()
        if second and not (late and first):
            page.cut(bracket.start, before + 1)
        else:
            page.cut(before, last)
    page.cut(last, end)


def _read_variants(page: _Page, bracket: _Bracket, end: int) -> None:
    """ "{cat|dog}" is one of these, by chance: the first; of "{2$$cat|dog|bird}" the first two."""
    text, start = page.text, bracket.start + 1
    head = _VARIANTS.match(text, start, bracket.bars[0])
    number = 1 if head is None else max(1, int(head[1][:4]))
    if head is not None:
        page.cut(*head.span())
        start = head.end()
    for bar in bracket.bars[: number - 1]:
        page.replace(bar, bar + 1, ",", ",")
    for begins in [start, *(bar + 1 for bar in bracket.bars[: number - 1])]:
        chance = _VARIANT_WEIGHT.match(text, begins, end)
        if chance is not None:
            page.cut(*chance.span())
    if number <= len(bracket.bars):
        page.cut(bracket.bars[number - 1], end)


def _read_conjunction(page: _Page, start: int, end: int, found: re.Match[str]) -> None:
    """Compel's ("a cat", "a dog").and() has two parts; .blend(0.7, 0.3) is one: the first."""
    page.cut(*found.span())
    quotes = [i for i in range(start, end) if page.text[i] == '"']
    for i, quote in enumerate(quotes):
        page.cut(quote, quote + 1)
        comma = page.text.find(",", quote, end) if i % 2 else -1
        if comma >= 0 and not page.text[quote + 1 : comma].strip():
            if found[1] == "blend":
                page.cut(comma, end)
                break
            page.replace(comma, comma + 1, PART, ",")


def _parts(text: str, separators: Sequence[re.Match[str]]) -> Iterator[tuple[int, int]]:
    """[start, end) of what is between separators."""
    starts = [0, *(found.end() for found in separators)]
    return zip(starts, [*(found.start() for found in separators), len(text)], strict=True)


def _read_and(page: _Page) -> None:
    """Composable Diffusion's "a cat AND a dog :1.2"; a part of negative weight is drawn away."""
    separators = [] if page.text.isupper() else list(_AND.finditer(page.text))
    for found in separators:
        page.replace(*found.span(), PART, ",")
    for start, end in _parts(page.text, separators) if separators else ():
        near = max(start, end - _FAR_ENOUGH)
        weight = _WEIGHT_AT_END.search(page.text[near:end])
        if weight is not None:
            page.replace(start if weight[1] else near + weight.start(), end)


def _read_concepts(page: _Page) -> None:
    """Midjourney's "a cat::2 a dog::1", a part each, and NovelAI's "1.5::a cat::", none."""
    if "::" not in page.text:
        return
    emphasised = list(_EMPHASIS.finditer(page.text))
    for found in emphasised:
        page.replace(*found.span())
        if found[1]:
            end = page.text.find("::", found.end())
            page.replace(found.end(), end if end >= 0 else len(page.text))
    page.settle()
    separators = list(_CONCEPT.finditer(page.text))
    for (start, _), found in zip(_parts(page.text, separators), separators, strict=False):
        if found[1]:
            page.replace(start, found.start())
        page.replace(*found.span(), *((",", ",") if emphasised else (PART, ",")))
