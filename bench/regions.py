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
    ((0.238, 0.344, 0.784, 0.785),),
    (
        (0.046, 0.509, 0.386, 0.787),
        (0.448, 0.33, 0.948, 0.683),
    ),
    (
        (0.325, 0.548, 0.669, 0.849),
        (0.116, 0.296, 0.682, 0.735),
        (0.398, 0.39, 0.964, 0.698),
    ),
    (
        (0.502, 0.593, 0.852, 0.852),
        (0.046, 0.444, 0.689, 0.872),
        (0.454, 0.389, 0.982, 0.721),
        (0.244, 0.239, 0.666, 0.65),
    ),
    (
        (0.418, 0.678, 0.778, 0.952),
        (0.075, 0.612, 0.558, 0.93),
        (0.537, 0.563, 0.949, 0.795),
        (0.174, 0.351, 0.701, 0.771),
        (0.896, 0.026, 1.0, 0.86),
    ),
    (
        (0.485, 0.647, 0.848, 0.956),
        (0.047, 0.541, 0.618, 0.88),
        (0.2, 0.398, 0.744, 0.686),
        (0.573, 0.42, 0.99, 0.794),
        (0.0, 0.0, 0.095, 0.839),
        (0.168, 0.804, 0.434, 0.954),
    ),
    (
        (0.333, 0.771, 0.639, 1.0),
        (0.0, 0.558, 0.441, 0.868),
        (0.243, 0.505, 0.639, 0.766),
        (0.638, 0.511, 1.0, 0.758),
        (0.591, 0.051, 0.687, 0.771),
        (0.02, 0.687, 0.261, 0.842),
        (0.285, 0.67, 0.87, 0.872),
    ),
    (
        (0.339, 0.702, 0.701, 0.978),
        (0.0, 0.543, 0.489, 0.858),
        (0.244, 0.454, 0.978, 0.858),
        (0.068, 0.259, 0.561, 0.651),
        (0.565, 0.0, 0.664, 0.836),
        (0.118, 0.663, 0.404, 0.844),
        (0.152, 0.714, 1.0, 1.0),
        (0.362, 0.479, 0.615, 0.84),
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
