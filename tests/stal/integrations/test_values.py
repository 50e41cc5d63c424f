"""What values the arguments of `prepare` may have, and what is said of others."""

import gc
import json
import re
import weakref
from fractions import Fraction

import numpy as np
import pytest
import torch

from stal.integrations.diffusers import disable, enable, prepare, regional_attention
from stal.layout import Layout
from tests.stal.integrations import unets
from tests.stal.integrations.unet_cases import (
    LAYOUT,
    OTHER_LAYOUT,
    OTHER_PROMPT,
    PROMPT,
    draw,
    encoded,
)

PROMPTS = [PROMPT, OTHER_PROMPT]
LAYOUTS = [LAYOUT, OTHER_LAYOUT]
SCENE = "an empty scene"
# The default of each dial.
DIALS = {"strength": 1.0, "start": 0.0, "stop": 1.0}
BOX = {"x": 256, "y": 256, "width": 256, "height": 256}
CAT = (0.25, 0.5, 0.5, 1.0)


@pytest.fixture(scope="module")
def pipe():
    return unets.stable_diffusion()


@pytest.mark.parametrize("name", DIALS)
@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0.25, (0.25, 0.25)),
        (1, (1.0, 1.0)),
        (np.float32(0.25), (0.25, 0.25)),
        (np.int64(1), (1.0, 1.0)),
        (np.array(0.25), (0.25, 0.25)),
        (torch.tensor(0.25), (0.25, 0.25)),
        (Fraction(1, 4), (0.25, 0.25)),
        ([0.25, 0.5], (0.25, 0.5)),
        ((np.float16(0.25), torch.tensor(0.5)), (0.25, 0.5)),
        (np.array([0.25, 0.5]), (0.25, 0.5)),
        (torch.tensor([0.25, 0.5], requires_grad=True), (0.25, 0.5)),
    ],
)
def test_a_dial_is_a_number_of_any_kind_or_one_for_each_region(pipe, name, value, found):
    assert getattr(prepare(pipe, PROMPT, layout=LAYOUT, **{name: value}), name) == (found,)


@pytest.mark.parametrize(("name", "default"), DIALS.items())
def test_none_is_the_default_of_a_dial(pipe, name, default):
    def dial(value):
        return getattr(prepare(pipe, PROMPTS, layout=LAYOUTS, **{name: value}), name)

    assert dial(None) == dial([None, None]) == ((default,) * 2, (default,) * 3)
    assert dial([0.75, None]) == ((0.75,) * 2, (default,) * 3)
    assert dial([None, [0.25, 0.5, 0.75]]) == ((default,) * 2, (0.25, 0.5, 0.75))
    assert dial(np.float32(0.5)) == ((0.5,) * 2, (0.5,) * 3)
    assert dial(np.array([0.25, 0.5])) == ((0.25,) * 2, (0.5,) * 3)
    alone = prepare(pipe, PROMPT, layout=LAYOUT, **{name: None})
    assert getattr(alone, name) == ((default,) * 2,)


@pytest.mark.parametrize("name", DIALS)
@pytest.mark.parametrize(
    "value",
    ["0.5", b"ab", True, {0.5: 1}, ..., 0.5j, [0.5], [0.5] * 3, torch.ones(3)],
)
def test_a_dial_that_is_no_number_and_no_list_of_the_regions_is_refused(pipe, name, value):
    message = f"^{name} must be a number, or one for each of 2 regions, got "
    with pytest.raises(ValueError, match=message):
        prepare(pipe, PROMPT, layout=LAYOUT, **{name: value})
    with pytest.raises(ValueError, match=message):
        prepare(pipe, PROMPTS, layout=LAYOUTS, **{name: [value, None]})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0.5, None], "strength must be a number, got None"),
        ([0.5, "1"], "strength must be a number, got '1'"),
        (np.nan, "strength must be finite, got nan"),
        (torch.ones(2, device="meta"), "strength must be a number, got tensor"),
        (np.ones((2, 2)), "strength must be a number, got array"),
    ],
)
def test_a_number_of_a_dial_that_is_none_is_refused(pipe, value, message):
    with pytest.raises(ValueError, match=message):
        prepare(pipe, PROMPT, layout=LAYOUT, strength=value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": 5}, "prompt must be a text or a list of texts, got 5"),
        ({"prompt": b"a cat"}, "prompt must be a text or a list of texts, got b'a cat'"),
        ({"prompt": {"a cat": 1}}, "prompt must be a text or a list of texts, got {'a cat': 1}"),
        ({"prompt": []}, "prompt must hold at least one text, got an empty list"),
        ({"prompt": ["a cat", 5]}, "prompt must be a text of valid Unicode, got 5"),
        ({}, "prompt or prompt_embeds must be given, got neither"),
        ({"prompt_embeds": ()}, r"prompt_embeds must be a \(prompts, tokens, width\) .* got \(\)"),
        ({"prompt_embeds": 5}, r"prompt_embeds must be a \(prompts, tokens, width\) tensor, got 5"),
        ({"prompt_embeds": torch.ones(2)}, r"prompt_embeds must be a .* tensor, got \(2,\)"),
        ({"prompt_embeds": torch.ones(1, 2, 3).int()}, "prompt_embeds must be a .* tensor, got"),
        ({"prompt_embeds": torch.ones(0, 2, 3)}, "prompt_embeds must be of at least one prompt"),
        ({"prompt_embeds": (torch.ones(1, 2, 3), 5)}, r"prompt_embeds must have a mask \(1, 2\)"),
        ({"prompt": PROMPTS, "prompt_embeds": torch.ones(3, 2, 3)}, "be of 2 prompts, got 3"),
    ],
)
def test_prompts_that_are_none_are_refused(pipe, values, message):
    with pytest.raises(ValueError, match=message):
        prepare(pipe, layout=LAYOUT, **values)


def pictures(pipe, prompt=PROMPT, layout=LAYOUT, **options):
    calls = {name: options.pop(name) for name in ("guidance_scale", "latents") if name in options}
    with regional_attention(pipe, prompt, layout=layout, **options) as found:
        return found, draw("sd1", pipe, prompt, **calls).pictures


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
@pytest.mark.parametrize("background", [0.0, 0.6])
def test_an_encoded_reference_is_moved_away_from_like_its_text(pipe, guidance_scale, background):
    options = {"guidance_scale": guidance_scale, "background": background}
    text, expected = pictures(pipe, reference=SCENE, **options)
    embeds, drawn = pictures(pipe, reference_embeds=encoded(pipe, [SCENE]), **options)
    assert text.reference == embeds.reference == "prompt"
    assert torch.equal(text.weights_of(0, 5), embeds.weights_of(0, 5))
    assert np.array_equal(drawn, expected)
    assert np.abs(drawn - pictures(pipe, guidance_scale=guidance_scale)[1]).max() > 0.02


def test_of_several_prompts_an_encoded_reference_is_of_all_or_of_each(pipe):
    scenes = [SCENE, "a green star"]
    both = encoded(pipe, scenes)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def several(embeds):
        return pictures(pipe, PROMPTS, LAYOUTS, reference_embeds=embeds, latents=latents)[1]

    own = several(both)
    for embeds in (list(both.split(1)), [(each, torch.ones(1, 77)) for each in both.split(1)]):
        assert np.abs(several(embeds) - own).max() < 1e-5
    for index, scene in enumerate(scenes):
        alike = several(both[index : index + 1])
        text = pictures(pipe, PROMPTS, LAYOUTS, reference=scene, latents=latents)[1]
        assert np.abs(alike - text).max() < 1e-5
        assert np.abs(own[index] - alike[index]).max() < 1e-5
        assert np.abs(own[1 - index] - alike[1 - index]).max() > 0.01
    with pytest.raises(ValueError, match="reference_embeds must be of 1 or 2 prompts, got 3"):
        several(both[[0, 1, 1]])
    with pytest.raises(ValueError, match="reference_embeds must be a list of 2, one a prompt, got"):
        several([both])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "convex"}, "reference_embeds must come with the rule guidance, got 'convex'"),
        ({"reference": SCENE}, "reference_embeds must come without reference, got both"),
        ({"reference": "unconditional"}, "reference_embeds must come without reference, got both"),
    ],
)
def test_an_encoded_reference_that_would_be_dropped_is_refused(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(pipe, PROMPT, layout=LAYOUT, reference_embeds=encoded(pipe, [SCENE]), **options)


def test_no_graph_of_embeddings_is_kept(pipe):
    """What embeddings were computed from can be freed while the regions live."""
    encoder = torch.nn.Linear(4, 32)
    prompt, local, reference = (encoder(torch.randn(n, 77, 4)) for n in (1, 2, 1))
    given = {"prompt_embeds": prompt, "local_embeds": local, "reference_embeds": reference}
    state = prepare(pipe, layout=LAYOUT, **given)
    assert not state.prompts.embeds.requires_grad
    assert not state.local.embeds.requires_grad
    assert prompt.requires_grad
    weight = weakref.ref(encoder.weight)
    del encoder, prompt, local, reference, given
    gc.collect()
    assert weight() is None


OWN = {"objects": [{"phrase": "a cat", "box": list(CAT)}]}


@pytest.mark.parametrize("form", ["dict", "text", "list", "list as a text", "file", "pairs"])
def test_the_pictures_aspect_is_that_of_a_layout_that_states_none(pipe, tmp_path, form):
    (tmp_path / "own.json").write_text(json.dumps(OWN))
    layout = {
        "dict": OWN,
        "text": json.dumps(OWN),
        "list": OWN["objects"],
        "list as a text": json.dumps(OWN["objects"]),
        "file": tmp_path / "own.json",
        "pairs": [("a cat", CAT)],
    }[form]
    for options, aspect in (({}, 1.0), ({"aspect": 1.5}, 1.5), ({"canvas": (300, 100)}, 3.0)):
        (found,) = prepare(pipe, "a cat", layout=layout, **options).layouts
        assert (found.objects[0].box, found.aspect) == (CAT, aspect)


def test_boxes_in_pixels_lie_in_the_canvas_that_is_given(pipe):
    comfyui = [{**BOX, "label": "a cat", "score": 0.9}]
    for layout in ([("a cat", BOX)], comfyui, json.dumps(comfyui)):
        with regional_attention(pipe, "a cat", layout=layout, canvas=(1024, 512)) as state:
            (found,) = state.layouts
        assert (found.objects[0].box, found.aspect) == (CAT, 2.0)
        with pytest.raises(ValueError, match=r"that is named, .*: give canvas=\(width, height\)"):
            prepare(pipe, "a cat", layout=layout)


def test_a_language_models_boxes_lie_in_the_canvas_that_is_given(pipe, tmp_path):
    path = tmp_path / "layout.css"
    path.write_text("cat {width: 16px; height: 32px; left: 16px; top: 32px; }")
    for canvas, box, aspect in ((None, CAT, 1.0), ((128, 64), (0.125, 0.5, 0.25, 1.0), 2.0)):
        (found,) = prepare(pipe, "a cat", layout=path, canvas=canvas).layouts
        assert (found.objects[0].box, found.aspect) == (box, aspect)


def test_a_canvas_is_the_aspect_of_predicted_layouts(pipe):
    assert prepare(pipe, PROMPT, canvas=(200, 100)).layouts[0].aspect == 2.0
    with pytest.raises(ValueError, match=r"canvas must be positive, got \(0, 5\)"):
        prepare(pipe, PROMPT, canvas=(0, 5))


def test_a_mask_of_another_aspect_is_taken_with_the_pictures(pipe):
    mask = np.ones((8, 12), dtype=bool)
    message = "resize it, or give the picture's size .* or its aspect=width / height"
    with pytest.raises(ValueError, match=message):
        prepare(pipe, PROMPT, layout=[("a cat", mask)])
    (found,) = prepare(pipe, PROMPT, layout=[("a cat", mask)], aspect=12 / 8).layouts
    assert found.aspect == 1.5


def test_a_context_that_is_never_entered_is_warned_of(pipe):
    with pytest.warns(UserWarning, match="does nothing without `with`"):
        regional_attention(pipe, PROMPT)


def test_a_context_may_be_entered_again(pipe):
    within = regional_attention(pipe, PROMPT, layout=LAYOUT)
    for _ in range(2):
        with within as regions:
            assert len(regions.layouts[0].objects) == len(LAYOUT)
            with pytest.raises(ValueError, match="no regions yet"):
                within.__enter__()
        disable(pipe)  # there is nothing left


def test_one_function_of_weights_is_for_all_prompts(pipe):
    state = prepare(pipe, [PROMPT, PROMPT], layout=[LAYOUT, LAYOUT], weights=torch.ones)
    assert all(torch.equal(state.weights_of(i, 3), torch.ones(3, len(LAYOUT))) for i in (0, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0.8, "stop": 0.2}, "start must be at most stop, got 0.8 and 0.2"),
        ({"background": "0.6"}, "background must be a number, got '0.6'"),
        ({"encode": "clip_skip"}, "encode must map arguments of encode_prompt, got 'clip_skip'"),
        ({"rule": "convex", "reference": "a bird"}, "reference must come with the rule guidance"),
        ({"aspect": "16:9"}, "aspect must be a number, got '16:9'"),
    ],
)
def test_values_that_do_not_go_together(pipe, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare(pipe, PROMPT, layout=LAYOUT, **options)


def test_weights_times_strength_are_what_is_refused(pipe):
    state = prepare(pipe, PROMPT, layout=LAYOUT, rule="convex", weights=[1.0, 1.0], strength=2)
    with pytest.raises(ValueError, match="weights times strength: weights must be in"):
        state.weights_of(0, 3)


def test_a_layout_without_objects_is_warned_of(pipe):
    with pytest.warns(UserWarning, match="the layout of .* has no object, so that .* plain"):
        prepare(pipe, PROMPT, layout=[])


def test_a_prompt_that_is_not_english_is_warned_of(pipe):
    with pytest.warns(UserWarning, match="'un chat et un chien' does not look like English"):
        prepare(pipe, "un chat et un chien")
    prepare(pipe, "un chat et un chien", layout=LAYOUT)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (LAYOUT, "layout must be a list of 2 layouts, one a prompt, got one of 2 pairs: [layout]"),
        (LAYOUT[:1], "layout must be a list of 2 layouts, one a prompt, got one of 1 pairs"),
        ([LAYOUT], "layout must be a list of 2, one a prompt, got 1: [x] * 2 has the same"),
        (Layout(PROMPT), "layout must be a list of 2, one a prompt, got Layout("),
        (dict(LAYOUT), "layout must be a list of 2, one a prompt, got {"),
    ],
)
def test_one_layout_for_two_prompts(pipe, layout, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare(pipe, [PROMPT, PROMPT], layout=layout)


@pytest.mark.parametrize(
    ("prompt", "layout", "message"),
    [
        (PROMPT, [LAYOUT], "layout must be one layout for one prompt, got a list of 1: leave out"),
        (PROMPT, (Layout(PROMPT),), "layout must be one layout for one prompt, got a list of 1"),
        ([PROMPT], LAYOUT, "layout must be a list of 1 layouts, one a prompt, got one of 2 pairs"),
        ([PROMPT] * 3, LAYOUT, "a list of 3 layouts, one a prompt, got one of 2 pairs"),
        ([PROMPT] * 2, "layout.json", "a list of 2, one a prompt, got 'layout.json'"),
        (PROMPT, {"masks": np.ones((1, 8, 8))}, "{...} or {...}, got the keys 'masks'"),
        (PROMPT, {"phrases": ["a cat"], "boxes": [1]}, "got the keys 'phrases', 'boxes'"),
        (PROMPT, {"objects": [], "masks": "m.png"}, 'must be a file where "masks" names a picture'),
        (PROMPT, "mask.png", "layout must be of phrases and their places, got the picture"),
        (PROMPT, [("a cat", "mask.png")], "must have a box or a mask, got the text 'mask.png'"),
        (PROMPT, "", "layout must be JSON or a file that can be read, got ''"),
        (
            PROMPT,
            {"objects": [{"phrase": "a cat", "box": [0, 0, 512, 512]}]},
            "objects[0].box must lie inside [0, 1], got [0.0, 0.0, 512.0, 512.0]: divide pixels",
        ),
    ],
)
def test_layouts_that_are_meant_otherwise(pipe, prompt, layout, message):
    message = re.escape(message).replace(re.escape("{...}"), ".*")
    with pytest.raises(ValueError, match=message):
        prepare(pipe, prompt, layout=layout)


def test_json_of_pairs_is_a_layout(pipe):
    (found,) = prepare(pipe, PROMPT, layout='[["a cat", [0, 0, 0.5, 1]]]').layouts
    assert [(each.phrase, each.box) for each in found.objects] == [("a cat", (0, 0, 0.5, 1))]


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, 2.0, 3.0], "x", [float("nan"), 1.0], [[1.0], [2.0]], torch.ones(4, 3)]
)
def test_weights_are_checked_before_the_call(pipe, weights):
    with pytest.raises(ValueError, match="weights must be"):
        prepare(pipe, PROMPT, layout=LAYOUT, weights=weights)


@pytest.mark.parametrize(
    "options",
    [{"foo": 1}, {"clip_skip": 99}, {"clip_skip": "1"}, {"device": "cpu"}, {"prompt": "a"}],
    ids=str,
)
def test_arguments_that_encode_prompt_does_not_take(pipe, options):
    with pytest.raises(ValueError, match=r"encode must be of arguments .* takes beside"):
        prepare(pipe, PROMPT, layout=LAYOUT, encode=options)


def test_a_canvas_of_another_aspect_is_refused(pipe):
    with pytest.raises(ValueError, match="aspect must be that of the canvas, 2, got 1"):
        prepare(pipe, PROMPT, layout=LAYOUT, canvas=(1024, 512), aspect=1)
    prepare(pipe, PROMPT, layout=LAYOUT, canvas=(1000, 300), aspect=3.33)


def test_embeddings_that_are_not_finite_or_have_no_token(pipe):
    given = {"prompt_embeds": torch.ones(1, 77, 8), "reference": "unconditional"}
    local = torch.ones(2, 77, 8)
    with pytest.raises(ValueError, match="local_embeds must be finite, got NaN or infinity"):
        prepare(pipe, layout=LAYOUT, **given, local_embeds=local * torch.nan)
    with pytest.raises(ValueError, match="local_embeds must have a token that counts in each row"):
        prepare(pipe, layout=LAYOUT, **given, local_embeds=(local, torch.zeros(2, 77)))
    with pytest.raises(ValueError, match="local_embeds must be of 2 objects of the layout, got 1"):
        prepare(pipe, layout=LAYOUT, **given, local_embeds=local[:1])


@pytest.mark.parametrize("parts", [2, 4])
def test_all_that_encode_prompt_gives_is_told_from_embeddings(pipe, parts):
    given = tuple(torch.ones(2, 77, 8) for _ in range(parts))
    with pytest.raises(ValueError, match=rf"local_embeds must .* got {parts} .* give the first"):
        prepare(pipe, PROMPT, layout=LAYOUT, local_embeds=given)


@pytest.mark.parametrize("regions", [PROMPT, LAYOUT, None])
def test_enable_takes_what_prepare_gives(pipe, regions):
    with pytest.raises(ValueError, match="regions must be what prepare gives, got"):
        enable(pipe, regions)
