"""Optimised weights: exact gradients in little memory, runs that resume, NaN that stops them."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from stal.model.unet import Attention
from stal.optimize import (
    RELEASED,
    Options,
    clip_loss,
    differentiable,
    online,
    schedule,
    trajectory,
)
from stal.pipeline import Pipeline
from stal.sampler import SAMPLERS
from stal.settings import Settings
from stal.weights.files import WeightSchedule

# Not the local prompt itself, so that weights matter under the convex rule too.
ONE = "a green star on a white background"
TWO = "a red circle to the left of a blue square"
BLENDED = Settings(attention="spatial", steps=3)
FAST = replace(RELEASED, lr=0.1)


@pytest.fixture(scope="module")
def exact_pipe(sd_folder) -> Pipeline:
    return Pipeline.from_pretrained(sd_folder, dtype=torch.float64)


SAMPLED = [*((name, 0.0) for name in SAMPLERS), ("ddim", 1.0)]


RULES = [("guidance", "unconditional"), ("guidance", "an empty scene"), ("convex", "unconditional")]


@pytest.mark.parametrize(("rule", "reference"), RULES, ids=str)
@pytest.mark.parametrize(("sampler", "eta"), SAMPLED, ids=str)
def test_stepwise_gradient_equals_the_full_tapes(exact_pipe, sampler, eta, rule, reference):
    settings = replace(BLENDED, steps=5, sampler=sampler, eta=eta, rule=rule, reference=reference)
    drawing = exact_pipe.prepare([TWO, ONE], settings)
    grads = []
    for predict in (None, differentiable(drawing.predict)):
        weights = [torch.full_like(w, 0.7).double().requires_grad_() for w in drawing.weights]
        latents = drawing.sample(weights, predict=predict)
        loss = exact_pipe.model.pixels(latents).square().sum()
        grads.append(torch.autograd.grad(loss, weights))
    for full, stepwise in zip(*grads, strict=True):
        assert bool((full != 0).all())
        assert (full - stepwise).abs().max() <= 1e-11 * full.abs().max()


def test_a_trajectorys_tape_holds_latents_alone(pipe):
    drawing = pipe.prepare([TWO], replace(BLENDED, steps=4))
    weights = [w.clone().requires_grad_() for w in drawing.weights]

    def kept(predict):
        sizes = []
        with saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            latents = drawing.sample(weights, predict=predict)
        return sum(sizes), latents

    small, latents = kept(differentiable(drawing.predict))
    full, _ = kept(None)
    assert small <= 4 * (latents.nbytes + weights[0].nbytes)
    assert full > 100 * small


def test_prompts_are_projected_once_and_get_no_gradient(pipe, monkeypatch, clip):
    drawing = pipe.prepare([TWO], BLENDED)
    modules = pipe.model.unet.modules()
    layer = next(m for m in modules if isinstance(m, Attention) and m.is_cross)
    calls = []
    handle = layer.to_k.register_forward_hook(lambda *args: calls.append(1))
    trajectory(drawing, clip, FAST)
    handle.remove()
    assert len(calls) == 1
    k, v = drawing._attention.prompts.project(layer.name, layer)
    assert not k.requires_grad
    assert not v.requires_grad


@pytest.mark.parametrize("rule", ["guidance", "convex"])
def test_trajectory_lowers_the_loss_and_its_weights_make_the_picture_again(pipe, clip, rule):
    drawing = pipe.prepare([TWO, ONE], replace(BLENDED, rule=rule))
    found = trajectory(drawing, clip, replace(FAST, epochs=6, lr=0.02))
    for rows in found.trace:
        assert len(rows) == 6
        assert min(row["loss"] for row in rows) < rows[0]["loss"]
    again = pipe.batch([TWO, ONE], replace(BLENDED, rule=rule), weights=found.weights)
    assert torch.equal(torch.cat([result.latents for result in again]), found.latents)
    if rule == "convex":
        assert all(float(w.min()) >= 0 and float(w.max()) <= 1 for w in found.weights)


def test_the_loss_is_the_released_codes(pipe, clip):
    drawing = pipe.prepare([TWO], BLENDED)
    images = torch.rand(1, 3, 16, 16)
    whole, parts = clip_loss(clip, images, drawing, RELEASED)[0].tolist()
    cosine = (clip.images(images) * clip.texts([TWO])).sum()
    assert whole == pytest.approx(1 - float(cosine), abs=1e-6)
    single = pipe.prepare([ONE], BLENDED)
    assert 0 < parts < 4
    assert clip_loss(clip, images, single, RELEASED).shape == (1, 2)


def test_a_run_that_was_cut_resumes_with_the_same_result(pipe, clip, tmp_path, monkeypatch):
    drawing, options = pipe.prepare([TWO], BLENDED), replace(FAST, epochs=4)
    whole = trajectory(drawing, clip, options)
    calls = []

    def cut(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(*args, **kwargs)

    sample = drawing.sample
    monkeypatch.setattr(drawing, "sample", cut)
    with pytest.raises(KeyboardInterrupt):
        trajectory(drawing, clip, options, path=tmp_path / "weights.json")
    monkeypatch.undo()
    resumed = trajectory(drawing, clip, options, path=tmp_path / "weights.json")
    assert resumed.trace == whole.trace
    assert torch.equal(resumed.weights[0], whole.weights[0])
    assert torch.equal(resumed.latents, whole.latents)
    other = pipe.prepare([TWO], BLENDED, seed=1)
    with pytest.raises(ValueError, match="must be of the same run, got other seeds"):
        trajectory(other, clip, options, path=tmp_path / "weights.json")


def test_nan_stops_the_run_and_keeps_the_best(pipe, clip, monkeypatch):
    drawing = pipe.prepare([TWO], BLENDED)
    good = trajectory(drawing, clip, replace(FAST, epochs=1))
    encode, calls = clip._encode_images, []

    def broken(pixels):
        calls.append(1)
        return encode(pixels) * (math_nan if len(calls) > 2 else 1)

    math_nan = float("nan")
    monkeypatch.setattr(clip, "_encode_images", broken)
    with pytest.warns(UserWarning, match=r"CLIP's image features .*NaN .*\(epoch 1\); the best"):
        found = trajectory(drawing, clip, FAST)
    assert torch.equal(found.weights[0], good.weights[0])
    assert torch.equal(found.latents, good.latents)
    with pytest.raises(ValueError, match=r"NaN .*\(epoch 0\); there are no better weights"):
        trajectory(drawing, clip, FAST)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_online_weights_stay_near_and_make_the_picture_again(pipe, clip, sampler):
    settings = replace(BLENDED, steps=6, sampler=sampler)
    drawing = pipe.prepare([TWO], settings)
    found = online(drawing, clip, every=2, until=0.5, updates=2, radius=0.3)
    moved = (found.weights[0] - drawing.weights[0]).abs()
    assert float(moved.max()) <= 0.3 + 1e-6
    assert bool((moved[:4].amax(1) > 0).all())
    assert bool((moved[4:] == 0).all())
    again = pipe(TWO, attention="spatial", steps=6, sampler=sampler, weights=found.weights[0])
    assert torch.equal(again.latents, found.latents)


def test_schedule_fits_the_knots_of_each_number_of_objects(pipe, clip, tmp_path, monkeypatch):
    drawings = [pipe.prepare([TWO, ONE], BLENDED), pipe.prepare([ONE], BLENDED, seed=3)]
    options, start = replace(FAST, epochs=5), WeightSchedule({1: (2.0, 0.0), 2: (1.5,), 3: (9.0,)})
    found, losses = schedule(drawings, clip, options, start=start)
    assert losses[-1] < losses[0]
    assert {n: len(v) for n, v in found.knots.items()} == {1: 2, 2: 1, 3: 1}
    assert found.knots[3] == (9.0,)  # no prompt has three objects
    assert all(found.knots[n] != start.knots[n] for n in (1, 2))

    path, calls, sample = tmp_path / "run.json", [], drawings[1].sample

    def cut(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return sample(*args, **kwargs)

    monkeypatch.setattr(drawings[1], "sample", cut)
    with pytest.raises(KeyboardInterrupt):
        schedule(drawings, clip, options, start=start, path=path)
    monkeypatch.undo()
    again, other = schedule(drawings, clip, options, start=start, path=path)
    assert (again.knots, other) == (found.knots, losses)
    with pytest.raises(ValueError, match="must be of the same run, got other start"):
        schedule(drawings, clip, options, start=WeightSchedule({1: (1.0,)}), path=path)


def test_checkpointed_blocks_give_the_same_gradient_in_less_memory(exact_pipe):
    drawing = exact_pipe.prepare([TWO, ONE], replace(BLENDED, steps=4))
    unet = exact_pipe.model.components.unet
    grads, kept = [], []
    for unet.gradient_checkpointing in (False, True):
        weights = [torch.full_like(w, 0.7).double().requires_grad_() for w in drawing.weights]
        sizes = []
        with saved_tensors_hooks(lambda t, s=sizes: s.append(t.nbytes) or t, lambda t: t):
            drawing.predict(
                torch.zeros(2, 4, 8, 8).double(), drawing.schedule.timesteps[0], 0, *weights
            )
        kept.append(sum(sizes))
        latents = drawing.sample(weights, predict=differentiable(drawing.predict))
        grads.append(torch.autograd.grad(exact_pipe.model.pixels(latents).square().sum(), weights))
    unet.gradient_checkpointing = False
    assert kept[1] < kept[0] / 4
    for all_kept, again in zip(*grads, strict=True):
        assert bool((all_kept != 0).all())
        assert (all_kept - again).abs().max() <= 1e-11 * all_kept.abs().max()


def test_plain_attention_has_nothing_to_optimise(pipe, clip):
    drawing = pipe.prepare([TWO], Settings(attention="plain", steps=1))
    for optimise in (trajectory, online):
        with pytest.raises(ValueError, match="attention must not be plain"):
            optimise(drawing, clip)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"epochs": 0}, "epochs must be"), ({"lr": float("nan")}, "lr must be a finite number")],
    ids=str,
)
def test_options_that_break_their_rule_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Options(**values)
