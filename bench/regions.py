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
    ((0.115, 0.372, 0.708, 0.774),),
    (
        (0.234, 0.111, 0.63, 0.514),
        (0.277, 0.564, 0.816, 0.983),
    ),
    (
        (0.65, 0.638, 0.883, 0.748),
        (0.146, 0.614, 0.643, 1.0),
        (0.066, 0.007, 0.904, 0.615),
    ),
    (
        (0.059, 0.312, 0.37, 0.659),
        (0.529, 0.282, 0.947, 0.562),
        (0.588, 0.722, 0.914, 0.947),
        (0.276, 0.818, 0.429, 0.947),
    ),
    (
        (0.627, 0.396, 0.947, 0.726),
        (0.722, 0.053, 0.947, 0.237),
        (0.303, 0.093, 0.5, 0.193),
        (0.375, 0.75, 0.468, 0.843),
        (0.055, 0.053, 0.143, 0.39),
    ),
    (
        (0.528, 0.133, 0.729, 0.299),
        (0.671, 0.458, 0.947, 0.692),
        (0.113, 0.812, 0.315, 0.947),
        (0.702, 0.851, 0.844, 0.947),
        (0.316, 0.186, 0.368, 0.653),
        (0.053, 0.325, 0.157, 0.415),
    ),
    (
        (0.585, 0.053, 0.673, 0.143),
        (0.757, 0.829, 0.947, 0.947),
        (0.361, 0.891, 0.474, 0.947),
        (0.506, 0.596, 0.627, 0.67),
        (0.832, 0.053, 0.947, 0.419),
        (0.209, 0.481, 0.347, 0.617),
        (0.786, 0.615, 0.947, 0.655),
    ),
    (
        (0.04, 0.796, 0.12, 0.892),
        (0.495, 0.771, 0.798, 0.889),
        (0.04, 0.337, 0.152, 0.393),
        (0.04, 0.586, 0.135, 0.677),
        (0.271, 0.326, 0.376, 0.96),
        (0.806, 0.215, 0.96, 0.337),
        (0.827, 0.04, 0.902, 0.096),
        (0.495, 0.311, 0.663, 0.548),
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
