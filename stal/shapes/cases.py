"""Prompts of the shapes world, each with the layout of the scene that it was written for."""

from __future__ import annotations

import random

from stal.layout import Layout, PlacedObject
from stal.prompts import parse
from stal.shapes.captions import caption
from stal.shapes.scenes import draw_scenes


def draw_cases(n: int, *, objects: int, seed: int, held_out: bool = True) -> list[Layout]:
    """n layouts of scenes of different objects, with a prompt that names every one of them.

    Args:
        n: how many.
        objects: in each scene, 0 to `stal.shapes.scenes.MAX_OBJECTS`.
        seed: of scenes and wordings.
        held_out: True for the test split, whose combinations of two or more objects training never
            saw, False for the training split.

    Returns:
        Layouts whose objects are in the order of the prompt; their relations are what it states.

    Raises:
        ValueError: objects is out of range.
    """
    rng = random.Random(seed)
    cases: list[Layout] = []
    while len(cases) < n:
        scenes = draw_scenes(n, seed=rng.getrandbits(30), counts=(objects,), held_out=held_out)
        for scene in range(len(scenes)):
            phrases = [scenes.phrase(scene, i) for i in range(objects)]
            text = caption(scenes, scene, rng, partial_share=0.0)
            if len(set(phrases)) < objects:
                continue
            description = parse(text)
            named = [o.phrase for o in description.objects]
            if sorted(named) != sorted(phrases):
                raise AssertionError(f"{text!r} was read as {named}")
            placed = tuple(
                PlacedObject(o.phrase, o.noun, scenes.box(scene, phrases.index(o.phrase)))
                for o in description.objects
            )
            cases.append(Layout(text, placed, description.statements))
    return cases[:n]
