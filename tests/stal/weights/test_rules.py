"""Both rules by hand, and the weights that calls begin from."""

import math

import pytest
import torch

from stal.weights import as_weights, check_weights, default_weights, weight_maps

# Two objects on a row of four pixels: the first alone, both, the second at half, neither.
MASKS = torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[0.0, 0.5, 0.5, 0.0]]])
LAM = torch.tensor([2.0, -4.0])


def close(a, b):
    torch.testing.assert_close(a, torch.tensor(b, dtype=a.dtype), rtol=0, atol=1e-6)


def test_guidance_moves_away_from_the_unconditional_half():
    maps = weight_maps(MASKS, LAM)
    close(maps.weight, [[1, 1, 1, 1], [2, 2, 0, 0], [0, -2, -2, 0]])
    close(maps.unconditional, [2, 0, -2, 0])


def test_guidance_moves_away_from_a_prompt():
    maps = weight_maps(MASKS, LAM, reference_is_prompt=True)
    close(maps.weight, [[1, 1, 1, 1], [2, 2, 0, 0], [0, -2, -2, 0], [-2, 0, 2, 0]])
    assert maps.unconditional is None


def test_background_is_pulled_from_the_global_prompt_to_the_reference():
    # Coverage 1, 1.5, 0.5, 0 leaves 0, 0, 0.5, 1; the mean weight is 2.
    maps = weight_maps(MASKS, torch.tensor([3.0, 1.0]), reference_is_prompt=True, background=0.25)
    close(maps.weight[0], [1, 1, 0.75, 0.5])
    close(maps.weight[1:3], [[3, 3, 0, 0], [0, 0.5, 0.5, 0]])
    close(maps.weight[3], [-3, -3.5, 0.25 - 0.5, 0.5])
    local = [[True, True, False, False], [False, True, True, False]]
    assert maps.region.tolist() == [[True] * 4, *local, [True] * 4]


@pytest.mark.parametrize("background", [0.0, 0.7])
def test_guidance_weights_of_a_pixel_sum_to_one_with_the_reference(background):
    maps = weight_maps(MASKS, LAM, reference_is_prompt=True, background=background)
    close(maps.weight.sum(0), [1, 1, 1, 1])
    maps = weight_maps(MASKS, LAM)
    close(maps.weight.sum(0) - maps.unconditional, [1, 1, 1, 1])


def test_convex_by_hand():
    # s = 0.8, 0.8 + 0.45, 0.45, 0: only the second pixel is divided.
    maps = weight_maps(MASKS, torch.tensor([0.8, 0.9]), rule="convex")
    close(maps.weight[0], [0.2, 0, 0.55, 1])
    close(maps.weight[1], [0.8, 0.8 / 1.25, 0, 0])
    close(maps.weight[2], [0, 0.45 / 1.25, 0.45, 0])
    assert maps.unconditional is None


def test_convex_weights_are_a_convex_combination():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(5, 7, 9, generator=generator)
    weight = weight_maps(masks, torch.rand(5, generator=generator), rule="convex").weight
    assert weight.min() > -1e-6
    close(weight.sum(0), [1.0] * 63)


@pytest.mark.parametrize("lam", [(2.0, -4.0), (0.0, 0.0), (1.0, 1.0)], ids=str)
@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({}, []),
        ({"reference_is_prompt": True}, [[True, True, True, False]]),
        ({"rule": "convex"}, []),
    ],
    ids=["unconditional", "prompt", "convex"],
)
def test_regions_are_where_masks_are_whatever_the_weights(lam, options, reference):
    maps = weight_maps(MASKS, torch.tensor(lam), **options)
    local = [[True, True, False, False], [False, True, True, False]]
    assert maps.region.tolist() == [[True] * 4, *local, *reference]


def test_a_pixel_of_least_coverage_is_in_the_region():
    masks = torch.full((1, 1, 1), torch.finfo(torch.float32).tiny)
    assert bool(weight_maps(masks, torch.zeros(1)).region.all())


@pytest.mark.parametrize(
    "options", [{}, {"reference_is_prompt": True}, {"rule": "convex"}], ids=str
)
def test_no_objects_leave_the_global_prompt(options):
    maps = weight_maps(torch.zeros(0, 2, 3), torch.zeros(0), **options)
    close(maps.weight[0], [1.0] * 6)
    assert not maps.weight[1:].any()
    assert maps.region[0].all()
    assert not maps.region[1:].any()


@pytest.mark.parametrize(
    ("lam", "options"),
    [
        ((2.0, -4.0), {}),
        ((2.0, -4.0), {"reference_is_prompt": True}),
        ((2.0, -4.0), {"reference_is_prompt": True, "background": 0.7}),
        ((0.0, 0.0), {}),
        ((0.8, 0.9), {"rule": "convex"}),
        ((0.3, 0.4), {"rule": "convex"}),
    ],
    ids=str,
)
def test_gradients_reach_lam(lam, options):
    def maps(lam):
        out = weight_maps(MASKS.double(), lam, **options)
        return (out.weight,) if out.unconditional is None else (out.weight, out.unconditional)

    lam = torch.tensor(lam, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(maps, (lam,))
    gradient = torch.autograd.grad(maps(lam)[0][1:3].sum(), lam)[0]
    assert bool((gradient != 0).all())


@pytest.mark.parametrize(
    ("masks", "lam"),
    [((2, 3), (2,)), ((2, 1, 4), (3,)), ((2, 1, 4), (2, 1))],
    ids=["flat masks", "another count", "lam in time"],
)
def test_maps_of_other_shapes_are_refused(masks, lam):
    with pytest.raises(ValueError, match=r"masks must be \(objects, height, width\)"):
        weight_maps(torch.zeros(masks), torch.zeros(lam))


@pytest.mark.parametrize(
    ("background", "options", "message"),
    [
        (-0.1, {"reference_is_prompt": True}, "background must be a finite number >= 0, got -0.1"),
        (math.nan, {"reference_is_prompt": True}, "background must be a finite number"),
        (math.inf, {"reference_is_prompt": True}, "background must be a finite number"),
        (0.5, {}, "background must be 0 unless .* the reference a prompt, .* got 0.5"),
        (0.5, {"rule": "convex"}, "background must be 0 unless the rule is guidance"),
    ],
    ids=str,
)
def test_background_without_a_description_is_refused(background, options, message):
    with pytest.raises(ValueError, match=message):
        weight_maps(MASKS, LAM, background=background, **options)


def test_no_objects_have_no_background():
    maps = weight_maps(
        torch.zeros(0, 2, 3), torch.zeros(0), reference_is_prompt=True, background=1.0
    )
    close(maps.weight, [[1.0] * 6, [0.0] * 6])


def test_unknown_names_are_refused():
    for call in (
        lambda: weight_maps(MASKS, LAM, rule="concave"),
        lambda: default_weights(2, 2, rule="concave"),
        lambda: check_weights(torch.zeros(2, 2), rule="concave"),
        lambda: as_weights([1.0], steps=1, objects=1, rule="concave"),
    ):
        with pytest.raises(ValueError, match="rule must be one of guidance, convex, got 'concave'"):
            call()
    with pytest.raises(ValueError, match="mode must be one of plain, spatial, spatial-temporal"):
        default_weights(2, 2, mode="temporal")


@pytest.mark.parametrize(
    ("options", "column"),
    [
        ({"mode": "plain"}, [0, 0, 0, 0, 0]),
        ({}, [1.15, 0.8625, 0.575, 0.2875, 0]),
        ({"reference_is_prompt": True}, [1.15, 0.8625, 0.575, 0.2875, 0]),
        ({"rule": "convex"}, [1, 0.75, 0.5, 0.25, 0]),
        ({"mode": "spatial"}, [2.5] * 5),
        ({"mode": "spatial", "reference_is_prompt": True}, [0.8] * 5),
        ({"mode": "spatial", "rule": "convex"}, [0.7] * 5),
    ],
    ids=str,
)
def test_default_weights(options, column):
    weights = default_weights(5, 2, **options)
    assert weights.dtype == torch.float32
    close(weights, [[value] * 2 for value in column])


def test_default_weights_of_one_step_and_of_no_objects():
    close(default_weights(1, 2), [[1.15, 1.15]])
    close(default_weights(2, 1), [[0.4], [0]])
    close(default_weights(2, 4), [[1.525] * 4, [0] * 4])
    assert default_weights(3, 0, mode="spatial").shape == (3, 0)


@pytest.mark.parametrize(("steps", "objects"), [(0, 1), (-1, 1), (1, -1)])
def test_default_weights_refuse_impossible_sizes(steps, objects):
    with pytest.raises(ValueError, match=f"got {steps} and {objects}"):
        default_weights(steps, objects)


def test_weights_of_objects_are_constant_in_time():
    close(as_weights([1.0, 2.0], steps=3, objects=2), [[1, 2]] * 3)
    # As many steps as objects are no ambiguity.
    close(as_weights([1.0, 2.0], steps=2, objects=2), [[1, 2]] * 2)


def test_weights_of_steps_and_objects_stay():
    given = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    close(as_weights(given, steps=2, objects=2), given.tolist())
    assert as_weights([], steps=2, objects=0).shape == (2, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_keep_the_callers_gradient(dtype):
    given = torch.tensor([1.0, 2.0], dtype=dtype, requires_grad=True)
    weights = as_weights(given, steps=3, objects=2)
    assert weights.dtype == torch.float32
    weights.sum().backward()
    close(given.grad, [3, 3])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"\(steps, objects\) = \(3, 2\) or \(objects,\) = \(2,\), got \(1,\)"),
        ([[1.0, 1.0]], r"got \(1, 2\)"),
        (1.0, r"got \(\)"),
        (torch.zeros(3, 2, 1), r"got \(3, 2, 1\)"),
        ([[1.0], [1.0, 2.0]], r"lists of numbers, got \[\[1.0\], \[1.0, 2.0\]\]"),
        ("1,1", "lists of numbers, got '1,1'"),
        (["a", "b"], "lists of numbers"),
        (None, "lists of numbers, got None"),
        ([1.0, math.nan], "finite, got nan at step 0, object 1"),
        ([[1, 1], [1, math.inf], [1, 1]], "finite, got inf at step 1, object 1"),
        ([1e39, 1.0], "finite, got inf at step 0, object 0"),
    ],
    ids=str,
)
def test_other_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=f"weights must be .*{message}"):
        as_weights(weights, steps=3, objects=2)


@pytest.mark.parametrize("value", [1.5, -0.25, math.nan])
def test_convex_weights_outside_the_unit_interval_are_refused(value):
    with pytest.raises(ValueError, match=rf"in \[0, 1\] .* got {value} at step 0, object 1"):
        as_weights([1.0, value], steps=3, objects=2, rule="convex")
    as_weights([0.0, 1.0], steps=3, objects=2, rule="convex")
