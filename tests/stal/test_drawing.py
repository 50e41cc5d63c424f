"""A drawing's prediction: of its halves, and of images at different steps."""

import pytest
import torch

from stal.settings import Settings

TWO = "a red circle to the left of a blue square"
THREE = "a red circle, a green ring above a yellow cross"


@pytest.mark.parametrize(
    "settings",
    [Settings(reference="an empty scene", num_images=2), Settings(rule="convex")],
    ids=["guidance", "convex"],
)
@pytest.mark.parametrize("model", ["sd", "xl"])
def test_the_halves_of_a_batch_predict_alone_what_they_do_together(pipe, xl_pipe, model, settings):
    drawing = {"sd": pipe, "xl": xl_pipe}[model].prepare([TWO, THREE], settings)
    images = 2 * settings.num_images
    x = torch.randn(images, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    weights = [torch.full_like(w, 0.6) for w in drawing.weights]
    with torch.no_grad():
        together = drawing.predict(x, 500.0, 1, *weights)
        unconditional = drawing.unconditional(x, 500.0)
        apart = drawing.predict(x, 500.0, 1, *weights, unconditional=unconditional)
        default = drawing.predict(x, 500.0, 1, *drawing.weights, unconditional=unconditional)
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4)
    assert (default - together).abs().max() > 1e-2


def test_nothing_is_apart_without_guidance_or_where_the_halves_meet(pipe):
    x = torch.zeros(1, 4, 8, 8)
    for settings in (
        Settings(attention="plain"),
        Settings(reference="unconditional"),
        Settings(reference="an empty scene", guidance_scale=1.0),
    ):
        assert pipe.prepare([TWO], settings).unconditional(x, 500.0) is None


@pytest.mark.parametrize(
    "settings",
    [
        Settings(reference="an empty scene"),
        Settings(reference="unconditional"),
        Settings(rule="convex", guidance_scale=1.0),
        Settings(attention="plain"),
    ],
    ids=["guidance", "unconditional", "convex", "plain"],
)
@pytest.mark.parametrize("model", ["sd", "xl"])
def test_images_at_different_steps_equal_each_alone(pipe, xl_pipe, model, settings):
    pipeline = {"sd": pipe, "xl": xl_pipe}[model]
    together, steps, timesteps = pipeline.prepare([TWO, THREE], settings), [30, 2], [400.0, 960.0]
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        both = together.predict(x, torch.tensor(timesteps), torch.tensor(steps), *together.weights)
        for i, prompt in enumerate([TWO, THREE]):
            alone = pipeline.prepare([prompt], settings)
            one = x[i : i + 1]
            expected = alone.predict(one, timesteps[i], steps[i], *alone.weights)
            torch.testing.assert_close(both[i : i + 1], expected, rtol=1e-4, atol=1e-4)
            other = alone.predict(one, timesteps[i], steps[1 - i], *alone.weights)
            changes = (other - expected).abs().max() > 1e-3
            assert bool(changes) == (settings.attention != "plain")


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_timesteps_are_one_or_one_an_image(pipe, guidance_scale):
    settings = Settings(reference="an empty scene", guidance_scale=guidance_scale)
    drawing = pipe.prepare([TWO, THREE], settings)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        number, *others = (
            drawing.predict(x, t, 1, *drawing.weights)
            for t in (500.0, torch.tensor(500.0), torch.tensor([500.0]), torch.full((2,), 500.0))
        )
    assert all(torch.equal(number, other) for other in others)
    for shape in ((3,), (4,), (2, 1)):
        with pytest.raises(ValueError, match=r"t must be a number or \(2,\), one an image, got"):
            drawing.predict(x, torch.full(shape, 500.0), 1, *drawing.weights)
