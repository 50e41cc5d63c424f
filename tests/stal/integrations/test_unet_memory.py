"""Regions where weights and pixels lie elsewhere: dtypes, strides, offloading, threads."""

import gc
import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.hooks import HookRegistry, apply_group_offloading

from stal.integrations.diffusers import (
    denoiser,
    disable,
    enable,
    patch,
    prepare,
    regional_attention,
)
from tests.stal.integrations import unets
from tests.stal.integrations.unet_cases import (
    LAYOUT,
    OTHER_LAYOUT,
    OTHER_PROMPT,
    PROMPT,
    compare,
    draw,
)

WEIGHTS = torch.tensor([[0.9, 0.6], [0.5, 0.8]])


def regions(pipe, **options):
    return regional_attention(pipe, PROMPT, layout=LAYOUT, **options)


@pytest.mark.parametrize("name", ["sd1", "xl", "ip_adapter"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(name, dtype, monkeypatch):
    compare(
        name,
        [LAYOUT],
        [WEIGHTS],
        lambda pipe: regions(pipe, weights=WEIGHTS),
        monkeypatch,
        dtype=dtype,
    )


def test_channels_last(monkeypatch):
    def build(dtype):
        pipe = unets.stable_diffusion(dtype=dtype)
        pipe.unet.to(memory_format=torch.channels_last)
        return pipe

    compare(
        "sd1",
        [LAYOUT],
        [WEIGHTS],
        lambda pipe: regions(pipe, weights=WEIGHTS),
        monkeypatch,
        build=build,
    )


def test_free_u(monkeypatch):
    def build(dtype):
        pipe = unets.stable_diffusion(dtype=dtype)
        pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
        return pipe

    compare(
        "sd1",
        [LAYOUT],
        [WEIGHTS],
        lambda pipe: regions(pipe, weights=WEIGHTS),
        monkeypatch,
        build=build,
    )


def expected(name="sd1", **options):
    pipe = unets.BUILDERS[name]()
    with regions(pipe, **options):
        return draw(name, pipe).pictures


def hooks_of(module):
    """Of all modules, but for those of regions."""
    hooks = [
        (name, hook)
        for name, part in module.named_modules()
        for hook in getattr(part, "_diffusers_hook", HookRegistry(part)).hooks
    ]
    return [(name, hook) for name, hook in hooks if hook != "stal_regions"]


@pytest.mark.needs("accelerate")
@pytest.mark.parametrize("name", ["sd1", "ip_adapter"])
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("entered", ["before", "after"])
def test_group_offload(name, kind, entered):
    pipe = unets.BUILDERS[name]()
    state = prepare(pipe, PROMPT, layout=LAYOUT)
    if entered == "before":
        enable(pipe, state)
    options = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    apply_group_offloading(
        pipe.unet,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type=kind,
        **options,
    )
    before = hooks_of(pipe.unet)
    if entered == "after":
        enable(pipe, state)
    drawn = draw(name, pipe)
    disable(pipe)
    assert hooks_of(pipe.unet) == before
    assert np.array_equal(drawn.pictures, expected(name))
    assert np.array_equal(draw(name, pipe).pictures, draw(name, unets.BUILDERS[name]()).pictures)


@pytest.mark.needs("accelerate")
def test_sequential_offload_of_accelerate():
    """Weights come layer by layer, by accelerate's hooks."""
    import accelerate

    pipe = unets.stable_diffusion()
    plain = draw("sd1", pipe).pictures
    accelerate.cpu_offload(pipe.unet, torch.device("cpu"))
    forward = pipe.unet.forward
    with regions(pipe):
        assert np.array_equal(draw("sd1", pipe).pictures, expected())
    assert pipe.unet.forward == forward
    assert np.array_equal(draw("sd1", pipe).pictures, plain)


@pytest.mark.needs("accelerate")
def test_a_hook_of_accelerate_that_is_added_within_stays():
    from accelerate import hooks

    class Counting(hooks.ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    pipe = unets.stable_diffusion()
    plain, counting = draw("sd1", pipe).pictures, Counting()
    with regions(pipe):
        hooks.add_hook_to_module(pipe.unet, counting)
        assert np.array_equal(draw("sd1", pipe).pictures, expected())
    assert not hasattr(pipe.unet, "_diffusers_hook")
    assert np.array_equal(draw("sd1", pipe).pictures, plain)
    assert counting.calls == 4
    hooks.remove_hook_from_module(pipe.unet)
    assert np.array_equal(draw("sd1", pipe).pictures, plain)
    assert counting.calls == 4


@pytest.mark.needs("accelerate")
def test_model_offload_of_accelerate():
    import accelerate

    pipe = unets.stable_diffusion()
    plain = draw("sd1", pipe).pictures
    _, hook = accelerate.cpu_offload_with_hook(pipe.unet, torch.device("cpu"))
    forward = pipe.unet.forward
    with regions(pipe):
        assert np.array_equal(draw("sd1", pipe).pictures, expected())
        hook.offload()
        assert np.array_equal(draw("sd1", pipe).pictures, expected())
    assert pipe.unet.forward == forward
    assert np.array_equal(draw("sd1", pipe).pictures, plain)


def test_layerwise_casting():
    pipe = unets.stable_diffusion()
    pipe.unet.enable_layerwise_casting(torch.bfloat16, torch.float32)
    rounded = unets.stable_diffusion()
    rounded.unet.enable_layerwise_casting(torch.bfloat16, torch.float32)
    with regions(rounded, strength=0.0):
        zero = draw("sd1", rounded)
    with regions(pipe):
        drawn = draw("sd1", pipe)
    plain = draw("sd1", pipe)
    assert np.abs(zero.pictures - plain.pictures).max() < 1e-3
    assert np.abs(drawn.pictures - plain.pictures).max() > 0.05


def test_room_is_a_share_of_what_lies_beside_the_denoiser(monkeypatch):
    monkeypatch.setattr(denoiser, "_LEAST_KEPT", 0)
    monkeypatch.setattr(denoiser, "_KEPT", 0.5)

    def linear(device="cpu"):
        return torch.nn.Linear(10, 10, bias=False, device=device)  # 400 bytes

    first, second, hooked = linear(), linear(), torch.nn.Sequential(linear())
    hooked[0]._hf_hook = "moves it away"
    others = {"vae": linear(), "text_encoder": hooked, "elsewhere": linear("meta"), "scheduler": 1}
    pipe = SimpleNamespace(unet=torch.compile(first), **others)
    assert denoiser.room_of(pipe, [first]) == 400
    pipe = SimpleNamespace(transformer=first, transformer_2=second, **others)
    assert denoiser.room_of(pipe, [first, second]) == 300
    first._diffusers_hook = "is counted in any case"
    assert denoiser.room_of(pipe, [first, second]) == 300


def test_layers_without_room_project_in_each_call(monkeypatch):
    kept = expected()
    monkeypatch.setattr(patch, "room_of", lambda pipe, denoisers: 0)
    pipe = unets.stable_diffusion()
    with regions(pipe):
        drawn = draw("sd1", pipe)
        layers = [m.processor.layer for n, m in pipe.unet.named_modules() if n.endswith(".attn2")]
        assert layers
        assert all(layer._table is None for layer in layers)
    assert np.array_equal(drawn.pictures, kept)


@pytest.mark.parametrize("name", ["sd1", "xl"])
def test_nothing_more_is_held_after_each_step(name):
    pipe, counts = unets.BUILDERS[name](), []

    def count(pipe, step, timestep, tensors):
        gc.collect()
        # Subclasses and other layouts are other tests', and have no size to ask for.
        alive = [each for each in gc.get_objects() if type(each) is torch.Tensor]
        dense = [each for each in alive if each.layout == torch.strided]
        counts.append((len(dense), sum(each.nbytes for each in dense)))
        return tensors

    with regions(pipe):
        pipe(PROMPT, num_inference_steps=5, output_type="latent", callback_on_step_end=count)
    assert len(counts) == 5
    # What other tests left behind may go meanwhile.
    for held, later in itertools.pairwise(counts[2:]):
        assert later <= held


def test_two_pipelines_in_two_threads():
    jobs = {"sd1": (PROMPT, LAYOUT), "xl": (OTHER_PROMPT, OTHER_LAYOUT)}
    pipes = {name: unets.BUILDERS[name]() for name in jobs}
    alone, together = {}, {}

    def run(name, into, gate=None):
        prompt, layout = jobs[name]
        with regional_attention(pipes[name], prompt, layout=layout):
            if gate is not None:
                gate.wait()
            into[name] = [draw(name, pipes[name], prompt).pictures for _ in range(3)]

    for name in jobs:
        run(name, alone)
    gate = threading.Barrier(2)
    threads = [threading.Thread(target=run, args=(name, together, gate)) for name in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in jobs:
        assert all(map(np.array_equal, together[name], alone[name]))


def test_a_latents_gradient_goes_through_regions():
    """As the slow attention's does; in a call of the denoiser, since pipelines take none."""
    pipe = unets.stable_diffusion(dtype=torch.float64)
    state = prepare(pipe, PROMPT, layout=LAYOUT, weights=WEIGHTS, reference="an empty scene")
    pipe.unet.requires_grad_(False)
    pipe.scheduler.set_timesteps(2)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    towards = torch.randn(sample.shape, dtype=torch.float64, generator=generator)

    def predicted(x):
        return pipe.unet(x, pipe.scheduler.timesteps[0], state.prompts.embeds).sample

    enable(pipe, state)
    try:
        (gradient,) = torch.autograd.grad((predicted(sample) * towards).sum(), sample)
        with torch.no_grad():
            step = 1e-5 * towards
            ahead, behind = (predicted(sample + s) for s in (step, -step))
    finally:
        disable(pipe)
    expected = ((ahead - behind) * towards).sum() / 2
    torch.testing.assert_close((gradient * step).sum(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("guided", [False, True])
def test_a_gradient_through_two_calls(guided):
    """Keys and values that the first call's backward needs are not written over by the second."""
    pipe = unets.stable_diffusion()
    state = prepare(pipe, PROMPT, layout=LAYOUT, weights=WEIGHTS, reference="an empty scene")
    pipe.unet.requires_grad_(False)
    pipe.scheduler.set_timesteps(2)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 4, 8, 8, generator=generator, requires_grad=True)
    texts = torch.cat([torch.zeros_like(state.prompts.embeds), state.prompts.embeds][not guided :])

    def predicted(step):
        x = sample.expand(len(texts), -1, -1, -1)
        return pipe.unet(x, pipe.scheduler.timesteps[step], texts.clone()).sample.square().sum()

    enable(pipe, state)
    try:
        each = [torch.autograd.grad(predicted(step), sample)[0] for step in (0, 1)]
        (both,) = torch.autograd.grad(predicted(0) + predicted(1), sample)
    finally:
        disable(pipe)
    torch.testing.assert_close(both, each[0] + each[1])


def test_weights_may_be_learned():
    """A gradient reaches the module's own projections of keys and values, and q's."""
    pipe = unets.stable_diffusion()
    state = prepare(pipe, PROMPT, layout=LAYOUT, reference="an empty scene")
    pipe.scheduler.set_timesteps(2)
    enable(pipe, state)
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pipe.unet(sample, pipe.scheduler.timesteps[0], state.prompts.embeds).sample.sum().backward()
    disable(pipe)
    for module in pipe.unet.modules():
        if getattr(module, "is_cross_attention", False):
            for part in (module.to_q, module.to_k, module.to_v):
                assert part.weight.grad.abs().max() > 0


def test_inference_mode_and_gradients_take_turns():
    pipe = unets.stable_diffusion()
    with regions(pipe):
        first = draw("sd1", pipe).pictures
        with torch.inference_mode():
            second = draw("sd1", pipe).pictures
        third = draw("sd1", pipe).pictures
    assert np.array_equal(first, second)
    assert np.array_equal(first, third)
    state = prepare(pipe, PROMPT, layout=LAYOUT)
    enable(pipe, state)
    with torch.inference_mode():
        draw("sd1", pipe)
    prompts = torch.cat([torch.zeros_like(state.prompts.embeds), state.prompts.embeds])
    sample = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    pipe.unet(sample, pipe.scheduler.timesteps[0], prompts).sample.sum().backward()
    assert sample.grad.abs().max() > 0
    disable(pipe)
    with torch.inference_mode():
        fresh = unets.stable_diffusion()
        with regions(fresh):
            assert np.array_equal(draw("sd1", fresh).pictures, first)


def test_autocast():
    """As close to float32 with regions as without."""
    pipe = unets.stable_diffusion()
    exact, plain = expected(), draw("sd1", pipe).pictures
    with torch.autocast("cpu", torch.bfloat16):
        rounded = draw("sd1", pipe).pictures
        with regions(pipe):
            drawn = draw("sd1", pipe).pictures
    assert np.abs(drawn - exact).mean() <= 2 * np.abs(rounded - plain).mean()
    assert np.abs(drawn - rounded).max() > 0.05
