"""Where prompts exist in the rows of the benchmarks.

    none       everywhere
    disjoint   each in a strip of consecutive pixels: the kindest case
    bands      each in a vertical band: as many pixels, but every row of them meets every prompt
    global     one everywhere, the others in strips
    boxes      one everywhere, the others in boxes of an even grid
    layout     one everywhere, the others in the boxes that the layout predictor gives them
    ellipses   one everywhere, the others in the ellipses inside those boxes

Benchmarks of the kernels run without `stal`, so its predictor's boxes are kept here:

    python bench/regions.py    prints LAYOUTS anew
"""

from collections.abc import Iterable, Iterator

from stal_kernels.testing import Box, Case

# What a row is called by.
REGIONS = {
    "none": "",
    "disjoint": " disjoint",
    "bands": " bands",
    "global": " global+disjoint",
    "boxes": " global+boxes",
    "layout": " global+layout",
    "ellipses": " global+ellipses",
}
OBJECTS = (
    "a brown dog",
    "a red bicycle",
    "a wooden bench",
    "a yellow umbrella",
    "a street lamp",
    "a white cat",
    "a green car",
    "a blue suitcase",
)
# Boxes of the first objects of OBJECTS, on a square canvas: LAYOUTS[n] of n + 1 objects.
LAYOUTS: tuple[tuple[Box, ...], ...] = (
    ((0.224, 0.35, 0.783, 0.772),),
    (
        (0.042, 0.507, 0.385, 0.777),
        (0.449, 0.341, 0.947, 0.681),
    ),
    (
        (0.325, 0.56, 0.669, 0.853),
        (0.124, 0.321, 0.684, 0.748),
        (0.405, 0.408, 0.962, 0.707),
    ),
    (
        (0.512, 0.6, 0.859, 0.854),
        (0.069, 0.445, 0.701, 0.863),
        (0.47, 0.401, 0.988, 0.726),
        (0.263, 0.243, 0.678, 0.648),
    ),
    (
        (0.434, 0.688, 0.789, 0.961),
        (0.094, 0.624, 0.574, 0.942),
        (0.541, 0.573, 0.949, 0.804),
        (0.196, 0.362, 0.72, 0.783),
        (0.896, 0.033, 1.0, 0.878),
    ),
    (
        (0.497, 0.663, 0.852, 0.97),
        (0.047, 0.563, 0.609, 0.899),
        (0.208, 0.422, 0.741, 0.705),
        (0.586, 0.437, 0.998, 0.81),
        (0.0, 0.007, 0.095, 0.855),
        (0.195, 0.824, 0.459, 0.972),
    ),
    (
        (0.35, 0.782, 0.639, 1.0),
        (0.0, 0.583, 0.439, 0.892),
        (0.24, 0.518, 0.637, 0.781),
        (0.636, 0.525, 1.0, 0.776),
        (0.589, 0.057, 0.684, 0.783),
        (0.05, 0.705, 0.291, 0.859),
        (0.3, 0.683, 0.868, 0.881),
    ),
    (
        (0.347, 0.719, 0.704, 0.995),
        (0.0, 0.544, 0.484, 0.858),
        (0.242, 0.459, 0.963, 0.858),
        (0.079, 0.261, 0.569, 0.655),
        (0.558, 0.0, 0.657, 0.85),
        (0.139, 0.677, 0.424, 0.858),
        (0.167, 0.716, 0.999, 1.0),
        (0.357, 0.495, 0.608, 0.857),
    ),
)


def with_regions(shape: Case, prompts: int, regions: Iterable[str]) -> Iterator[tuple[str, Case]]:
    """The labels and cases of a shape with so many prompts.

    Regions that say nothing of so many prompts are left out: any of one prompt, strips beside a
    global prompt of two, and layouts of more objects than LAYOUTS has.
    """
    for region in regions:
        fields = {**vars(shape), "prompts": prompts, "region": region}
        if region == "none":
            fields["region"] = None
        elif prompts == 1 or (prompts == 2 and region == "global"):
            continue
        elif region in ("layout", "ellipses"):
            if prompts - 1 > len(LAYOUTS):
                continue
            fields["boxes"] = LAYOUTS[prompts - 2]
            fields["region"] = "ellipses" if region == "ellipses" else "boxes"
        yield f"p{prompts}{REGIONS[region]}", Case(**fields)


def prompt_of(objects: int) -> str:
    """A prompt that names the first so many of OBJECTS."""
    *most, last = OBJECTS[:objects]
    return " and ".join(filter(None, (", ".join(most), last)))


def predicted(objects: int) -> tuple[Box, ...]:
    """The boxes of a prompt of so many objects, seed 0. Needs `stal`."""
    from stal.layout.predictor import predict
    from stal.prompts import parse

    boxes = (placed.box for placed in predict(parse(prompt_of(objects)), seed=0).objects)
    return tuple((round(a, 3), round(b, 3), round(c, 3), round(d, 3)) for a, b, c, d in boxes)


def main() -> None:
    print("LAYOUTS: tuple[tuple[Box, ...], ...] = (")
    for objects in range(1, len(OBJECTS) + 1):
        boxes = ", ".join(map(str, predicted(objects)))
        print(f"    ({boxes},),")
    print(")")


if __name__ == "__main__":
    main()
