"""The picture of boxes alone: broken relations in red, and where centres may be."""

from stal.layout import Layout, PlacedObject, sketch


def test_sketch_marks_broken_relations():
    boxes = [(0.1, 0.4, 0.3, 0.6), (0.7, 0.4, 0.9, 0.6)]
    objects = tuple(PlacedObject("a thing", "thing", box) for box in boxes)
    red = (208, 0, 0)
    for name, broken in (("left of", False), ("right of", True)):
        image = sketch(Layout("", objects, ((0, name, 1),)))
        assert (red in image.get_flattened_data()) == broken


def test_sketch_shades_where_centres_may_be():
    layout = Layout("", (PlacedObject("a thing", "thing", (0.1, 0.1, 0.2, 0.2)),))
    blank = sketch(layout).getpixel((360, 360))
    shaded = sketch(layout, contours=[[(0.9, 0.7, 0.7, 0.1, 0.1)]]).getpixel((360, 360))
    assert blank == (250, 250, 250)
    assert shaded != blank
