"""Baselines: off they are the plain model; on they do what their papers say."""

from dataclasses import replace

import pytest
import torch

from stal.evaluation import methods
from stal.evaluation.baselines import attend_and_excite as excite
from stal.evaluation.baselines import boxdiff as box
from stal.evaluation.baselines.attend_and_excite import attend_and_excite
from stal.evaluation.baselines.boxdiff import boxdiff
from stal.evaluation.baselines.composable import composable
from stal.evaluation.baselines.denoiser import Denoiser, plain_drawing
from stal.evaluation.baselines.latents import (
    RELEASED,
    SMALL,
    Descent,
    attention_maps,
    default_descent,
    default_side,
    descend,
    moving,
    token_maps,
)
from stal.evaluation.baselines.multidiffusion import multidiffusion
from stal.evaluation.baselines.structured import structured
from stal.evaluation.baselines.tokens import named_in, noun_token, token_span
from stal.evaluation.methods import METHODS, draw
from stal.layout import Layout, PlacedObject, masks, place
from stal.pipeline import Pipeline
from stal.prompts import parse
from stal.sampler import SAMPLERS
from stal.settings import Settings

ONE = "a green star on a white background"
TWO = "a red circle to the left of a blue square"
NONE = "an empty scene"
FAST = Settings(steps=3)
NEVER = Descent(size=0.0)
OFF = {
    "composable": (composable, {"parts": 0.0, "whole": 1.0}),
    "structured": (structured, {"strength": 0.0}),
    "attend-and-excite": (attend_and_excite, {"descent": NEVER}),
    "multidiffusion": (multidiffusion, {"strength": 0.0}),
    "boxdiff": (boxdiff, {"descent": NEVER}),
}
BASELINES = tuple(OFF)
BY_CLIP = ("online", "trajectory", "trajectory-8", "trajectory-released")
# Sampler, eta, step. dpm++2m remembers the step before, which another start does not share.
MOVED = [
    *((name, 0.0, 0) for name in SAMPLERS if name != "plms"),
    *((name, 0.0, 2) for name in ("ddim", "euler", "euler-ancestral")),
    ("ddim", 1.0, 0),
    ("ddim", 1.0, 2),
]


def latents(results):
    return torch.cat([result.latents for result in results])


def arguments(prompts, settings=FAST, seeds=None):
    return {
        "prompts": prompts,
        "layouts": [place(parse(prompt)) for prompt in prompts],
        "seeds": seeds or [7 + i for i in range(len(prompts))],
        "settings": settings,
    }


@pytest.fixture(autouse=True)
def no_clip_of_the_model(clip, monkeypatch):
    """The tiny models have none, and this one's features are as exact as its pixels."""
    own = methods._clip
    monkeypatch.setattr(methods, "_clip", lambda pipe: clip if pipe.model.name else own(pipe))


@pytest.fixture(scope="module")
def exact(sd_folder) -> Pipeline:
    return Pipeline.from_pretrained(sd_folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def xl_pipe(xl_folder) -> Pipeline:
    return Pipeline.from_pretrained(xl_folder)


@pytest.mark.parametrize("guidance_scale", [3.0, 1.0], ids="guidance {}".format)
@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_of_strength_0_is_the_plain_model(exact, name, guidance_scale):
    method, off = OFF[name]
    given = arguments([TWO, ONE], replace(FAST, guidance_scale=guidance_scale))
    plain = latents(METHODS["plain"](exact, **given))
    torch.testing.assert_close(latents(method(exact, **given, **off)), plain, rtol=0, atol=1e-12)
    assert (latents(method(exact, **given)) - plain).abs().amax((1, 2, 3))[0] > 1e-3


@pytest.mark.parametrize("name", BASELINES)
def test_a_prompt_without_objects_is_the_plain_model(exact, name):
    given = arguments([NONE])
    plain = latents(METHODS["plain"](exact, **given))
    torch.testing.assert_close(latents(METHODS[name](exact, **given)), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_a_picture_does_not_depend_on_the_prompts_beside_it(exact, name):
    prompts, seeds, few = [TWO, NONE, ONE], [3, 4, 5], replace(FAST, steps=2)
    together = latents(draw(name, exact, **arguments(prompts, few, seeds=seeds)))
    alone = [
        latents(draw(name, exact, **arguments([prompt], few, seeds=[seed])))
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    # Weights are float32, and those that CLIP chose are as exact.
    atol = 1e-5 if name in BY_CLIP else 1e-10
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=atol)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_starts_from_the_noise_of_the_seed(pipe, name, monkeypatch):
    first = {}

    def stop(self, sample, *args, **options):
        # Some ask about several texts at once, of the same latents.
        first["x"] = sample.unique(dim=0)
        raise StopIteration

    monkeypatch.setattr("stal.model.unet.UNet.forward", stop)
    settings = replace(FAST, sampler="ddim")
    given = arguments([TWO], settings, seeds=[11])
    # In front of a plain colour latents are others where the object is not.
    if name == "multidiffusion":
        given["layouts"] = [Layout(TWO, (PlacedObject("a red circle", "circle", (0, 0, 1, 1)),))]
    with pytest.raises(StopIteration):
        METHODS[name](pipe, **given)
    drawn = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(11))
    assert torch.equal(first["x"], drawn)


# What only hands the layout on with its results.
BLIND_TO_LAYOUTS = {
    "plain",
    "composable",
    "composable-released",
    "structured",
    "attend-and-excite",
    "temporal",
}


@pytest.mark.parametrize("name", METHODS)
def test_layouts_move_the_objects_of_those_that_look(pipe, name):
    given = arguments([TWO])
    mirrored = Layout(
        TWO,
        tuple(
            replace(o, box=(1 - o.box[2], o.box[1], 1 - o.box[0], o.box[3]))
            for o in given["layouts"][0].objects
        ),
    )
    results = [
        draw(name, pipe, **given | {"layouts": [layout]})
        for layout in (given["layouts"][0], mirrored)
    ]
    same = torch.equal(latents(results[0]), latents(results[1]))
    assert same == (name in BLIND_TO_LAYOUTS)
    assert results[1][0].layout == mirrored


@pytest.mark.parametrize("name", METHODS)
def test_xl_is_drawn(xl_pipe, name):
    (result,) = draw(name, xl_pipe, **arguments([TWO], replace(FAST, steps=2)))
    assert result.latents.isfinite().all()
    assert result.settings["method"] == name


@pytest.mark.parametrize("name", BASELINES)
def test_xl_of_strength_0_is_the_plain_model(xl_pipe, name):
    method, off = OFF[name]
    given = arguments([TWO], replace(FAST, steps=2))
    plain = latents(METHODS["plain"](xl_pipe, **given))
    torch.testing.assert_close(latents(method(xl_pipe, **given, **off)), plain, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_the_bundled_model_is_drawn(name):
    settings = Settings(steps=2)
    (result,) = draw(name, Pipeline.from_pretrained(), **arguments([TWO], settings))
    assert result.images[0].size == (64, 64)
    assert result.settings["prompt"] == TWO


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["multidiffusion", "boxdiff"])
def test_half_precision_is_drawn(sd_folder, name, dtype):
    half = Pipeline.from_pretrained(sd_folder, dtype=dtype)
    (result,) = draw(name, half, **arguments([TWO], replace(FAST, steps=2)))
    assert result.latents.dtype == dtype
    assert result.latents.isfinite().all()


@pytest.mark.parametrize("method", ["nonsense", ""], ids=repr)
def test_an_unknown_method_is_refused(pipe, method):
    with pytest.raises(ValueError, match=r"method must be one of plain, composable, .* got "):
        draw(method, pipe, **arguments([TWO]))


@pytest.mark.parametrize("name", METHODS)
def test_several_images_a_prompt_are_refused(pipe, name):
    given = arguments([TWO], replace(FAST, num_images=2), seeds=[1, 2])
    with pytest.raises(ValueError, match=r"settings.num_images must be 1, got 2"):
        draw(name, pipe, **given)


def test_composable_is_the_sum_of_its_parts(exact):
    """e_0 + g sum_i (e_i - e_0), each prediction by the plain model."""
    drawing = plain_drawing(exact, **arguments([TWO]))
    denoiser = Denoiser(drawing.model, drawing.settings, ["a red circle", "a blue square"])
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    got = denoiser.composed(x, 500, [0, 0], [1, 2], torch.ones(2, 1, 1, 1, dtype=torch.float64))
    e_0, first, second = (denoiser(x, 500, [row]) for row in range(3))
    scale = drawing.settings.guidance_scale
    torch.testing.assert_close(got, e_0 + scale * (first + second - 2 * e_0), rtol=0, atol=1e-12)


def test_structured_values_are_those_of_the_phrases_alone(exact, monkeypatch):
    """Against Algorithm 1: a softmax with the prompt's keys for each of the aligned values."""
    seen = []
    forward = type(exact.model.unet).forward

    def watch(self, sample, t, *args, attention):
        def check(name, q, module, height, width):
            out = attention(name, q, module, height, width)
            seen.append((name, module, q, out))
            return out

        return forward(self, sample, t, *args, attention=check)

    monkeypatch.setattr("stal.model.unet.UNet.forward", watch)
    structured(exact, **arguments([TWO], replace(FAST, steps=1)))
    whole, red, blue = exact.model.encode([TWO, "a red circle", "a blue square"])[0]
    # 0 is the start: a red circle to the left of a blue square
    tables = [whole, torch.cat([whole[:1], red[1:4], whole[4:]])]
    tables.append(torch.cat([whole[:8], blue[1:4], whole[11:]]))
    assert seen
    for _, module, q, out in seen:
        k = module.split_heads(module.to_k(whole)[None])
        a = (module.scale * q[1:] @ k.mT).softmax(-1)
        values = [module.split_heads(module.to_v(table)[None]) for table in tables]
        mean = sum(a @ v for v in values) / len(values)
        torch.testing.assert_close(out[1:], mean, rtol=0, atol=1e-12)


def test_multidiffusion_draws_each_box_by_its_own_phrase(exact):
    """One step without bootstrapping: inside a box as if the phrase were the whole prompt."""
    given = arguments([TWO], replace(FAST, steps=1))
    fused = latents(multidiffusion(exact, **given, bootstrap=0.0, background=ONE))
    boxes = masks(given["layouts"][0], 8, 8) >= 0.5
    regions = {ONE: ~boxes.any(0), "a red circle": boxes[0], "a blue square": boxes[1]}
    for text, region in regions.items():
        assert region.any()
        alone = latents(METHODS["plain"](exact, **given | {"prompts": [text]}))
        torch.testing.assert_close(fused[..., region], alone[..., region], rtol=0, atol=1e-12)


def test_multidiffusion_averages_where_boxes_overlap(exact):
    given = arguments([TWO], replace(FAST, steps=1))
    both = tuple(replace(o, box=(0, 0, 1, 1)) for o in given["layouts"][0].objects)
    given["layouts"] = [Layout(TWO, both)]
    fused = latents(multidiffusion(exact, **given, bootstrap=0.0))
    each = [
        latents(METHODS["plain"](exact, **given | {"prompts": [o.phrase], "layouts": [None]}))
        for o in both
    ]
    torch.testing.assert_close(fused, (each[0] + each[1]) / 2, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("sampler", "eta", "at"), MOVED, ids=str)
@torch.no_grad()
def test_moved_latents_go_on_as_if_the_sampler_had_moved_them(exact, sampler, eta, at):
    """Moved in one step to where another start led, they end where that one does."""
    settings = Settings(steps=4, sampler=sampler, eta=eta)
    drawing = plain_drawing(exact, **arguments([TWO], settings))
    mine, other = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64).unbind()
    options = {"eta": eta} if sampler == "ddim" else {}

    def sample(predict, x):
        generator = torch.Generator().manual_seed(5)
        return SAMPLERS[sampler](
            predict,
            x,
            drawing.schedule,
            noise=lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype),
            **options,
        )

    places = {}

    def watch(x, t, step):
        places[step] = x
        return drawing.predict(x, t, step)

    end = sample(watch, other)
    moved = moving(drawing, lambda x, t, step: places[at] if step == at else x)
    torch.testing.assert_close(sample(moved, mine), end, rtol=0, atol=1e-9)
    assert (sample(drawing.predict, mine) - end).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["attend-and-excite", "boxdiff"])
def test_plms_cannot_move_latents(pipe, name):
    with pytest.raises(ValueError, match="sampler must be another than plms"):
        draw(name, pipe, **arguments([TWO], replace(FAST, sampler="plms")))


@pytest.fixture(scope="module")
def looking(exact):
    """Both methods' losses of two prompts, as functions of the latents, and the drawing."""
    prompts = [TWO, "a green star above a pink ring"]
    given = arguments(prompts)
    drawing = plain_drawing(exact, **given)
    denoiser = Denoiser(drawing.model, drawing.settings, prompts)
    rows = [denoiser.rows[prompt] for prompt in prompts]
    options = {"sharpness": 100.0, "sigma": 0.5}

    def excited(x, t):
        maps = attention_maps(denoiser, x, t, rows, side=8)
        nouns = [excite.nouns_of(exact, prompt) for prompt in prompts]
        each = [excite.loss(a, n, **options) for a, n in zip(maps, nouns, strict=True)]
        return torch.stack(each), torch.stack(each)

    def boxed(x, t):
        maps = attention_maps(denoiser, x, t, rows, side=8)
        pairs = []
        for a, prompt, layout in zip(maps, prompts, given["layouts"], strict=True):
            tokens, boxes = zip(*box.tokens_and_boxes(exact, prompt, layout), strict=True)
            pairs.append(box.loss(token_maps(a, tokens, **options), boxes, top=0.2, corner=1))
        reach, total = zip(*pairs, strict=True)
        return torch.stack(reach), torch.stack(total)

    return {"attend-and-excite": excited, "boxdiff": boxed}, drawing


@pytest.mark.parametrize("name", ["attend-and-excite", "boxdiff"])
def test_a_small_move_lowers_every_images_loss_as_much_as_its_gradient_says(looking, name):
    losses, drawing = looking
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    tiny = Descent(size=1e-6, decay=1.0, thresholds=())
    y = descend(drawing, losses[name], tiny)(x, 900, 0)
    fall = (losses[name](x, 900)[1] - losses[name](y, 900)[1]).detach()
    expected = (x - y).square().sum((1, 2, 3)) / tiny.size
    assert (fall > 0).all()
    torch.testing.assert_close(fall, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["attend-and-excite", "boxdiff"])
def test_a_threshold_repeats_the_descent_of_the_images_below_it_alone(looking, name):
    losses, drawing = looking
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    reach = losses[name](x, 900)[0].detach()
    assert reach[0] != reach[1]
    between = 1 - float(reach.mean())
    short = int(reach.argmax())
    options = Descent(size=1e-6, share=0.0, thresholds=((0.0, between),), repeats=3)
    calls = []

    def counted(x, t):
        calls.append(t)
        return losses[name](x, t)

    y = descend(drawing, counted, options)(x, 900, 0)
    assert len(calls) == 3
    assert torch.equal(y[1 - short], x[1 - short])
    assert losses[name](y, 900)[0][short] < reach[short]
    # A threshold that all have reached moves nothing, nor does one of another step.
    met = replace(options, thresholds=((0.0, 0.0),))
    assert torch.equal(descend(drawing, losses[name], met)(x, 900, 0), x)
    assert torch.equal(descend(drawing, losses[name], options)(x, 600, 1), x)


def test_the_step_shrinks_with_the_root_and_ends_with_the_share(looking):
    _, drawing = looking
    x = torch.zeros(2, 4, 8, 8, dtype=torch.float64)

    def linear(x, t):
        total = x.sum((1, 2, 3))
        return total, total

    move = descend(drawing, linear, Descent(size=2.0, decay=0.5, share=0.6, thresholds=()))
    assert [float(-move(x, 0, step).mean()) for step in range(3)] == pytest.approx(
        [2, 2 * 0.75**0.5, 0]
    )


@pytest.mark.parametrize(("pixels", "descent", "side"), [(16, SMALL, 8), (128, RELEASED, 16)])
def test_constants_follow_the_size_of_the_latents(pipe, pixels, descent, side):
    settings = replace(FAST, height=pixels, width=pixels)
    drawing = plain_drawing(pipe, **arguments([TWO], settings))
    assert (default_descent(drawing), default_side(drawing)) == (descent, side)


def test_token_maps_smooth_what_tokens_share_among_themselves():
    maps = torch.rand(5, 6, 9, dtype=torch.float64) / 9
    got = token_maps(maps, [1, 4], sharpness=100.0, sigma=0.5)
    shared = (100 * maps[..., 1:-1]).softmax(-1)[..., [0, 3]]
    weights = torch.tensor([-1.0, 0.0, 1.0]).div(0.5).square().mul(-0.5).exp().double()
    weights /= weights.sum()
    for token in range(2):
        # Mirrored at the border without repeating it.
        for row, column in ((2, 3), (0, 0), (4, 5)):
            rows = [1 if r < 0 else 3 if r > 4 else r for r in (row - 1, row, row + 1)]
            columns = [1 if c < 0 else 4 if c > 5 else c for c in (column - 1, column, column + 1)]
            patch = shared[rows][:, columns, token]
            expected = (torch.outer(weights, weights) * patch).sum()
            torch.testing.assert_close(got[token, row, column], expected, rtol=0, atol=1e-7)


def test_boxdiff_losses_are_0_for_attention_that_fills_its_box():
    a = torch.zeros(1, 8, 8)
    a[0, 2:6, 4:8] = 1
    inside, outside = (0.5, 0.25, 1.0, 0.75), (0.0, 0.25, 0.5, 0.75)
    reach, total = box.loss(a, [inside], top=0.2, corner=1)
    assert reach == total == 0
    reach, total = box.loss(a, [outside], top=0.2, corner=1)
    # Nothing inside, 9 of the 48 cells outside are full; of 8 columns those 0, 1, 3 differ at the
    # box's left end and 3, 4, 5 at its right one; the rows are right.
    assert reach == 1
    assert total == pytest.approx(1 + 1 + 5 / 8)


@pytest.mark.parametrize(
    "bounds",
    [(0.0, 0.0, 1.0, 1.0), (0.51, 0.51, 0.52, 0.52), (0.999, 0.0, 1.0, 0.001)],
    ids=["whole", "point", "corner"],
)
def test_boxdiff_takes_boxes_of_any_size(bounds):
    a = torch.rand(1, 4, 4, requires_grad=True)
    _, total = box.loss(a, [bounds], top=0.2, corner=1)
    (grad,) = torch.autograd.grad(total, a)
    assert total.isfinite()
    assert grad.isfinite().all()


def test_tokens_of_a_phrase_are_its_words(pipe):
    tokenizer = pipe.model.components.tokenizer
    ids = tokenizer(TWO).input_ids
    spans = [o.span for o in parse(TWO).objects]
    words = [
        [tokenizer.decode(ids[i]).strip() for i in token_span(tokenizer, TWO, s)] for s in spans
    ]
    assert words == [["a", "red", "circle"], ["a", "blue", "square"]]
    assert [noun_token(tokenizer, TWO, span) for span in spans] == [3, 10]


def test_tokens_beyond_the_encoder_are_none(pipe):
    tokenizer = pipe.model.components.tokenizer
    text = ", ".join(["a red circle"] * 20)
    assert len(tokenizer(text).input_ids) > tokenizer.model_max_length == 40
    assert list(token_span(tokenizer, text, (len(text) - 12, len(text)))) == []
    assert noun_token(tokenizer, text, (len(text) - 12, len(text))) is None
    # Half of it is read, but not its noun: "<start>" and 9 phrases of 4 tokens with their commas.
    start = 9 * len("a red circle, ")
    cut = (start, start + 12)
    assert list(token_span(tokenizer, text, cut)) == [37, 38]
    assert noun_token(tokenizer, text, cut) is None


def test_objects_are_found_by_phrase_then_by_noun():
    prompt = "two red circles and the Big Ring"
    names = [("a red circle", "circle")] * 2 + [("an old ring", "ring")]
    items = [PlacedObject(phrase, noun, (0, 0, 1, 1)) for phrase, noun in names]
    spans = named_in(prompt, items)
    assert [prompt[slice(*s)] for s in spans] == ["two red circles"] * 2 + ["Ring"]
    with pytest.raises(ValueError, match="layout must have objects that the prompt names, got "):
        named_in(prompt, [PlacedObject("a dog", "dog", (0, 0, 1, 1))])
