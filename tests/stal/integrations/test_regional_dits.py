"""Diffusion transformers with a cross-attention of their own obey layouts."""

import functools
import math
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

from stal.integrations.diffusers import prepare, regional_attention
from stal.integrations.diffusers.models import MODELS
from stal.integrations.diffusers.patch import _lora_scale
from stal.layout import Keyframes, Layout, PlacedObject

from . import unets
from .dits import ARGUMENTS, BUILDERS, gated
from .slow_dits import (
    Blend,
    Box,
    again,
    attention_again,
    attentions,
    coverage,
    received,
    recording,
    text_of,
)

NAMES = tuple(name for name in BUILDERS if name != "ltx2_3")
PROMPT = "a red cube left of a dragon"
OTHER = "a photograph of the white castle"
PHRASES = ("a red cube", "a dragon")
BOXES: tuple[Box, ...] = ((0.05, 0.1, 0.45, 0.9), (0.35, 0.2, 0.95, 1.0))
LAYOUT = list(zip(PHRASES, BOXES, strict=True))
REFERENCE = "an empty table"
# (frames, height, width) of the tokens of a call with ARGUMENTS.
GRIDS = {
    "pixart_alpha": (1, 4, 6),
    "pixart_sigma": (1, 4, 6),
    "sana": (1, 4, 6),
    "sana_sprint": (1, 4, 6),
    "hunyuan_dit": (1, 4, 6),
    "ltx": (3, 3, 5),
    "ltx_image_to_video": (3, 3, 5),
    "ltx2": (3, 3, 5),
}
UNGUIDED = frozenset({"sana_sprint"})


@functools.cache
def built(name: str, dtype: torch.dtype = torch.float32) -> Any:
    return BUILDERS[name](dtype=dtype)


def draw(pipe: Any, name: str, prompt: Any = PROMPT, *, seed: Any = 0, **changes: Any) -> Tensor:
    """Latents, of two steps unless told otherwise."""
    seeds = [torch.Generator().manual_seed(s) for s in (seed if isinstance(seed, list) else [seed])]
    arguments = ARGUMENTS[name] | {"num_inference_steps": 2, "output_type": "latent"} | changes
    if prompt is not None:
        arguments["prompt"] = prompt
    generator = seeds if isinstance(seed, list) else seeds[0]
    return torch.as_tensor(pipe(generator=generator, return_dict=False, **arguments)[0]).float()


def options(name: str) -> dict[str, Any]:
    """What ARGUMENTS change of how a prompt is encoded."""
    return {"clean_caption": False} if "pixart" in name else {}


def regional(pipe: Any, name: str, prompt: Any = PROMPT, **changes: Any) -> Any:
    """The context, for a call with ARGUMENTS."""
    given = {"layout": LAYOUT, "aspect": 1.5, "encode": options(name)} | changes
    return regional_attention(pipe, prompt, **given)


@functools.cache
def phrase(name: str, text: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    pipe = built(name, dtype)
    return text_of(pipe.transformer, lambda: draw(pipe, name, text))


def apart(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def check(
    name: str,
    calls: list[Any],
    blends: list[list[Blend | None]],
    *,
    texts: tuple[str, ...] = (*PHRASES, REFERENCE, ""),
    dtype: torch.dtype = torch.float32,
) -> None:
    """Each call equals the slow one, to within twice the error that one makes in this dtype."""
    assert calls
    assert len(calls) == len(blends)
    pipe = built(name, dtype)
    given = [phrase(name, text, dtype) for text in texts]
    for call, each in zip(calls, blends, strict=True):
        assert len(call.out) == len(each)
        plain = again(pipe.transformer, call, [], [None] * len(each), torch.float64)
        exact = again(pipe.transformer, call, given, each, torch.float64)
        eager = again(pipe.transformer, call, given, each, dtype)
        assert apart(call.out, exact) <= 2 * apart(eager, exact)
        # What is compared is far from a model without regions.
        assert apart(plain, exact) > 20 * apart(eager, exact)


def covered(grid: tuple[int, int, int], boxes: tuple[Box, ...] = BOXES) -> Tensor:
    frames, height, width = grid
    return coverage(boxes, height, width).repeat(1, frames)


@pytest.mark.parametrize("case", ["either", "prompt", "convex"])
@pytest.mark.parametrize("name", NAMES)
def test_it_equals_the_slow_one(name: str, case: str) -> None:
    pipe = built(name)
    guided = name not in UNGUIDED
    weights = torch.tensor([[1.5, 2.0], [1.2, 0.7]])
    given: dict[str, Any] = {"weights": weights}
    phrases: tuple[int, ...] = (0, 1)
    unconditional = None
    if case == "convex":
        given["weights"] = weights = weights / 2
        # One of two steps, of the second region.
        given |= {"rule": "convex", "stop": [1.0, 0.5]}
        weights = weights * torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    elif case == "prompt":
        given |= {"reference": REFERENCE, "background": 0.3, "start": [0.5, 0.0], "strength": 0.9}
        weights = 0.9 * weights * torch.tensor([[0.0, 1.0], [1.0, 1.0]])
        phrases = (0, 1, 2)
    elif guided:
        unconditional = 0
    else:
        phrases = (0, 1, 3)
    with (
        regional(pipe, name, **given),
        recording(pipe.transformer) as calls,
    ):
        draw(pipe, name)
    own = [
        Blend(
            given.get("rule", "guidance"),
            phrases,
            step,
            covered(GRIDS[name]),
            unconditional,
            given.get("background", 0.0),
        )
        for step in weights
    ]
    check(name, calls, [[None, blend] if guided else [blend] for blend in own])


@pytest.mark.parametrize("name", NAMES)
def test_one_whole_region_and_strength_0_are_plain_and_all_is_restored(name: str) -> None:
    pipe = built(name)
    processors = dict(pipe.transformer.attn_processors)
    plain = draw(pipe, name)
    everywhere = [(PROMPT, (0, 0, 1, 1))]
    with regional(pipe, name, layout=everywhere, rule="convex", weights=[1.0]):
        whole = draw(pipe, name)
    with regional(pipe, name, strength=0):
        nothing = draw(pipe, name)
    assert apart(whole, plain) < 2e-5
    assert apart(nothing, plain) < 2e-5
    assert torch.equal(draw(pipe, name), plain)
    assert all(a is processors[key] for key, a in pipe.transformer.attn_processors.items())
    assert "forward" not in pipe.transformer.__dict__


@pytest.mark.parametrize("name", NAMES)
def test_several_prompts_and_pictures_are_as_one_by_one(name: str) -> None:
    """Not several of both: diffusers then masks rows by another prompt's length."""
    pipe = built(name)
    prompts = [PROMPT, OTHER]
    several = "num_videos_per_prompt" if "ltx" in name else "num_images_per_prompt"
    two: dict[str, Any] = {}
    if name == "ltx_image_to_video":
        two["image"] = [ARGUMENTS[name]["image"]] * 2
    layouts = [LAYOUT, [("a white castle", (0.2, 0.0, 1.0, 0.7))]]
    with regional(pipe, name, prompts, layout=layouts):
        together = draw(pipe, name, prompts, seed=[1, 2], **two)
    alone = []
    for prompt, layout, seed in zip(prompts, layouts, (1, 2), strict=True):
        with regional(pipe, name, prompt, layout=layout):
            alone.append(draw(pipe, name, prompt, seed=[seed]))
            if prompt == PROMPT:
                pictures = draw(pipe, name, prompt, seed=[1, 2], **{several: 2}, **two)
                alone_too = draw(pipe, name, prompt, seed=[2])
    assert apart(together, torch.cat(alone)) < 1e-4
    assert apart(pictures, torch.cat([alone[0], alone_too])) < 1e-4
    assert apart(alone[0], draw(pipe, name, seed=[1])) > 1e-2


@pytest.mark.parametrize(
    ("name", "height", "width", "grid"),
    [
        ("pixart_sigma", 80, 112, (1, 5, 7)),
        ("sana", 160, 96, (1, 5, 3)),
        ("hunyuan_dit", 48, 112, (1, 3, 7)),
        ("ltx", 96, 224, (2, 3, 7)),
    ],
)
def test_odd_sizes(name: str, height: int, width: int, grid: tuple[int, int, int]) -> None:
    pipe = built(name)
    weights = torch.tensor([[1.5, 2.0], [1.2, 0.7]])
    with (
        regional(pipe, name, weights=weights, aspect=width / height),
        recording(pipe.transformer) as calls,
    ):
        frames = {"num_frames": 9} if name == "ltx" else {}
        draw(pipe, name, height=height, width=width, **frames)
    check(name, calls, [[None, Blend("guidance", (0, 1), w, covered(grid), 0)] for w in weights])


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16(name: str) -> None:
    """Of each attention: rounding moves a whole denoiser of random weights more than regions do."""
    dtype = torch.bfloat16
    pipe = built(name, dtype)
    denoiser = pipe.transformer
    weights = torch.tensor([[1.5, 2.0], [1.2, 0.7]])
    with ExitStack() as stack:
        stack.enter_context(regional(pipe, name, weights=weights, reference=REFERENCE))
        whole = stack.enter_context(recording(denoiser))
        calls = {m: stack.enter_context(recording(m)) for m in attentions(denoiser)}
        draw(pipe, name)
    texts = [
        received(denoiser, whole[0], phrase(name, text, dtype)) for text in (*PHRASES, REFERENCE)
    ]
    for module, each in calls.items():
        assert len(each) == 2
        given = [text[module] for text in texts]
        for call, step in zip(each, weights, strict=True):
            own = Blend("guidance", (0, 1, 2), step, covered(GRIDS[name]))
            rows = [own] if name in UNGUIDED else [None, own]
            plain = attention_again(module, call, [], [None] * len(rows), torch.float64)
            exact = attention_again(module, call, given, rows, torch.float64)
            eager = attention_again(module, call, given, rows, dtype)
            assert apart(call.out, exact) <= 2 * apart(eager, exact)
            assert apart(plain, exact) > 5 * apart(eager, exact)


def test_calls_of_ltx2_without_the_negative_half_have_regions() -> None:
    """By default it makes three calls a step; two of them move away from a prompt."""
    pipe = built("ltx2")
    weights = torch.tensor([[1.5, 2.0], [1.2, 0.7]])
    more = {
        "stg_scale": 1.0,
        "modality_scale": 3.0,
        "spatio_temporal_guidance_blocks": [1],
        "audio_stg_scale": 1.0,
        "audio_modality_scale": 3.0,
    }
    with (
        regional(pipe, "ltx2", weights=weights),
        recording(pipe.transformer) as calls,
    ):
        draw(pipe, "ltx2", **more)
    grid = covered(GRIDS["ltx2"])
    blends: list[list[Blend | None]] = []
    for step in weights:
        alone = Blend("guidance", (0, 1, 3), step, grid)
        blends += [[None, Blend("guidance", (0, 1), step, grid, 0)], [alone], [alone]]
    check("ltx2", calls, blends)
    with (
        regional(pipe, "ltx2", reference="unconditional"),
        pytest.raises(ValueError, match="reference must be a prompt"),
    ):
        draw(pipe, "ltx2", **more)


def test_gated_heads() -> None:
    """LTX-2 can weigh its heads by what q is of."""
    name = "ltx2"
    pipe = BUILDERS[name]()
    denoiser = gated(pipe.transformer)
    pipe.register_modules(transformer=denoiser)
    weights = torch.tensor([[1.5, 2.0], [1.2, 0.7]])
    with ExitStack() as stack:
        stack.enter_context(regional(pipe, name, weights=weights, reference=REFERENCE))
        whole = stack.enter_context(recording(denoiser))
        calls = {m: stack.enter_context(recording(m)) for m in attentions(denoiser)}
        draw(pipe, name)
    texts = [received(denoiser, whole[0], phrase(name, text)) for text in (*PHRASES, REFERENCE)]
    for module, each in calls.items():
        given = [text[module] for text in texts]
        rows = [None, Blend("guidance", (0, 1, 2), weights[0], covered(GRIDS[name]))]
        exact, eager = (
            attention_again(module, each[0], given, rows, dtype)
            for dtype in (torch.float64, torch.float32)
        )
        assert apart(each[0].out, exact) <= 2 * apart(eager, exact)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_encoded_as_the_pipeline_does(name: str) -> None:
    pipe = built(name)
    regions = prepare(pipe, PROMPT, layout=LAYOUT, encode=options(name))
    received = phrase(name, PROMPT)
    found = regions.prompts.embeds
    if name == "hunyuan_dit":
        expected = [received["encoder_hidden_states"], received["encoder_hidden_states_t5"]]
        masks = [received["text_embedding_mask"], received["text_embedding_mask_t5"]]
        assert torch.equal(found[..., :-1], torch.cat(expected, 1))
        assert torch.equal(found[..., -1], torch.cat(masks, 1).float())
        return
    torch.testing.assert_close(found, received["encoder_hidden_states"], rtol=1e-5, atol=1e-5)
    mask = regions.prompts.mask
    counted = received["encoder_attention_mask"] > 0
    assert counted.all() if mask is None else torch.equal(mask, counted)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sana", {"complex_human_instruction": None}),
        ("sana", {"complex_human_instruction": ["Draw this:"], "max_sequence_length": 77}),
        ("pixart_alpha", {"clean_caption": False, "max_sequence_length": 64}),
        ("ltx", {"max_sequence_length": 256}),
    ],
)
def test_what_users_change_is_said_to_encode(name: str, changes: dict[str, Any]) -> None:
    pipe = built(name)
    plain = draw(pipe, name, **changes)
    with regional(pipe, name, strength=0, encode=changes):
        assert apart(draw(pipe, name, **changes), plain) < 2e-5
    with (
        regional(pipe, name),
        pytest.raises(ValueError, match="encode= if they are encoded otherwise"),
    ):
        draw(pipe, name, **changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_that_differs_in_a_word_is_another(name: str, dtype: torch.dtype) -> None:
    pipe = built(name, dtype)
    near = "a blue cube left of a dragon"
    with (
        regional(pipe, name),
        pytest.raises(ValueError, match="rows of other prompts"),
    ):
        draw(pipe, name, near)
    if name in UNGUIDED:
        return
    with regional(pipe, name):
        draw(pipe, name, negative_prompt=near)
        halves = pipe.transformer._diffusers_hook.get_hook("stal_regions").denoiser.call.halves
    assert halves.conditional == (False, True)


@pytest.mark.parametrize("name", ["pixart_alpha", "hunyuan_dit", "ltx2"])
def test_embeddings_instead_of_text(name: str) -> None:
    from stal.integrations.diffusers.dit_text import two_texts

    pipe = built(name)

    def embeds(texts: list[str]) -> tuple[dict[str, Tensor], Any]:
        """What the pipeline takes, and what `prepare` does."""
        kinds = ("prompt_embeds", "prompt_attention_mask")
        if name == "hunyuan_dit":
            found: dict[str, Tensor] = {}
            for index, (length, end) in enumerate(((77, ""), (256, "_2"))):
                options = {"max_sequence_length": length, "text_encoder_index": index}
                e, n, m, nm = pipe.encode_prompt(
                    texts, negative_prompt=[""] * len(texts), **options
                )
                each = {kinds[0]: e, f"negative_{kinds[0]}": n}
                each |= {kinds[1]: m, f"negative_{kinds[1]}": nm}
                found |= {key + end: value for key, value in each.items()}
            keys = [kind + end for end in ("", "_2") for kind in kinds]
            return found, two_texts(*(found[key] for key in keys))
        e, m, n, nm = pipe.encode_prompt(texts, do_classifier_free_guidance=True)
        found = {kinds[0]: e, kinds[1]: m, f"negative_{kinds[0]}": n, f"negative_{kinds[1]}": nm}
        return found, (e, m)

    with torch.no_grad():
        given, prompt = embeds([PROMPT])
        local = embeds(list(PHRASES))[1]
    with regional_attention(
        pipe,
        prompt_embeds=prompt,
        local_embeds=local,
        layout=LAYOUT,
        aspect=1.5,
        reference="unconditional",
    ):
        found = draw(pipe, name, None, **given, negative_prompt=None)
    with regional(pipe, name):
        assert apart(found, draw(pipe, name)) < 2e-5


@pytest.mark.parametrize("padding", ["left", "all"])
def test_other_masks(padding: str) -> None:
    """Tokens that count may be the last ones; where none does, diffusers attends to all."""
    name = "pixart_alpha"
    pipe = built(name)
    generator = torch.Generator().manual_seed(3)
    embeds = torch.randn(2, 120, 32, generator=generator)
    mask = torch.ones(2, 120, dtype=torch.int64)
    mask[1, :90] = 0
    mask[0] = 0 if padding == "all" else mask[1].flip(0)
    local = torch.randn(2, 40, 32, generator=generator)
    local_mask = torch.ones(2, 40, dtype=torch.int64)
    local_mask[0, :30] = local_mask[1, 7:] = 0
    weights = torch.tensor([[1.5, 2.0], [1.2, 0.7]])
    with (
        regional_attention(
            pipe,
            prompt_embeds=(embeds[1:], mask[1:]),
            local_embeds=(local, local_mask),
            layout=LAYOUT,
            aspect=1.5,
            weights=weights,
            reference="unconditional",
        ),
        recording(pipe.transformer) as calls,
    ):
        draw(
            pipe,
            name,
            None,
            negative_prompt=None,
            prompt_embeds=embeds[1:],
            prompt_attention_mask=mask[1:],
            negative_prompt_embeds=embeds[:1],
            negative_prompt_attention_mask=mask[:1],
        )
    texts = [
        {"encoder_hidden_states": e[None], "encoder_attention_mask": m[None]}
        for e, m in zip(local, local_mask, strict=True)
    ]
    # Texts of one call have one number of tokens.
    for text in texts:
        for key, value in text.items():
            sides = (0, 0, 0, 80) if value.ndim == 3 else (0, 80)
            text[key] = torch.nn.functional.pad(value, sides)
    for call, step in zip(calls, weights, strict=True):
        blends = [None, Blend("guidance", (0, 1), step, covered(GRIDS[name]), 0)]
        exact, eager = (
            again(pipe.transformer, call, texts, blends, dtype)
            for dtype in (torch.float64, torch.float32)
        )
        assert apart(call.out, exact) <= 2 * apart(eager, exact)


def _layout(*boxes: Box, aspect: float = 5 / 3) -> Layout:
    pairs = zip(PHRASES, boxes, strict=True)
    return Layout(PROMPT, tuple(PlacedObject(text, text, box) for text, box in pairs), (), aspect)


def test_regions_move_over_the_frames() -> None:
    name = "ltx"
    pipe = built(name)
    first, last = _layout(BOXES[0], BOXES[1]), _layout(BOXES[1], (0.0, 0.0, 0.2, 1.0))
    weights = torch.tensor([[1.5, 2.0], [1.2, 0.7]])
    with (
        regional(pipe, name, layout=Keyframes((first, last), (0.25, 1)), weights=weights),
        recording(pipe.transformer) as calls,
    ):
        draw(pipe, name)
    _, height, width = GRIDS[name]
    frames = []
    for share in (0.0, 1 / 3, 1.0):  # of the way: frames are at 0, 0.5, 1
        boxes = [
            tuple((1 - share) * p + share * q for p, q in zip(a.box, b.box, strict=True))
            for a, b in zip(first.objects, last.objects, strict=True)
        ]
        frames.append(coverage(boxes, height, width))
    grid = torch.cat(frames, 1)
    check(name, calls, [[None, Blend("guidance", (0, 1), w, grid, 0)] for w in weights])


def test_keyframes_of_a_picture_are_refused() -> None:
    moving = Keyframes((_layout(*BOXES),), (0,))
    with pytest.raises(ValueError, match=r"layout must be of one picture .* got Keyframes"):
        prepare(built("pixart_alpha"), PROMPT, layout=moving)


def test_newer_ltx2_is_refused_by_name() -> None:
    with pytest.raises(NotImplementedError, match=r"got LTX-2\.3 \(cross_attn_mod\): use LTX-2"):
        prepare(built("ltx2_3"), PROMPT, layout=LAYOUT)


def test_sprint_has_no_unconditional_half() -> None:
    pipe = built("sana_sprint")
    with (
        regional(pipe, "sana_sprint", reference="unconditional"),
        pytest.raises(ValueError, match="reference must be a prompt"),
    ):
        draw(pipe, "sana_sprint")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_timesteps_of_half_precision_are_told_apart(dtype: torch.dtype) -> None:
    name = "hunyuan_dit"
    pipe = built(name)
    prompts = phrase(name, PROMPT)["encoder_hidden_states"]
    with regional(pipe, name):
        state = pipe.transformer._diffusers_hook.get_hook("stal_regions").denoiser
        pipe.scheduler.set_timesteps(250)
        given = [t.to(dtype).expand(2) for t in pipe.scheduler.timesteps]
        found = [int(state.begin(t, prompts, (1, 8, 12))) for t in given]
    assert found == list(range(250))


@pytest.mark.needs("accelerate")
def test_group_offload() -> None:
    name = "sana"
    pipe = BUILDERS[name]()
    with regional(pipe, name):
        expected = draw(pipe, name)
    device = torch.device("cpu")
    pipe.transformer.enable_group_offload(
        onload_device=device, offload_device=device, offload_type="leaf_level"
    )
    plain = draw(pipe, name)
    with regional(pipe, name):
        assert torch.equal(draw(pipe, name), expected)
    assert torch.equal(draw(pipe, name), plain)


def test_compiled_code_has_one_graph_and_is_not_compiled_again() -> None:
    from torch._dynamo.utils import counters

    name = "ltx"
    pipe = BUILDERS[name]()
    with regional(pipe, name):
        expected, longer = (draw(pipe, name, num_inference_steps=steps) for steps in (4, 5))
        torch.compiler.reset()
        counters.clear()
        pipe.transformer.compile(backend="eager")
        found = draw(pipe, name, num_inference_steps=4)
        graphs = counters["stats"]["unique_graphs"]
        again_ = draw(pipe, name, num_inference_steps=5)
    assert apart(found, expected) < 1e-5
    assert graphs == counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert apart(again_, longer) < 1e-5
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["pixart_alpha", "ltx"])
def test_local_prompts_follow_a_projection_that_changes(name: str) -> None:
    """As a LoRA of it does."""

    def change(pipe: Any) -> None:
        with torch.no_grad():
            pipe.transformer.caption_projection.linear_1.weight.mul_(-1)

    pipe, fresh = BUILDERS[name](), BUILDERS[name]()
    with regional(pipe, name):
        before = draw(pipe, name)
        change(pipe)
        after = draw(pipe, name)
    change(fresh)
    with regional(fresh, name):
        assert torch.equal(after, draw(fresh, name))
    assert not torch.equal(after, before)


def test_pixart_ignores_the_scale_of_adapters() -> None:
    """As diffusers does, which warns of it."""
    given = {"cross_attention_kwargs": {"scale": 0.5}, "attention_kwargs": {"scale": 0.7}}
    scales = {name: _lora_scale(MODELS[name], given) for name in MODELS}
    assert scales["PixArtTransformer2DModel"] == 1
    assert scales["UNet2DConditionModel"] == 0.5
    assert scales["WanTransformer3DModel"] == 0.7


def test_regions_move_where_frames_lie_in_the_batch() -> None:
    pipe = unets.BUILDERS["animate_diff"]()
    boxes = [BOXES, (BOXES[1], BOXES[0]), ((0.0, 0.0, 0.3, 0.3), BOXES[1])]
    moving = Keyframes([_layout(*each, aspect=1.0) for each in boxes], (0.0, 0.5, 1.0))
    weights = torch.tensor([[1.5, 2.0]])
    modules = [m for m in pipe.unet.modules() if getattr(m, "is_cross_attention", False)]
    with ExitStack() as stack:
        stack.enter_context(regional_attention(pipe, PROMPT, layout=moving, weights=weights))
        calls = {m: stack.enter_context(recording(m)) for m in modules}
        pipe(PROMPT, num_inference_steps=1, **unets.arguments("animate_diff"))
    with torch.no_grad():
        local = pipe.encode_prompt(list(PHRASES), pipe.device, 1, False)[0]
    texts = [{"encoder_hidden_states": each[None]} for each in local]
    for module, (call,) in calls.items():
        side = math.isqrt(call.out.shape[1])
        rows: list[Blend | None] = [None] * 3
        for frame, each in enumerate(boxes):
            grid = coverage(each, side, side)
            rows.append(Blend("guidance", (0, 1), weights[0], grid, unconditional=frame))
        exact, eager = (
            attention_again(module, call, texts, rows, dtype)
            for dtype in (torch.float64, torch.float32)
        )
        assert apart(call.out, exact) <= 2 * apart(eager, exact)
