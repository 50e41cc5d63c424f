"""Pictures of tiny models: equal to diffusers', to themselves in other batches, and never by luck
of a bad argument."""

import copy
import inspect
import json
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from stal.diffusers_names import DIFFUSERS_ADVICE, DIFFUSERS_NAMES, hint_of
from stal.layout import Layout, PlacedObject, place
from stal.model.model import Model
from stal.pipeline import Pipeline
from stal.prompts import parse
from stal.sampler import SAMPLERS
from stal.settings import Defaults, Settings
from stal.shapes.captions import words

ONE = "a green star"
TWO = "a red circle to the left of a blue square"
THREE = "a red circle, a green ring above a yellow cross"
STEPS = 3


def levels(image) -> np.ndarray:
    return np.asarray(image).astype(int)


def difference(a, b) -> int:
    """Of two pictures, in levels of 255."""
    assert a.size == b.size
    return int(np.abs(levels(a) - levels(b)).max())


@pytest.fixture(scope="module")
def models(pipe, xl_pipe, sd_folder, xl_folder):
    """Ours and diffusers' pipeline of each folder."""
    sd = StableDiffusionPipeline.from_pretrained(sd_folder, local_files_only=True)
    xl = StableDiffusionXLPipeline.from_pretrained(xl_folder, local_files_only=True)
    for theirs in (sd, xl):
        theirs.set_progress_bar_config(disable=True)
    return {"sd": (pipe, sd), "xl": (xl_pipe, xl)}


@pytest.fixture
def idle_pipe(pipe, monkeypatch) -> Pipeline:
    """Its networks must not run."""

    def run(*args, **kwargs):
        raise AssertionError("a network ran")

    for module in (pipe.model.unet, pipe.model.components.text_encoder):
        monkeypatch.setattr(module, "forward", run)
    monkeypatch.setattr(pipe.model.components.vae, "decode", run)
    return pipe


# Parity


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("sd", {}),
        ("sd", {"guidance_scale": 1.0}),
        ("sd", {"negative_prompt": "a blue square"}),
        ("sd", {"height": 8, "width": 24}),
        ("sd", {"eta": 1.0}),
        ("xl", {}),
        ("xl", {"guidance_scale": 1.0}),
        ("xl", {"negative_prompt": "a blue square"}),
        ("xl", {"height": 24, "width": 8}),
    ],
    ids=str,
)
def test_plain_attention_equals_diffusers(models, model, options):
    pipe, their_pipe = models[model]
    options = {"guidance_scale": 4.0, "height": 16, "width": 16, **options}
    ours = pipe(TWO, attention="plain", steps=STEPS, seed=3, **options)
    generator = torch.Generator().manual_seed(3)
    theirs = their_pipe(TWO, num_inference_steps=STEPS, generator=generator, **options)
    assert difference(ours.images[0], theirs.images[0]) <= 3
    # The tolerance means something: another prompt is another picture.
    other = pipe(ONE, attention="plain", steps=STEPS, seed=3, **options)
    assert difference(ours.images[0], other.images[0]) > 60


@pytest.mark.parametrize("attention", ["plain", "spatial", "spatial-temporal"])
@pytest.mark.parametrize("sampler", ["ddim", "euler-ancestral"])
def test_a_picture_does_not_depend_on_its_batch(pipe, attention, sampler):
    settings = Settings(attention=attention, sampler=sampler, steps=STEPS, num_images=2)
    prompts = [THREE, ONE, "an empty scene", TWO]
    for prompt, result in zip(prompts, pipe.batch(prompts, settings, seed=5), strict=True):
        for i, image in enumerate(result.images):
            alone = pipe(prompt, attention=attention, sampler=sampler, steps=STEPS, seed=5 + i)
            assert difference(image, alone.images[0]) <= 2


def test_a_picture_of_xl_does_not_depend_on_its_batch(xl_pipe):
    settings = Settings(steps=STEPS)
    for prompt, result in zip([THREE, ONE], xl_pipe.batch([THREE, ONE], settings), strict=True):
        assert difference(result.images[0], xl_pipe(prompt, steps=STEPS).images[0]) <= 2


@pytest.mark.parametrize("reference", ["unconditional", "an empty scene"])
def test_weights_of_zero_under_guidance_are_plain_attention(pipe, reference):
    plain = pipe(TWO, attention="plain", steps=STEPS)
    zero = pipe(TWO, weights=[0.0, 0.0], reference=reference, steps=STEPS)
    assert difference(plain.images[0], zero.images[0]) <= 1
    default = pipe(TWO, reference=reference, steps=STEPS)
    assert difference(plain.images[0], default.images[0]) > 30


def test_background_is_of_the_model_and_0_without_a_reference_prompt(pipe):
    known = Pipeline(pipe.model, defaults=Defaults(reference="a desert", background=0.5))
    drawn = {
        "default": known(TWO, steps=STEPS),
        "given": known(TWO, steps=STEPS, background=0.5),
        "none": known(TWO, steps=STEPS, background=0.0),
        "unconditional": known(TWO, steps=STEPS, reference="unconditional"),
        "convex": known(TWO, steps=STEPS, rule="convex"),
    }
    used = {name: result.settings["background"] for name, result in drawn.items()}
    assert used == {
        **{"default": 0.5, "given": 0.5},
        **{"none": 0.0, "unconditional": 0.0, "convex": 0.0},
    }
    assert torch.equal(drawn["default"].latents, drawn["given"].latents)
    assert not torch.equal(drawn["default"].latents, drawn["none"].latents)


def test_syntax_of_other_tools_is_not_drawn(pipe):
    layout = pipe(TWO, steps=STEPS).layout
    plain = pipe(TWO, layout=layout, steps=STEPS)
    marked = f"({TWO}:1.3) <lora:x:1> --ar 1:1 --no birds"
    drawn = pipe(marked, layout=layout, steps=STEPS)
    assert torch.equal(drawn.latents, plain.latents)
    assert drawn.settings["prompt"] == marked


@pytest.mark.parametrize(
    ("prompt", "reference"),
    [
        (TWO, "an empty scene"),
        (f"{TWO} on a black background", "an empty scene on a black background"),
    ],
)
def test_reference_names_the_background_of_the_prompt(pipe, prompt, reference):
    known = Pipeline(pipe.model, defaults=Defaults(reference="an empty scene {}"))
    default = known(prompt, steps=STEPS)
    assert default.settings["reference"] == "an empty scene {}"
    assert torch.equal(default.latents, pipe(prompt, steps=STEPS, reference=reference).latents)
    other = pipe(prompt, steps=STEPS, reference="an empty scene on a beige background")
    assert not torch.equal(default.latents, other.latents)


def test_rules_references_and_modes_differ(pipe):
    options = [
        {},
        {"rule": "convex"},
        {"reference": "an empty scene"},
        {"attention": "spatial"},
        {"weights": [1.0, 0.5]},
    ]
    pictures = [levels(pipe(TWO, steps=STEPS, **o).images[0]) for o in options]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert np.abs(one - other).max() > 10


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_takes_weights_in_time(pipe, sampler):
    weights = [[2.0, 1.0], [1.0, 0.0], [0.0, -1.0]]
    result = pipe(TWO, sampler=sampler, steps=3, weights=weights)
    assert result.settings["sampler"] == sampler
    assert result.weights.tolist() == weights
    assert bool(result.latents.isfinite().all())


# Seeds


def test_image_i_is_drawn_from_seed_plus_i(pipe):
    two = pipe(TWO, seed=7, num_images=2, steps=STEPS)
    assert two.settings["seeds"] == [7, 8]
    for image, seed in zip(two.images, (7, 8), strict=True):
        assert difference(image, pipe(TWO, seed=seed, steps=STEPS).images[0]) <= 2
    assert difference(*two.images) > 30


@pytest.mark.parametrize("seed", [[11, 4], (11, 4), np.array([11, 4])], ids=["list", "tuple", "np"])
def test_a_list_of_seeds_has_one_an_image(pipe, seed):
    result = pipe(TWO, seed=seed, num_images=2, steps=STEPS)
    assert json.dumps(result.settings["seeds"]) == "[11, 4]"
    assert difference(result.images[1], pipe(TWO, seed=np.int64(4), steps=STEPS).images[0]) <= 2


def test_seeds_of_a_batch_are_one_an_image_of_any_prompt(pipe):
    results = pipe.batch([ONE, TWO], Settings(num_images=2, steps=STEPS), seed=[1, 2, 3, 4])
    assert [result.settings["seeds"] for result in results] == [[1, 2], [3, 4]]
    assert difference(results[1].images[0], pipe(TWO, seed=3, steps=STEPS).images[0]) <= 2


@pytest.mark.parametrize("sampler", ["ddim", "euler-ancestral"])
def test_generators_stand_for_seeds(pipe, sampler):
    seeds = pipe(TWO, seed=[3, 9], num_images=2, steps=STEPS, sampler=sampler)
    generators = [torch.Generator().manual_seed(s) for s in (3, 9)]
    drawn = pipe(TWO, generator=generators, num_images=2, steps=STEPS, sampler=sampler)
    assert torch.equal(seeds.latents, drawn.latents)
    assert drawn.settings["seeds"] == [None, None]
    one = pipe(TWO, generator=torch.Generator().manual_seed(9), steps=STEPS, sampler=sampler)
    assert difference(one.images[0], seeds.images[1]) <= 2


def test_the_global_generator_is_left_alone(pipe):
    before = torch.get_rng_state()
    pipe(TWO, steps=STEPS, sampler="euler-ancestral")
    assert torch.equal(before, torch.get_rng_state())


# What comes back


def test_result_says_how_it_was_made(pipe):
    result = pipe(TWO, steps=STEPS, seed=1, height=10, width=20)
    assert result.images[0].size == (20, 10)
    assert result.images[0].mode == "RGB"
    assert result.latents.shape == (1, 4, 5, 10)
    assert [o.phrase for o in result.layout.objects] == ["a red circle", "a blue square"]
    assert result.layout.aspect == 2
    assert result.layout.violated == ()
    torch.testing.assert_close(
        result.weights, torch.tensor([[1.15, 1.15], [0.575, 0.575], [0.0, 0.0]])
    )
    filled = {name: result.settings[name] for name in ("steps", "height", "width", "sampler")}
    assert filled == {"steps": STEPS, "height": 10, "width": 20, "sampler": "ddim"}
    assert result.settings["reference"] == "unconditional"
    assert result.settings["guidance_scale"] == 7.5
    assert result.settings["dtype"] == "float32"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention": "plain", "negative_prompt": ONE},
        {"weights": [[0.1, 0.7], [1 / 3, 2.0], [0.0, -1.0]], "reference": "an empty scene"},
        {"rule": "convex", "sampler": "euler-ancestral", "height": 12},
        {"eta": 0.5, "guidance_scale": 3.3, "attention": "spatial", "seed": [2**63, -5]},
    ],
    ids=str,
)
def test_settings_are_json_that_makes_the_pictures_again(pipe, options):
    first = pipe(TWO, **{"steps": STEPS, "seed": 1, "num_images": 2, **options})
    record = json.loads(json.dumps(first.settings, allow_nan=False))
    settings = Settings(**{f.name: record[f.name] for f in fields(Settings)})
    again = pipe.batch(
        [record["prompt"]],
        settings,
        layouts=[json.dumps(record["layout"])],
        weights=[record["weights"]],
        seed=record["seeds"],
    )[0]
    assert torch.equal(first.latents, again.latents)
    assert again.settings == first.settings


def test_callback_sees_every_step_and_can_preview(pipe):
    seen = []

    def callback(step, x, denoised):
        assert denoised.shape == x.shape
        seen.append((step, x, [image.size for image in pipe.model.decode(denoised)]))

    result = pipe(TWO, steps=STEPS, num_images=2, callback=callback)
    assert [(step, size) for step, _, size in seen] == [(i, [(16, 16)] * 2) for i in range(STEPS)]
    assert torch.equal(seen[-1][1], result.latents)
    again = pipe.model.decode(result.latents)
    assert [difference(a, b) for a, b in zip(again, result.images, strict=True)] == [0, 0]


def test_a_layout_is_an_object_or_its_json(pipe):
    layout = Layout(TWO, (PlacedObject("a red circle", "circle", (0, 0, 0.5, 1)),))
    result = pipe(TWO, layout=layout, steps=STEPS)
    assert result.layout == layout
    assert result.weights.shape == (STEPS, 1)
    again = pipe(TWO, layout=layout.to_json(), steps=STEPS)
    assert torch.equal(result.latents, again.latents)
    assert difference(result.images[0], pipe(TWO, steps=STEPS).images[0]) > 10


@pytest.mark.parametrize("reference", ["unconditional", "an empty scene"])
def test_gradients_reach_the_weights_through_the_latents(pipe, reference):
    weights = torch.ones(STEPS, 2, requires_grad=True)
    result = pipe(TWO, weights=weights, reference=reference, steps=STEPS)
    result.latents.square().sum().backward()
    assert bool((weights.grad != 0).all())
    with torch.no_grad():
        assert not pipe(TWO, weights=weights, steps=STEPS).latents.requires_grad


def test_nothing_is_recorded_without_need(pipe):
    assert not pipe(TWO, steps=1).latents.requires_grad


def test_twenty_objects(pipe):
    colours, shapes = (
        ("red", "green", "blue", "pink"),
        ("circle", "ring", "star", "cross", "square"),
    )
    prompt = ", ".join(f"a {colour} {shape}" for colour in colours for shape in shapes)
    with pytest.warns(UserWarning, match="the model reads 40 tokens, the end of this prompt of 81"):
        result = pipe(prompt, steps=1)
    assert result.weights.shape == (1, 20)
    assert bool(result.latents.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_precisions(sd_folder, pipe, dtype):
    other = Pipeline.from_pretrained(sd_folder, dtype=dtype)
    result = other(TWO, steps=1)
    assert result.latents.dtype == dtype
    assert result.settings["dtype"] == str(dtype).removeprefix("torch.")
    expected = pipe(TWO, steps=1).latents
    bound = 30 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    assert (result.latents.float() - expected).abs().max() <= bound * expected.abs().max()
    assert difference(pipe.model.decode(result.latents.float())[0], result.images[0]) <= 255 * bound


# Models


def test_a_folder_states_its_defaults(with_stal_json, pipe):
    text = json.dumps(
        {
            "steps": 2,
            "guidance_scale": 3.0,
            "reference": "an empty scene",
            "local_prompt": "a photo of {}",
            "words": words(),
        }
    )
    folder = with_stal_json(text)
    other = Pipeline.from_pretrained(folder)
    result = other(TWO)
    filled = {name: result.settings[name] for name in ("steps", "guidance_scale", "reference")}
    assert filled == {"steps": 2, "guidance_scale": 3.0, "reference": "an empty scene"}
    assert result.settings["model"] == str(folder)
    # The local prompts are not the phrases alone.
    plain = pipe(TWO, steps=2, guidance_scale=3.0, reference="an empty scene")
    assert difference(result.images[0], plain.images[0]) > 5
    with pytest.raises(ValueError, match="use words that this model knows, got elephant, riding; "):
        other("an elephant riding a red circle")


def test_a_model_without_a_size_asks_for_one(pipe, monkeypatch):
    config = pipe.model.unet.config
    monkeypatch.setattr(
        pipe.model.unet, "config", type(config)(**{**vars(config), "sample_size": None})
    )
    with pytest.raises(ValueError, match="height must be a positive integer, got None"):
        pipe(TWO)
    assert pipe(TWO, height=10, width=16, steps=1).images[0].size == (16, 10)


def test_a_rectangular_sample_size_is_height_and_width(pipe, monkeypatch):
    config = pipe.model.unet.config
    monkeypatch.setattr(
        pipe.model.unet,
        "config",
        type(config)(**{**vars(config), "sample_size": [5, 9]}),
    )
    assert pipe(TWO, steps=1).images[0].size == (18, 10)


# Bad input


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "prompt must not be empty, got ''"),
        (" \n", {}, "prompt must not be empty"),
        (None, {}, "prompt must be a text of valid Unicode, got None"),
        ([TWO], {}, "prompt must be a text"),
        ("a red \udcff circle", {}, "prompt must be a text of valid Unicode"),
        (
            TWO,
            {"attention": "temporal"},
            "attention must be one of plain, spatial, spatial-temporal",
        ),
        (TWO, {"rule": "concave"}, "rule must be one of guidance, convex, got 'concave'"),
        (TWO, {"sampler": "heun"}, "sampler must be one of .*'ddim'.*, got 'heun'"),
        (TWO, {"steps": 0}, "steps must be a positive integer, got 0"),
        (TWO, {"steps": 2.0}, "steps must be a positive integer, got 2.0"),
        (TWO, {"steps": 1001}, r"steps must be an integer in \[1, 1000\], got 1001"),
        (TWO, {"num_images": 0}, "num_images must be a positive integer, got 0"),
        (TWO, {"height": 15}, "height must be a multiple of 2, got 15; 16 is the nearest"),
        (TWO, {"width": 1}, "width must be a multiple of 2, got 1; 2 is the nearest"),
        (TWO, {"width": -16}, "width must be a positive integer, got -16"),
        (TWO, {"height": 16.0}, "height must be a positive integer, got 16.0"),
        (TWO, {"height": 2, "width": 512}, "aspect must lie in"),
        (TWO, {"guidance_scale": math.nan}, "guidance_scale must be a finite number, got nan"),
        (TWO, {"guidance_scale": math.inf}, "guidance_scale must be a finite number, got inf"),
        (TWO, {"guidance_scale": "7"}, "guidance_scale must be a finite number, got '7'"),
        (TWO, {"guidance_scale": 1.0}, "reference must be a prompt"),
        (TWO, {"eta": 1.5}, r"eta must lie in \[0, 1\], got 1.5"),
        (TWO, {"eta": 0.5, "sampler": "euler"}, "eta must be 0 for every sampler but ddim"),
        (TWO, {"negative_prompt": 3}, "negative_prompt must be a text"),
        (TWO, {"reference": 3}, "reference must be a text"),
        (TWO, {"background": 0.5}, "background must be 0 unless the rule is guidance and"),
        (TWO, {"background": -1.0, "reference": "fog"}, "background must be a finite number >= 0"),
        (TWO, {"background": "1", "reference": "fog"}, "background must be a finite number, got"),
        (TWO, {"weights": [1.0]}, r"weights must be \(steps, objects\) = \(50, 2\)"),
        (TWO, {"weights": [1.0, math.nan]}, "weights must be finite, got nan"),
        (TWO, {"weights": "1,1"}, "weights must be a tensor or lists of numbers"),
        (TWO, {"weights": [2.0, 0.0], "rule": "convex"}, r"weights must be in \[0, 1\]"),
        (TWO, {"weights": [2.0, 0.0], "attention": "plain"}, "weights must be 0 with plain"),
        (TWO, {"layout": "{"}, "layout must be valid JSON"),
        (TWO, {"seed": [1, 2]}, "seed must be one for each of 1 images, got 2"),
        (TWO, {"seed": 1.5}, "seed must be an integer or one an image, got 1.5"),
        (TWO, {"seed": None}, "seed must be an integer or one an image, got None"),
        (TWO, {"seed": "12"}, "seed must be an integer or one an image, got '12'"),
        (TWO, {"seed": 2**64}, "seed must lie in"),
        (TWO, {"generator": torch.Generator(), "num_images": 2}, "generator must be one for each"),
    ],
    # No values: one of them has its address in its name.
    ids=lambda value: " ".join(value) or "no options" if isinstance(value, dict) else None,
)
def test_bad_arguments_are_refused_before_any_network_runs(idle_pipe, prompt, options, message):
    with pytest.raises(ValueError, match=message):
        idle_pipe(prompt, **options)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, r"prompts must be a list of at least one text, got \[\]"),
        (TWO, {}, "prompts must be a list of at least one text, got 'a red"),
        ([TWO, ""], {}, "prompt must not be empty"),
        ([TWO, ONE], {"weights": [None]}, r"weights must be one a prompt \(2\), got 1"),
        ([TWO, ONE], {"layouts": [None] * 3}, r"layouts must be one a prompt \(2\), got 3"),
        ([TWO, ONE], {"seed": [1, 2, 3]}, "seed must be one for each of 2 images, got 3"),
    ],
    ids=str,
)
def test_bad_batches_are_refused_before_any_network_runs(idle_pipe, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        idle_pipe.batch(prompts, **options)


@pytest.mark.parametrize(
    ("prompt", "options", "strange"),
    [
        ("a crimson circle and a red hexagon", {}, "crimson, hexagon"),
        (TWO, {"negative_prompt": "blurry"}, "blurry"),
        (TWO, {"reference": "a desert"}, "desert"),
        (TWO, {"layout": place(parse("a red dog"))}, "dog"),
    ],
    ids=["prompt", "negative", "reference", "layout"],
)
def test_words_that_the_model_does_not_know_are_refused(idle_pipe, prompt, options, strange):
    known = Pipeline(idle_pipe.model, defaults=Defaults(words=words()))
    with pytest.raises(ValueError, match=f"this model knows, got {strange}; it knows: a, above, "):
        known(prompt, **options)


def test_upper_case_and_punctuation_are_no_strange_words(pipe):
    known = Pipeline(pipe.model, defaults=Defaults(words=words()))
    assert len(known("A RED circle, and: a blue square!", steps=1).images) == 1


def test_plain_attention_does_not_read_layout_or_reference(pipe):
    known = Pipeline(pipe.model, defaults=Defaults(words=words()))
    result = known(TWO, attention="plain", layout=place(parse("a dog")), steps=1, reference="fog")
    assert difference(result.images[0], pipe(TWO, attention="plain", steps=1).images[0]) <= 1


def test_to_moves_every_network_and_returns_the_pipeline(sd_folder):
    pipe = Pipeline.from_pretrained(sd_folder)
    plain = pipe(TWO, steps=1)
    assert pipe.to(torch.float64) is pipe
    double = pipe(TWO, steps=1)
    assert double.latents.dtype == pipe.model.dtype == torch.float64
    torch.testing.assert_close(double.latents.float(), plain.latents, rtol=0, atol=1e-4)
    assert double.layout == plain.layout
    assert double.settings["dtype"] == "float64"
    for arguments, options in (
        (("cpu", torch.bfloat16), {}),
        ((torch.float16, torch.device("cpu")), {}),
        ((), {"dtype": torch.float32, "device": "cpu"}),
        (("cpu",), {"dtype": torch.float64}),
    ):
        wanted = options.get("dtype") or next(a for a in arguments if type(a) is torch.dtype)
        assert pipe.to(*arguments, **options) is pipe
        parts = pipe.model.components
        for module in (parts.unet, parts.vae, parts.text_encoder):
            assert {p.dtype for p in module.parameters()} == {wanted}
    assert pipe.to("cpu").model.dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.int32,), "dtype must be one of torch.float16, .* got torch.int32"),
        ((torch.complex64,), "dtype must be one of"),
        (("nonsense",), "device must be available, got nonsense"),
        (("meta",), "device must be available, got meta"),
        (("cpu", "cpu"), "to must be given one device and one dtype"),
        ((torch.float16, torch.float32), "to must be given one device and one dtype"),
        ((["cpu"],), "device must be available"),
    ],
    ids=str,
)
def test_to_refuses_in_words(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe.to(*arguments)
    assert pipe.model.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.int8, "float16", torch.complex64], ids=str)
def test_a_dtype_that_networks_do_not_compute_in_is_refused(sd_folder, dtype):
    with pytest.raises(ValueError, match=r"dtype must be one of torch\.float16"):
        Pipeline.from_pretrained(sd_folder, dtype=dtype)


def test_arguments_of_diffusers_are_named_as_they_are_here(pipe, sd_folder):
    load, calls = Pipeline.from_pretrained, (pipe, pipe.batch, pipe.prepare)
    with pytest.raises(TypeError, match=r"^num_inference_steps is steps here$"):
        pipe(TWO, num_inference_steps=3)
    with pytest.raises(TypeError, match=r"^num_images_per_prompt is num_images here$"):
        pipe(TWO, num_images_per_prompt=2)
    with pytest.raises(TypeError, match=r"^torch_dtype is dtype here$"):
        load(sd_folder, torch_dtype=torch.float16)
    with pytest.raises(TypeError, match=r"^device_map is device here$"):
        Model.from_pretrained(sd_folder, device_map="cuda")
    with pytest.raises(TypeError, match="is steps here, but not in from_pretrained"):
        load(sd_folder, num_inference_steps=3)
    for name in (*DIFFUSERS_NAMES, *DIFFUSERS_ADVICE):
        for call in (*calls, load):
            if name in inspect.signature(call).parameters:
                continue
            with pytest.raises(TypeError, match=f"^{name} is ") as caught:
                call([TWO], **{name: None})
            assert hint_of(name) in str(caught.value)
    with pytest.raises(TypeError, match="unexpected keyword argument 'stepz'"):
        pipe(TWO, stepz=3)
    assert {*DIFFUSERS_NAMES.values()} <= {
        *inspect.signature(pipe).parameters,
        *inspect.signature(load).parameters,
    }


def test_methods_of_diffusers_say_what_there_is_instead(pipe):
    with pytest.raises(AttributeError, match="enable_attention_slicing is diffusers': leave it"):
        pipe.enable_attention_slicing()
    with pytest.raises(AttributeError, match=r"enable_model_cpu_offload .* pipe\.to\(device\)"):
        pipe.enable_model_cpu_offload()
    with pytest.raises(AttributeError, match=r"unet is diffusers': it is pipe\.model\.unet"):
        pipe.unet  # noqa: B018 - asking is the test
    with pytest.raises(AttributeError, match=r"object has no attribute 'nothing'$"):
        pipe.nothing  # noqa: B018
    assert not hasattr(pipe, "enable_xformers_memory_efficient_attention")
    assert not {*DIFFUSERS_NAMES, *DIFFUSERS_ADVICE} & {*dir(pipe)}
    assert copy.copy(pipe).model is pipe.model


def test_a_signature_is_what_it_was_under_the_hints():
    parameters = inspect.signature(Pipeline.__call__).parameters
    assert "steps" in parameters
    assert not [p for p in parameters.values() if p.kind is p.VAR_KEYWORD]
