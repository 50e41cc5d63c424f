"""The relations that a prompt can state: one table from word forms to a relation to its geometry.

    GEOMETRY["above"]  # Geometry(dx=0, dy=-1, contact="", depth=0)

To teach the grammar a wording, add it to its row of `TABLE`; `stal.prompts.places` finds the
wordings in a text.
"""

from __future__ import annotations

from dataclasses import dataclass

# (subject, predicate, object), the first and the last by their index among the objects.
Statement = tuple[int, str, int]
Span = tuple[int, int]  # [start, end) in a text


@dataclass(frozen=True)
class Geometry:
    """What a relation says of the boxes of its subject a and its object b.

    Attributes:
        dx: sign of a's centre minus b's along x; 0 where nothing is said.
        dy: the same along y, which points downwards: -1 is above.
        contact: "beside" (apart along x, at one height), "apart", "touching", "overlapping",
            "inside" (a within b), "around" (b within a), or "" where nothing is said.
        depth: 1 where a hides a part of b, -1 where b hides a part of a, else 0.
    """

    dx: int = 0
    dy: int = 0
    contact: str = ""
    depth: int = 0


@dataclass(frozen=True)
class RelationRow:
    """A row of `TABLE`.

    Attributes:
        name: the predicate, as in `PREDICATES`.
        geometry: what it says of two boxes.
        forms: what stands between subject and object ("a under b"), separated by " | ".
        reversed_forms: what stands between object and subject ("b contains a" is a inside b).
    """

    name: str
    geometry: Geometry
    forms: str = ""
    reversed_forms: str = ""


TABLE = (
    RelationRow("left of", Geometry(dx=-1)),
    RelationRow("right of", Geometry(dx=1)),
    RelationRow(
        "above",
        Geometry(dy=-1),
        "above | over | atop | on top of | on the top of | at the top of | higher than | up above",
    ),
    RelationRow(
        "below",
        Geometry(dy=1),
        "below | under | underneath | under neath | beneath | lower than | on the bottom of"
        " | at the bottom of | at the feet of | at the foot of | down from | down below | down",
    ),
    RelationRow(
        "next to",
        Geometry(contact="beside"),
        "next to | beside | besides | near | near to | nearby to | near by | close to | by"
        " | alongside | adjacent to | side by side with | on side of | on the side of"
        " | at the side of | to the side of | by the side of | on either side of | on both sides of"
        " | on each side of"
        " | at | next | past | along | adjoining | in the vicinity of",
    ),
    RelationRow(
        "between",
        Geometry(contact="beside"),
        "between | in between | sandwiched between | flanked by | in the middle between",
    ),
    RelationRow(
        "on",
        Geometry(dy=-1, contact="touching", depth=1),
        "on | onto | upon | up on",
        "topped with | topped by | covered with | covered in | laden with | loaded with",
    ),
    RelationRow(
        "inside",
        Geometry(contact="inside", depth=1),
        "in | inside | inside of | into | within | among | amongst | amid | in the middle of"
        " | in the center of | in the centre of | part of | a part of | nestled in",
        "contains | contain | contained | containing | consists of | consisting of | has as a part"
        " | filled with | full of | stuffed with",
    ),
    RelationRow(
        "around",
        Geometry(contact="around", depth=-1),
        "around | all around | surrounding | surrounds | encircling | enclosing | encloses",
        "surrounded by | enclosed by | encircled by | ringed by",
    ),
    RelationRow(
        "behind",
        Geometry(contact="overlapping", depth=-1),
        "behind | at the back of | in back of | in the back of | hidden by | hidden behind"
        " | beyond | obscured by | occluded by | blocked by | covered by",
        "obscuring | occluding | blocking | covering",
    ),
    RelationRow(
        "in front of",
        Geometry(contact="overlapping", depth=1),
        "in front of | at the front of | ahead of | before",
    ),
    RelationRow(
        "touching",
        Geometry(contact="touching"),
        "touching | against | up against | leaning against | leaning on | attached to"
        " | connected to | joined to | tied to | chained to | at the edge of | on the edge of",
    ),
    RelationRow("held by", Geometry(contact="overlapping", depth=1), "held by | carried by"),
    RelationRow("worn by", Geometry(contact="inside", depth=1), "worn by"),
    RelationRow(
        "far from",
        Geometry(contact="apart"),
        "far from | far away from | away from | across from | across | opposite to | opposite of"
        " | opposite | on the other side of | on the opposite side of | across the street from",
    ),
    RelationRow(
        "outside",
        Geometry(contact="apart"),
        "outside | outside of | out of | off | off of | detached from | disconnected from"
        " | separated from | separate from",
    ),
    # A box shows neither where a thing looks nor along what line it lies.
    RelationRow(
        "facing",
        Geometry(),
        "facing | looking at | looks at | look at | looked at | toward | towards | facing toward"
        " | up at | down at | over at | staring at | gazing at | peering at | glaring at"
        " | pointing at | aiming at | waving at | smiling at | laughing at | shouting at"
        " | howling at | barking at | hissing at | growling at | roaring at",
    ),
    RelationRow("facing away from", Geometry(), "facing away from | looking away from"),
    RelationRow(
        "parallel to", Geometry(), "parallel to | congruent to | congruent with | congruent"
    ),
    RelationRow("perpendicular to", Geometry(), "perpendicular to"),
)
GEOMETRY = {row.name: row.geometry for row in TABLE}
PREDICATES = tuple(GEOMETRY)

# Sides of the canvas or of another object: (x, y, depth), each -1, 0, 1 or None where it says
# nothing; depth 1 is the foreground.
Side = tuple[int | None, int | None, int | None]
NOWHERE: Side = (None, None, None)
_SIDE_NAMES = {(0, -1): "left of", (0, 1): "right of", (1, -1): "above", (1, 1): "below"}


def side_names(side: Side) -> tuple[str, ...]:
    """The relations that a side states: ("left of", "above") for the upper left.

    The middle and the depth state none.
    """
    return tuple(_SIDE_NAMES[axis, value] for axis, value in enumerate(side) if value and axis < 2)
