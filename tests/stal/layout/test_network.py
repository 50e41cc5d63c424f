"""The network of the layout predictor: mixtures, and what it reads of a prompt."""

from dataclasses import replace

import pytest
import torch

from stal.layout.network import (
    EDGE_FEATURES,
    Mixture,
    boxes_from,
    flip,
    normal_form,
    tokens_of,
)
from stal.prompts.scene import Scene


def random_mixture(n=2):
    torch.manual_seed(1)
    weight = torch.randn(1, n, 3).log_softmax(-1)
    return Mixture(weight, 0.3 * torch.randn(1, n, 3, 4), torch.randn(1, n, 3, 4) - 1)


def test_mixture_equals_torch_distributions():
    m, z = random_mixture(), torch.randn(1, 2, 4)
    parts = torch.distributions.Independent(torch.distributions.Normal(m.mean, m.log_std.exp()), 1)
    family = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=m.log_weight), parts
    )
    torch.testing.assert_close(m.log_prob(z), family.log_prob(z))


def test_density_of_differences_integrates_to_one():
    step = torch.linspace(-12, 12, 241)
    grid = torch.cartesian_prod(step, step)
    index = torch.zeros(len(grid), dtype=torch.long)
    m = random_mixture()
    logs = m.log_prob_difference(index, index, index + 1, grid)
    assert float(logs.exp().sum() * 0.1**2) == pytest.approx(1.0, abs=0.01)


def test_samples_follow_the_mixture():
    m = random_mixture()
    z = m.sample(20000, torch.Generator().manual_seed(0))
    mean = (m.log_weight.exp()[..., None] * m.mean).sum(2)
    torch.testing.assert_close(z.mean(0), mean, atol=0.05, rtol=0)


def test_boxes_survive_the_normal_form():
    boxes = [(0.1, 0.2, 0.4, 0.9), (0.0, 0.0, 1.0, 1.0)]
    for found, box in zip(boxes_from(normal_form(boxes)), boxes, strict=True):
        assert found == pytest.approx(box, abs=1e-6)


def test_a_prompt_does_not_depend_on_its_batch(network):
    tokens = [
        tokens_of([("a dog", "dog")], [], aspect=1.0),
        tokens_of([("a cat", "cat"), ("a car", "car")], [(0, "left of", 1)], aspect=2.0),
    ]
    alone, both = network(tokens[:1]), network(tokens)
    torch.testing.assert_close(alone.mean[0], both.mean[0, :1])
    torch.testing.assert_close(alone.log_weight[0], both.log_weight[0, :1])


@pytest.mark.parametrize(
    "other",
    [
        tokens_of([("a cat", "cat"), ("a car", "car")], [(0, "right of", 1)], aspect=1.0),
        tokens_of([("a cat", "cat"), ("a car", "car")], [(0, "left of", 1)], aspect=2.0),
        tokens_of([("a cow", "cow"), ("a car", "car")], [(0, "left of", 1)], aspect=1.0),
    ],
    ids=["relation", "aspect", "phrase"],
)
def test_mixture_depends_on(network, other):
    tokens = tokens_of([("a cat", "cat"), ("a car", "car")], [(0, "left of", 1)], aspect=1.0)
    assert not torch.allclose(network([tokens]).mean, network([other]).mean)


def test_a_scene_and_what_is_staged_change_the_mixture(network):
    pair = [("a cat", "cat"), ("a car", "car")]
    plain, wide = (
        tokens_of(pair, [], aspect=1.0, scene=Scene(shot, "street")) for shot in ("", "wide")
    )
    assert not torch.allclose(plain.staged, wide.staged)
    same = replace(wide, staged=plain.staged)
    assert not torch.allclose(network([plain]).mean, network([same]).mean)
    moved = replace(plain, staged=plain.staged + 0.1)
    shift = network([moved]).mean - network([plain]).mean
    k = network.config.staged
    assert shift[..., :k, :].mean() > 3 * shift[..., k:, :].abs().mean()


def test_the_scene_of_a_mixture_is_the_mean_of_its_staged_components():
    m = replace(random_mixture(), staged=2)
    share = m.log_weight[..., :2].exp()
    mean = (share[..., None] * m.mean[..., :2, :]).sum(2) / share.sum(-1, keepdim=True)
    torch.testing.assert_close(m.scene(), mean)


def test_flip_swaps_left_and_right_alone():
    pair = [("a cat", "cat"), ("a car", "car")]
    for here, there in (("left of", "right of"), ("above", "above"), ("on", "on")):
        flipped = flip(tokens_of(pair, [(0, here, 1)], aspect=1.0))
        mirrored = tokens_of(pair, [(0, here, 1)], aspect=1.0).staged[:, 0]
        torch.testing.assert_close(flipped.staged[:, 0], 1 - mirrored)
        assert torch.equal(flipped.edges, tokens_of(pair, [(0, there, 1)], aspect=1.0).edges)


def test_an_edge_is_seen_from_both_ends():
    edges = tokens_of([("a", "a"), ("b", "b")], [(0, "inside", 1)], aspect=1.0).edges
    half = (EDGE_FEATURES - 1) // 2
    assert torch.equal(edges[0, 1, :half], edges[1, 0, half:-1])
    assert not torch.equal(edges[0, 1, :half], edges[1, 0, :half])


def test_twins_are_told_apart():
    tokens = tokens_of([("a dog", "dog")] * 3, [], aspect=1.0)
    assert tokens.twins[:, 0].tolist() == [0.0, 0.5, 1.0]
