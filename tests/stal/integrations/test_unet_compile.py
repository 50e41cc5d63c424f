"""torch.compile of a UNet with regions: one graph, compiled once, whatever the step and regions."""

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from stal.integrations.diffusers import disable, enable, prepare
from tests.stal.integrations import unets
from tests.stal.integrations.unet_cases import LAYOUT, PROMPT

THREE = (*LAYOUT, ("a yellow star", (0.3, 0.0, 0.7, 0.3)))


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def pipeline(name="sd1"):
    pipe = unets.BUILDERS[name]()
    pipe.unet.requires_grad_(False)
    return pipe


def steps(pipe, count=3):
    """What the denoiser gives at each of so many steps, of a batch with both halves."""
    pipe.scheduler.set_timesteps(count)
    sample = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = pipe.encode_prompt(["", PROMPT], torch.device("cpu"), 1, False)[0]
    with torch.no_grad():
        return torch.stack(
            [
                pipe.unet(sample, t, encoder_hidden_states=text).sample
                for t in pipe.scheduler.timesteps
            ]
        )


def assert_compiled_once(graphs):
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == graphs
    # A recompilation is one more graph of the same code.
    assert not counters["recompile_limit"]


def compile_module(pipe):
    pipe.unet.compile(backend="aot_eager")


def compile_wrapped(pipe):
    pipe.unet = torch.compile(pipe.unet, backend="eager")


@pytest.mark.parametrize(
    ("compiled", "entered"),
    [(compile_module, "before"), (compile_wrapped, "after")],
    ids=["method-before", "wrapper-after"],
)
def test_one_graph_for_all_steps_and_contexts(entered, compiled):
    pipe = pipeline()
    states = [
        prepare(pipe, PROMPT, layout=LAYOUT),
        prepare(pipe, PROMPT, layout=THREE),
        prepare(pipe, PROMPT, layout=LAYOUT, strength=0.3, stop=0.7),
    ]
    eager = []
    for state in states:
        enable(pipe, state)
        eager.append(steps(pipe))
        disable(pipe)
    plain = steps(pipe)
    if entered == "before":
        enable(pipe, states[0])
        compiled(pipe)
    else:
        compiled(pipe)
        torch.testing.assert_close(steps(pipe), plain)
        assert_compiled_once(1)
        enable(pipe, states[0])
    first = steps(pipe)
    graphs = 1 if entered == "before" else 2
    assert_compiled_once(graphs)
    torch.testing.assert_close(first, eager[0])
    steps(pipe, 5)
    for state, expected in zip(states[1:], eager[1:], strict=True):
        disable(pipe)
        enable(pipe, state)
        torch.testing.assert_close(steps(pipe), expected)
    assert_compiled_once(graphs)
    disable(pipe)
    torch.testing.assert_close(steps(pipe), plain)
    assert (eager[0] - plain).abs().max() > 0.05


@pytest.mark.parametrize("name", ["xl", "ip_adapter"])
def test_a_compiled_pipeline_draws_the_same(name):
    pipe = pipeline(name)
    options = {"num_inference_steps": 2, "output_type": "np", **unets.arguments(name)}

    def picture():
        return pipe(PROMPT, generator=torch.Generator().manual_seed(0), **options).images

    enable(pipe, prepare(pipe, PROMPT, layout=LAYOUT))
    eager = picture()
    compile_module(pipe)
    for _ in range(2):
        assert np.abs(picture() - eager).max() < 1 / 255
    assert_compiled_once(1)


def test_blocks_that_are_compiled_apart():
    """By compile_repeated_blocks; of UNets these are the transformer blocks."""
    pipe = pipeline()
    state = prepare(pipe, PROMPT, layout=LAYOUT)
    enable(pipe, state)
    eager = steps(pipe)
    disable(pipe)
    pipe.unet.compile_repeated_blocks(backend="aot_eager")
    enable(pipe, state)
    torch.testing.assert_close(steps(pipe), eager)
    assert not counters["graph_break"]
    graphs = counters["stats"]["unique_graphs"]
    torch.testing.assert_close(steps(pipe), eager)
    assert counters["stats"]["unique_graphs"] == graphs
