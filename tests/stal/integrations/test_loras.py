"""Adapters of regions, on tiny random UNets: beside each LoRA worked out by hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel, UNetMotionModel
from torch import Tensor
from torch._dynamo.utils import counters

from stal.integrations.diffusers import disable, enable, prepare, regional_attention
from stal.integrations.diffusers.halves import Halves
from stal.integrations.diffusers.loras import RegionLoras
from stal.layout import Layout, masks
from stal.layout.formats import as_layout
from stal.model.model import bundled_model
from stal.prompts import article, noun_of

from .videos import ARGUMENTS, draw, kandinsky5_text_to_image, kandinsky6, wan22

try:
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer
except ImportError:
    pass

pytestmark = pytest.mark.needs("peft")

HEIGHT, WIDTH, STEPS = 8, 6, 3
# As many tokens as the lower level has pixels.
TOKENS = 12
LEVELS = {48: (8, 6), 12: (4, 3)}
KNIGHT, DRAGON = "a knight", "a dragon"
# Boxes that end within cells of both levels; nothing covers the lowest rows.
PLACES = [(KNIGHT, (0, 0, 0.45, 0.7)), (DRAGON, (0.55, 0.2, 1, 0.7))]
WEIGHTS = [1.5, 0.8]
EVERYWHERE = [(KNIGHT, (0, 0, 1, 1))]
LINEAR = "to_q|attn1.to_k|attn1.to_v|to_out.0|ff.net.0.proj|ff.net.2"
OF_PIXELS = rf".*({LINEAR}|proj_in|conv1|conv_in|conv_out|downsamplers.0.conv)"
OF_TEXT = r".*attn2.(to_k|to_v)"
ATTENTION = r".*attn2.(to_q|to_k|to_v|to_out.0)"
EVERYTHING = rf"{OF_PIXELS}|{OF_TEXT}|.*(time_emb_proj|linear_1)"


def unet_of(adapters: Sequence[str] = (), *, targets: str = EVERYTHING, dora: bool = False) -> Any:
    """The same weights each time, also of adapters of the same names; the last one is active."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=8,
        )
        add(unet, adapters, targets=targets, dora=dora)
    return unet.eval().requires_grad_(False)


def add(unet: Any, adapters: Sequence[str], *, targets: str, dora: bool = False) -> None:
    for name in adapters:
        config = peft.LoraConfig(
            r=3, lora_alpha=6, init_lora_weights=False, use_dora=dora, target_modules=targets
        )
        unet.add_adapter(config, name)


def pipe_of(unet: Any) -> Any:
    return SimpleNamespace(unet=unet, scheduler=DDIMScheduler(), text_encoder=None)


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The unconditional prompt, two prompts, and what is in them.
NEGATIVE, PROMPTS, LOCAL = (numbers(1 + i, n, TOKENS, 16) for i, n in enumerate((1, 2, 4)))
BATCH = torch.cat([NEGATIVE, PROMPTS[:1]])


def regions_of(pipe: Any, loras: Any = None, *, layout: Any = None, **changes: Any) -> Any:
    """Regions for the first of the prompts."""
    layout = PLACES if layout is None else layout
    options = {"rule": "guidance", "reference": "unconditional", "weights": WEIGHTS}
    if len(layout) == 1:
        options["weights"] = WEIGHTS[:1]
    return prepare(
        pipe,
        prompt_embeds=PROMPTS[:1],
        layout=layout,
        local_embeds=LOCAL[: len(layout)],
        loras=loras,
        aspect=WIDTH / HEIGHT,
        **options | changes,
    )


def run(pipe: Any, prompts: Tensor | None = None, **options: Any) -> Tensor:
    """(steps, rows, channels, height, width), what the UNet predicts at each step."""
    prompts = BATCH if prompts is None else prompts
    pipe.scheduler.set_timesteps(STEPS)
    x = numbers(9, len(prompts), 4, HEIGHT, WIDTH).to(prompts.dtype)
    with torch.no_grad():
        each = [
            pipe.unet(x, t, encoder_hidden_states=prompts, **options).sample
            for t in pipe.scheduler.timesteps
        ]
    return torch.stack(each)


def run_with(pipe: Any, regions: Any, prompts: Tensor | None = None, **options: Any) -> Tensor:
    enable(pipe, regions)
    try:
        return run(pipe, prompts, **options)
    finally:
        disable(pipe)


def without_adapters(pipe: Any, **changes: Any) -> Tensor:
    """What regions give where no adapter acts at all."""
    pipe.unet.disable_adapters()
    try:
        return run_with(pipe, regions_of(pipe, **changes))
    finally:
        pipe.unet.enable_adapters()


def regional(pipe: Any, loras: Any) -> Any:
    """A context for the first of the prompts."""
    return regional_attention(
        pipe,
        prompt_embeds=PROMPTS[:1],
        layout=PLACES,
        local_embeds=LOCAL[:2],
        loras=loras,
        weights=WEIGHTS,
        reference="unconditional",
        aspect=WIDTH / HEIGHT,
    )


def outside(layout: Any, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """(height, width) bool, what no region covers at all."""
    return masks(placed(layout), height, width).sum(0) == 0


def placed(layout: Any) -> Layout:
    return as_layout(layout, prompt="", aspect=WIDTH / HEIGHT, noun_of=noun_of, article=article)


class ByHand:
    """A UNet without adapters to whose layers each adapter's part is added by hand.

    Args:
        adapted: a UNet of the same weights with adapters, whose matrices are read.
        cases: of each prompt its layout, its objects' adapters and its encoded objects.
        rows: of the batch: each one's prompt, and whether it is conditional.
        everywhere: adapters that act on everything.
    """

    def __init__(
        self,
        adapted: Any,
        cases: Sequence[tuple[Any, Sequence[Sequence[str]], Tensor]],
        rows: Sequence[tuple[int, bool]],
        *,
        everywhere: Sequence[str] = (),
        dtype: torch.dtype,
    ) -> None:
        self.cases = [(placed(layout), names, local.to(dtype)) for layout, names, local in cases]
        self.rows, self.everywhere, self.dtype = rows, everywhere, dtype
        self.unet = copy.deepcopy(unet_of()).to(dtype)
        self.parts: dict[str, dict[str, Any]] = {}
        for path, layer in adapted.named_modules():
            if isinstance(layer, BaseTunerLayer):
                self.parts[path] = {
                    name: (
                        layer.lora_A[name].weight.to(dtype),
                        layer.lora_B[name].weight.to(dtype),
                        layer.scaling[name],
                        layer.lora_magnitude_vector[name].weight.to(dtype)
                        if name in layer.lora_magnitude_vector
                        else None,
                    )
                    for name in layer.lora_A
                }
                self._add(path)
        for path, module in self.unet.named_modules():
            if path.endswith("attn2"):
                module.set_processor(self._processor(path))

    def _part(self, path: str, name: str, x: Tensor) -> Tensor:
        """What an adapter adds to a layer."""
        layer = self.unet.get_submodule(path)
        down, up, scale, magnitude = self.parts[path][name]
        if isinstance(layer, torch.nn.Conv2d):
            return scale * F.conv2d(F.conv2d(x, down, None, layer.stride, layer.padding), up)
        part = x @ down.T @ up.T
        if magnitude is None:
            return scale * part
        # DoRA: the changed weight's rows of these lengths, less the weight itself.
        ratio = magnitude / (layer.weight + scale * up @ down).norm(dim=1)
        return (ratio - 1) * (x @ layer.weight.T) + ratio * scale * part

    def _share(self, name: str, height: int, width: int) -> Tensor:
        """(rows, height, width), where an adapter acts."""
        if name in self.everywhere:
            return torch.ones(len(self.rows), height, width, dtype=self.dtype)
        each = []
        for prompt, _ in self.rows:
            layout, adapters, _ = self.cases[prompt]
            own = [name in names for names in adapters]
            each.append(masks(layout, height, width)[own].sum(0).clamp(max=1))
        return torch.stack(each).to(self.dtype)

    def _add(self, path: str) -> None:
        def hook(module: Any, args: Any, out: Tensor) -> Tensor:
            for name in self.parts[path]:
                part = self._part(path, name, args[0])
                if out.ndim == 4:
                    out = out + part * self._share(name, *out.shape[2:])[:, None]
                elif out.ndim == 3:
                    share = self._share(name, *LEVELS[out.shape[1]])
                    out = out + part * share.flatten(1)[..., None]
                elif name in self.everywhere:
                    out = out + part
            return out

        if "attn2.to_k" not in path and "attn2.to_v" not in path:
            self.unet.get_submodule(path).register_forward_hook(hook)

    def _processor(self, path: str) -> Any:
        def attend(attn: Any, q: Tensor, prompt: Tensor, names: Sequence[str]) -> Tensor:
            """(heads, n, head_dim) of one row to one prompt."""
            keys_values = []
            for side in ("to_k", "to_v"):
                out = getattr(attn, side)(prompt)
                for name in [*self.everywhere, *names]:
                    if name in self.parts.get(f"{path}.{side}", ()):
                        out = out + self._part(f"{path}.{side}", name, prompt)
                keys_values.append(out.unflatten(1, (attn.heads, -1)).transpose(0, 1))
            k, v = keys_values
            return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1) @ v

        class Processor:
            def __call__(
                inner,
                attn: Any,
                x: Tensor,
                encoder_hidden_states: Any = None,
                attention_mask: Any = None,
            ) -> Tensor:
                q = attn.to_q(x).unflatten(2, (attn.heads, -1)).transpose(1, 2)
                plain = [
                    attend(attn, row, prompt, ())
                    for row, prompt in zip(q, encoder_hidden_states, strict=True)
                ]
                out = list(plain)
                for index, (prompt, conditional) in enumerate(self.rows):
                    if not conditional:
                        continue
                    lost = plain[self.rows.index((prompt, False))]
                    layout, adapters, local = self.cases[prompt]
                    covered = masks(layout, *LEVELS[x.shape[1]]).flatten(1).to(self.dtype)
                    for mask, weight, names, text in zip(
                        covered, WEIGHTS, adapters, local, strict=True
                    ):
                        part = attend(attn, q[index], text, names)
                        out[index] = out[index] + (weight * mask)[:, None] * (part - lost)
                return attn.to_out[0](torch.stack(out).transpose(1, 2).flatten(2))

        return Processor()

    def __call__(self, prompts: Tensor) -> Tensor:
        return run(pipe_of(self.unet), prompts.to(self.dtype))


def assert_within_twice(got: Tensor, eager: Tensor, exact: Tensor) -> None:
    """At most twice the error that plain torch makes in the same dtype."""
    error, allowed = ((each - exact).abs().max().item() for each in (got, eager))
    assert error <= 2 * allowed, f"{error:.3g} against {allowed:.3g}"


ONE = [(0, False), (0, True)]
TWO = [(0, False), (1, False), (0, True), (1, True)]
OTHER = [(DRAGON, (0.1, 0, 0.6, 1)), ("a horse", (0.3, 0.5, 1, 1))]


@pytest.mark.parametrize(
    ("rows", "loras", "everywhere"),
    [
        pytest.param(ONE, [{KNIGHT: "k", DRAGON: "d"}], [], id="two adapters in two regions"),
        pytest.param(ONE, [{KNIGHT: "k", DRAGON: "d"}], ["s"], id="beside one everywhere"),
        pytest.param(ONE, [{KNIGHT: ["k", "d"], DRAGON: "k"}], [], id="several of one phrase"),
        pytest.param(ONE[::-1], [{DRAGON: "d"}], ["s"], id="positive half first"),
        pytest.param(TWO, [{KNIGHT: "k", DRAGON: "d"}, {DRAGON: "k"}], ["s"], id="two prompts"),
        pytest.param(TWO, [None, {"a horse": "d"}], [], id="one of two prompts"),
    ],
)
def test_adapters_in_regions_equal_each_delta_by_hand(rows, loras, everywhere):
    unet = unet_of(["k", "d", "s"])
    # Of the regions' adapters one is active for the user too, the other is not.
    unet.set_adapters([*everywhere, "d"], [0.7] * len(everywhere) + [1.5])
    pipe, count = pipe_of(unet), len(loras)
    layouts = [PLACES, OTHER][:count]
    regions = prepare(
        pipe,
        prompt_embeds=PROMPTS[:count],
        layout=layouts if count > 1 else layouts[0],
        local_embeds=[LOCAL[:2], LOCAL[2:]] if count > 1 else LOCAL[:2],
        loras=loras if count > 1 else loras[0],
        weights=[WEIGHTS] * 2 if count > 1 else WEIGHTS,
        reference="unconditional",
        aspect=WIDTH / HEIGHT,
    )
    prompts = torch.cat([PROMPTS[p : p + 1] if own else NEGATIVE for p, own in rows])
    got = run_with(pipe, regions, prompts)
    names = [regions.loras[i] for i in range(count)]
    cases = list(zip(layouts, names, [LOCAL[:2], LOCAL[2:]][:count], strict=True))
    eager, exact = (
        ByHand(unet, cases, rows, everywhere=everywhere, dtype=dtype)(prompts)
        for dtype in (torch.float32, torch.float64)
    )
    assert_within_twice(got, eager, exact)


def test_dora_in_a_region_equals_its_delta_by_hand():
    unet = unet_of(["k"], targets=rf".*({LINEAR})|{OF_TEXT}|.*time_emb_proj", dora=True)
    for module in unet.modules():
        if "Dora" in type(module).__name__:
            module.weight.mul_(1.3)
    regions = regions_of(pipe_of(unet), {KNIGHT: "k"})
    got = run_with(pipe_of(unet), regions)
    cases = [(PLACES, regions.loras[0], LOCAL[:2])]
    eager, exact = (
        ByHand(unet, cases, ONE, dtype=dtype)(BATCH) for dtype in (torch.float32, torch.float64)
    )
    assert_within_twice(got, eager, exact)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_the_last_layer_changes_nothing_outside_its_regions(dora):
    """After conv_out nothing mixes pixels: of its adapters only their own parts are seen."""
    unet = unet_of(["k", "d"], targets=r".*conv_out", dora=dora)
    pipe = pipe_of(unet)
    without = without_adapters(pipe)
    got = run_with(pipe, regions_of(pipe, {KNIGHT: "k", DRAGON: "d"}))
    change = (got - without).abs()
    free = outside(PLACES)
    assert free.any()
    assert not change[..., free].any()
    # Of every row of the picture, the unconditional one too, and in both regions.
    assert change[..., ~free].amax(dim=2).gt(0).all()
    one = run_with(pipe, regions_of(pipe, {DRAGON: "d"}))
    knight = masks(placed(PLACES), HEIGHT, WIDTH)[0] > 0
    assert torch.equal(one[..., ~knight], got[..., ~knight])
    assert torch.equal(one[..., knight], without[..., knight])


def test_one_attention_layer_changes_nothing_outside_its_regions():
    """Queries, keys, values and outputs of one pixel do not depend on those of another."""
    unet = unet_of(["k", "d"], targets=ATTENTION)
    pipe = pipe_of(unet)
    name = next(n for n, _ in unet.named_modules() if n.endswith("attn2"))
    x = numbers(5, 2, 48, 16)
    results = []
    for scale in (0.0, 1.0):
        unet.set_adapters(["k", "d"], [scale] * 2)
        with regional(pipe, {KNIGHT: "k", DRAGON: "d"}):
            run(pipe)
            with torch.no_grad():
                results.append(unet.get_submodule(name)(x, encoder_hidden_states=BATCH))
    change = (results[1] - results[0]).abs()
    free = outside(PLACES).flatten()
    assert not change[:, free].any()
    assert (change[:, ~free].amax(dim=-1) > 0).all()


def test_without_keys_and_values_a_region_of_everything_equals_the_adapter_everywhere():
    unet = unet_of(["k"], targets=OF_PIXELS)
    pipe = pipe_of(unet)
    everywhere = run_with(pipe, regions_of(pipe, layout=EVERYWHERE))
    got = run_with(pipe, regions_of(pipe, {KNIGHT: "k"}, layout=EVERYWHERE))
    assert torch.equal(got, everywhere)
    assert not torch.equal(got, without_adapters(pipe, layout=EVERYWHERE))


@pytest.mark.parametrize("build", [kandinsky5_text_to_image, kandinsky6], ids=lambda b: b.__name__)
def test_a_transformer_s_queries_and_outputs_are_of_pixels(build):
    """By the names that Kandinsky has for them."""
    pipe, arguments = build(), ARGUMENTS[build]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = r"visual_transformer_blocks\.\d+\.(video_dec_block\.)?(self|cross)_attention"
        add(pipe.transformer, ["k"], targets=rf".*{blocks}\.(to_query|out_layer)")
    regions = {"layout": [(KNIGHT, (0, 0, 1, 1))], "weights": [1.0]}

    def drawn(loras):
        with regional_attention(pipe, arguments["prompt"], loras=loras, **regions):
            return draw(pipe, arguments)

    everywhere, got = drawn(None), drawn({KNIGHT: "k"})
    pipe.transformer.set_adapters(["k"], [0.0])
    without = drawn(None)
    assert (without - everywhere).abs().max() > 1e-3
    torch.testing.assert_close(got, everywhere, rtol=0, atol=2e-5)


def test_adapters_of_text_encoders_are_restored_with_two_denoisers():
    pipe = wan22()
    config = peft.LoraConfig(r=3, init_lora_weights=False, target_modules=["q", "v"])
    peft.inject_adapter_in_model(config, pipe.text_encoder, "words")
    before = state_of(pipe.text_encoder)
    regions = {"layout": [(KNIGHT, (0, 0, 1, 1))], "loras": {KNIGHT: "words"}}
    with regional_attention(pipe, "a knight walks", **regions):
        assert state_of(pipe.text_encoder) != before
    assert state_of(pipe.text_encoder) == before


def test_where_only_local_prompts_count_their_adapter_equals_it_everywhere():
    """Under "convex" with weight 1 the conditional half attends to the local prompt alone."""
    unet = unet_of(["k"], targets=OF_TEXT)
    pipe = pipe_of(unet)
    options = {"layout": EVERYWHERE, "rule": "convex", "reference": None, "weights": [1.0]}
    everywhere = run_with(pipe, regions_of(pipe, **options))
    got = run_with(pipe, regions_of(pipe, {KNIGHT: "k"}, **options))
    without = without_adapters(pipe, **options)
    assert torch.equal(got[:, 1], everywhere[:, 1])
    assert not torch.equal(got[:, 1], without[:, 1])
    # The negative prompt's keys and values have nothing of it.
    assert torch.equal(got[:, 0], without[:, 0])
    assert not torch.equal(got[:, 0], everywhere[:, 0])


def test_one_adapter_of_two_phrases_covers_both_regions():
    unet = unet_of(["k"], targets=r".*conv_out")
    pipe = pipe_of(unet)
    both = run_with(pipe, regions_of(pipe, {KNIGHT: "k", DRAGON: "k"}))
    each = [run_with(pipe, regions_of(pipe, {phrase: "k"})) for phrase in (KNIGHT, DRAGON)]
    covered = masks(placed(PLACES), HEIGHT, WIDTH) > 0
    assert not (covered[0] & covered[1]).any()
    for region, alone in zip(covered, each, strict=True):
        assert torch.equal(both[..., region], alone[..., region])


def test_scale_zero_equals_none():
    unet = unet_of(["k", "d"])
    pipe = pipe_of(unet)
    without = without_adapters(pipe)
    unet.set_adapters(["k", "d"], [0.0, 0.0])
    regions = regions_of(pipe, {KNIGHT: "k", DRAGON: "d"})
    assert torch.equal(run_with(pipe, regions), without)
    unet.set_adapters(["k", "d"], [1.0, 1.0])
    assert not torch.equal(run_with(pipe, regions), without)


def test_scales_may_change_between_calls():
    unet = unet_of(["k", "s"])
    pipe = pipe_of(unet)
    unet.set_adapters(["s", "k"], [1.0, 0.5])
    regions = regions_of(pipe, {KNIGHT: "k"})
    half = run_with(pipe, regions)
    unet.set_adapters(["s", "k"], [1.0, 1.0])
    whole = run_with(pipe, regions)
    assert not torch.equal(half, whole)
    unet.set_adapters(["s"], [1.0])
    with regional(pipe, {KNIGHT: "k"}):
        assert torch.equal(run(pipe), whole)
        unet.set_adapters(["s", "k"], [1.0, 0.5])
        assert torch.equal(run(pipe), half)
        unet.set_adapters(["k"], [1.0])
        assert not torch.equal(run(pipe), whole)
        unet.set_adapters(["k", "s"], [1.0, 1.0])
        assert torch.equal(run(pipe), whole)
    assert unet.active_adapters() == ["k", "s"]


def test_the_scale_of_a_call_is_the_adapters_too():
    unet = unet_of(["k"])
    pipe = pipe_of(unet)
    regions = regions_of(pipe, {KNIGHT: "k"})
    got = run_with(pipe, regions, cross_attention_kwargs={"scale": 0.5})
    assert not torch.equal(got, run_with(pipe, regions))
    unet.set_adapters("k", 0.5)
    assert torch.equal(got, run_with(pipe, regions))


def test_the_strength_of_a_region_is_not_its_adapters():
    unet = unet_of(["k"], targets=r".*conv_out")
    pipe = pipe_of(unet)
    options = {"layout": EVERYWHERE, "strength": 0.0}
    everywhere = run_with(pipe, regions_of(pipe, **options))
    assert torch.equal(run_with(pipe, regions_of(pipe, {KNIGHT: "k"}, **options)), everywhere)
    assert not torch.equal(everywhere, without_adapters(pipe, **options))


def state_of(unet: Any) -> Any:
    """What must be the same afterwards of each adapted layer."""
    return [
        (
            path,
            list(layer.active_adapters),
            dict(layer.scaling),
            [(name, p.requires_grad, p._version) for name, p in layer.named_parameters()],
            [name for name, module in layer.named_modules() if "forward" in module.__dict__],
        )
        for path, layer in unet.named_modules()
        if isinstance(layer, BaseTunerLayer)
    ]


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_everything_is_restored_after_an_exception_too(dora):
    unet = unet_of(["k", "d", "s"], dora=dora)
    unet.set_adapters(["s", "k"], [1.0, 0.7])
    pipe = pipe_of(unet)
    plain, state = run(pipe), state_of(unet)
    with pytest.raises(ValueError, match="timestep"), regional(pipe, {KNIGHT: ["k", "d"]}):
        unet(numbers(9, 2, 4, HEIGHT, WIDTH), 9999, encoder_hidden_states=BATCH)
    assert state_of(unet) == state
    assert torch.equal(run(pipe), plain)


def test_an_unloaded_adapter_is_missed():
    unet = unet_of(["k", "s"])
    pipe = pipe_of(unet)
    with regional(pipe, {KNIGHT: "k"}):
        run(pipe)
        unet.delete_adapters("k")
        with pytest.raises(ValueError, match="must keep the adapter 'k' while regions are enabled"):
            run(pipe)
    assert unet.active_adapters() == ["s"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda unet: unet.unload_lora(), "pipe must keep the adapter 'k' while regions are"),
        (lambda unet: unet.disable_lora(), "pipe must have its adapters enabled, got 'k' on"),
        (lambda unet: unet.fuse_lora(), "loras must be of adapters on weights without fused ones"),
    ],
    ids=["unloaded", "disabled", "fused"],
)
def test_an_adapter_that_no_longer_acts_is_told(change, message):
    unet = unet_of(["k", "s"])
    pipe = pipe_of(unet)
    with regional(pipe, {KNIGHT: "k"}):
        run(pipe)
        change(unet)
        with pytest.raises((ValueError, NotImplementedError), match=message):
            run(pipe)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """The bundled pipeline with an adapter of the text encoder alone and one of both networks."""
    pipe = StableDiffusionPipeline.from_pretrained(str(bundled_model()), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name in ("words", "both"):
            config = peft.LoraConfig(r=3, init_lora_weights=False, target_modules=["q_proj", "fc1"])
            peft.inject_adapter_in_model(config, pipe.text_encoder, name)
        add(pipe.unet, ["both"], targets=ATTENTION)
    return pipe


CIRCLE, SQUARE = "a red circle", "a blue square"
TEXT = f"{CIRCLE} to the left of {SQUARE}"
SIDES = [(CIRCLE, (0, 0, 0.5, 1)), (SQUARE, (0.5, 0, 1, 1))]


def speak(pipe: Any, adapters: Sequence[str]) -> None:
    """Makes these the active ones of the text encoder, as set_adapters does."""
    for layer in pipe.text_encoder.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_adapter(list(adapters))


def encoded(pipe: Any, text: str, adapters: Sequence[str]) -> Tensor:
    """By the text encoder with these adapters."""
    speak(pipe, adapters)
    return pipe.encode_prompt([text], "cpu", 1, False)[0].detach()


def test_adapters_of_the_text_encoder_read_their_phrases_alone(pipeline):
    expected = [
        encoded(pipeline, TEXT, []),
        encoded(pipeline, CIRCLE, ["words"]),
        encoded(pipeline, SQUARE, ["both"]),
    ]
    # Active for the user or not, they read nothing else.
    for users in (["words"], ["both"], ["both", "words"]):
        speak(pipeline, users)
        state = state_of(pipeline.text_encoder)
        regions = prepare(pipeline, TEXT, layout=SIDES, loras={CIRCLE: "words", SQUARE: ["both"]})
        got = [regions.prompts.embeds, regions.local.embeds[:1], regions.local.embeds[1:2]]
        for each, wanted in zip(got, expected, strict=True):
            torch.testing.assert_close(each, wanted)
        assert state_of(pipeline.text_encoder) == state


def test_a_pipeline_encodes_its_prompt_without_adapters_of_regions(pipeline):
    without = encoded(pipeline, TEXT, [])
    users = encoded(pipeline, TEXT, ["words", "both"])
    state = state_of(pipeline.text_encoder)
    loras = {CIRCLE: "words", SQUARE: "both"}
    with regional_attention(pipeline, TEXT, layout=SIDES, loras=loras) as regions:
        inside = pipeline.encode_prompt([TEXT], "cpu", 1, False)[0].detach()
        # What is asked for the next prompts meanwhile is the same.
        again = prepare(pipeline, TEXT, layout=SIDES, loras=loras)
        # The prompt is recognised as that of the regions.
        pipeline(TEXT, num_inference_steps=1, output_type="latent")
    torch.testing.assert_close(inside, without)
    assert not torch.allclose(users, without)
    assert torch.equal(again.local.embeds, regions.local.embeds)
    assert state_of(pipeline.text_encoder) == state


def test_compiled_networks_know_the_adapters_of_regions():
    unet = unet_of(["k", "s"], targets=rf"{ATTENTION}|conv_out")
    unet.set_adapter("s")
    pipe = pipe_of(unet)
    with_k, without = (regions_of(pipe, each) for each in ({KNIGHT: "k"}, None))
    scale = {"cross_attention_kwargs": {"scale": 0.5}}
    plain, eager, half = run(pipe), run_with(pipe, with_k), run_with(pipe, with_k, **scale)
    unregional = run_with(pipe, without)
    torch._dynamo.reset()
    counters.clear()
    pipe.unet = torch.compile(unet, backend="eager")
    # In turn, since what was compiled for one must not serve another.
    torch.testing.assert_close(run(pipe), plain)
    torch.testing.assert_close(run_with(pipe, without), unregional)
    torch.testing.assert_close(run_with(pipe, with_k), eager)
    graphs = counters["stats"]["unique_graphs"]
    with regional(pipe, {KNIGHT: "k"}):
        torch.testing.assert_close(run(pipe), eager)
        assert counters["stats"]["unique_graphs"] == graphs
        unet.set_adapter(["k"])
        run(pipe)
        unet.set_adapter(["s"])
        torch.testing.assert_close(run(pipe), eager)
        torch.testing.assert_close(run(pipe, **scale), half)
    torch.testing.assert_close(run(pipe), plain)
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    ("images", "places"),
    [
        pytest.param(1, (HEIGHT, WIDTH), id="in the batch"),
        pytest.param(3, (HEIGHT, WIDTH), id="in the batch as pictures"),
        pytest.param(1, (3, HEIGHT, WIDTH), id="beside height and width"),
        pytest.param(1, (3 * HEIGHT * WIDTH,), id="in the tokens"),
    ],
)
def test_frames_have_the_regions_of_their_time(images, places):
    # (objects, frames, pixels): the knight walks.
    walk = torch.rand(2, 3, HEIGHT * WIDTH, generator=torch.Generator().manual_seed(0))
    size = (3, HEIGHT, WIDTH)
    denoiser: Any = SimpleNamespace(
        pipe=None,
        module=unet_of(),
        regions=SimpleNamespace(adapters=("k",), loras=((("k",), ()),)),
        call=SimpleNamespace(size=size, halves=Halves((False, True), images, 1)),
        model=SimpleNamespace(grid=lambda size, tokens: size),
        coverage=lambda prompt, grid, device: walk,
    )
    batch = 6 if places == (HEIGHT, WIDTH) else 2
    share = RegionLoras(denoiser, []).of_pixels("k", torch.zeros(batch, *places, 4), places)
    assert share is not None
    assert share.shape == (batch, *places)
    assert torch.equal(share.reshape(2, 3, -1), walk[:1].expand(2, -1, -1))


def test_adapters_of_motion_are_refused_by_name():
    unet = UNetMotionModel(
        block_out_channels=(16,),
        down_block_types=("DownBlockMotion",),
        up_block_types=("UpBlockMotion",),
        layers_per_block=1,
        cross_attention_dim=16,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        norm_num_groups=8,
    )
    add(unet, ["m"], targets=r".*motion_modules.*to_q")
    message = r"must not be of motion modules, .* got 'm' on"
    with pytest.raises(NotImplementedError, match=message):
        regions_of(pipe_of(unet), {KNIGHT: "m"})


@pytest.mark.parametrize(
    ("loras", "message"),
    [
        ({"a horse": "k"}, "loras must be of phrases of the layout, 'a knight', 'a dragon', got"),
        ({KNIGHT: "z"}, "adapters that are loaded, 'd', 'k', got 'z': call load_lora_weights"),
        ({KNIGHT: 3}, "loras of 'a knight' must be an adapter's name or a list of such, got 3"),
        ({KNIGHT: ["k", ""]}, "loras of 'a knight' must be an adapter's name or a list of such"),
        (["k", "d"], "loras must map phrases to adapters, got"),
    ],
)
def test_wrong_loras_are_one_clear_error(loras, message):
    unet = unet_of(["k", "d"])
    state = state_of(unet)
    with pytest.raises(ValueError, match=message), regional(pipe_of(unet), loras):
        pass
    assert state_of(unet) == state


def test_loras_of_several_prompts_are_a_list():
    with pytest.raises(ValueError, match="loras must be a list of 2, one a prompt, got"):
        prepare(
            pipe_of(unet_of(["k"])),
            ["a knight", "a dragon"],
            prompt_embeds=PROMPTS,
            layout=[PLACES[:1], PLACES[1:]],
            local_embeds=[LOCAL[:1], LOCAL[1:2]],
            loras={KNIGHT: "k"},
        )


def test_no_adapter_at_all_is_said():
    with pytest.raises(ValueError, match="that are loaded, of which there are none, got 'k'"):
        regions_of(pipe_of(unet_of()), {KNIGHT: "k"})


def test_without_peft_how_to_get_it_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="peft must be installed for loras: pip install peft"):
        regions_of(pipe_of(unet_of(["k"])), {KNIGHT: "k"})


def test_fused_adapters_are_refused_by_name():
    unet = unet_of(["k", "s"])
    pipe = pipe_of(unet)
    regions = regions_of(pipe, {KNIGHT: "k"})
    unet.fuse_lora(adapter_names=["s"])
    state = state_of(unet)
    message = r"without fused ones, got 'k' on .*, into which 's' is fused: call unfuse_lora\(\)"
    with pytest.raises(NotImplementedError, match=message):
        regions_of(pipe, {KNIGHT: "k"})
    with pytest.raises(NotImplementedError, match=message):
        enable(pipe, regions)
    assert state_of(unet) == state
    unet.unfuse_lora()
    run_with(pipe, regions)


def test_disabled_adapters_are_refused():
    unet = unet_of(["k"])
    unet.disable_lora()
    with pytest.raises(ValueError, match=r"must have its adapters enabled, .* call enable_lora"):
        regions_of(pipe_of(unet), {KNIGHT: "k"})


def test_what_is_no_lora_is_refused_by_name():
    unet = unet_of()
    unet.add_adapter(peft.LoHaConfig(r=2, target_modules=["to_q"]), "k")
    message = r"must be LoRA or DoRA .* got 'k' on .* a Linear"
    with pytest.raises(NotImplementedError, match=message):
        regions_of(pipe_of(unet), {KNIGHT: "k"})


def test_feed_forward_in_parts_is_refused():
    unet = unet_of(["k"])
    for module in unet.modules():
        if hasattr(module, "set_chunk_feed_forward"):
            module.set_chunk_feed_forward(2, 1)
    with pytest.raises(NotImplementedError, match=r"call disable_forward_chunking\(\)"):
        regions_of(pipe_of(unet), {KNIGHT: "k"})
