"""The tiny pipelines are fit to test with: alike each time, and their prompts matter."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_map

from .dits import ARGUMENTS, BUILDERS, t5_encoder, t5_tokenizer, umt5_encoder

PROMPTS = ["a red cube left of a dragon", "a photograph of the white castle"]

# Keys and channels of a head in the attention to the text.
SIZES = {
    "pixart_alpha": (120, 72),
    "pixart_sigma": (300, 72),
    "sana": (300, 112),
    "sana_sprint": (300, 112),
    "hunyuan_dit": (77 + 256, 88),
    "ltx": (128, 64),
    "ltx_image_to_video": (128, 64),
    "ltx2": (1024, 128),
    "ltx2_3": (1024, 128),
}


@pytest.fixture(scope="module", params=BUILDERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pipe(name: str) -> Any:
    return BUILDERS[name]()


def _draw(pipe: Any, name: str, prompt: str | list[str], **changes: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    arguments = {"output_type": "pt", "return_dict": False} | ARGUMENTS[name] | changes
    return torch.as_tensor(pipe(prompt=prompt, generator=generator, **arguments)[0]).float()


def _cross(pipe: Any) -> list[nn.Module]:
    """All modules that attend to the text; of LTX-2 those of the sound too."""
    modules = [m for key, m in pipe.transformer.named_modules() if key.endswith("attn2")]
    assert len(modules) >= 2
    return modules


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[tuple[torch.Tensor, int]]]:
    """attended(pipe): a list to which calls of the pipe add (probabilities, head_dim)."""
    original = functional.scaled_dot_product_attention

    def record(pipe: Any) -> list[tuple[torch.Tensor, int]]:
        inside: list[nn.Module] = []
        found: list[tuple[torch.Tensor, int]] = []
        for module in _cross(pipe):
            module.register_forward_pre_hook(lambda m, _: inside.append(m))
            module.register_forward_hook(lambda m, *_: inside.remove(m))

        def attention(query, key, value, attn_mask=None, *rest, **options):
            if inside:
                scores = query @ key.mT / math.sqrt(query.shape[-1])
                scores = scores if attn_mask is None else scores + attn_mask
                found.append((scores.softmax(-1), query.shape[-1]))
            return original(query, key, value, attn_mask, *rest, **options)

        monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)
        return found

    return record


def test_two_builds_are_equal(name: str, pipe: Any) -> None:
    other = BUILDERS[name]()
    assert pipe.components.keys() == other.components.keys()
    for key, component in pipe.components.items():
        if isinstance(component, nn.Module):
            ours, theirs = component.state_dict(), other.components[key].state_dict()
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[k], theirs[k]) for k in ours), key
        elif "tokenizer" in key and component is not None:
            assert component(PROMPTS).input_ids == other.components[key](PROMPTS).input_ids


def test_building_leaves_the_random_state(name: str) -> None:
    before = torch.get_rng_state()
    BUILDERS[name]()
    assert torch.equal(torch.get_rng_state(), before)


def test_umt5_reads_what_t5_does() -> None:
    tokenizer = t5_tokenizer()
    tokens = tokenizer(PROMPTS, padding="max_length", max_length=512, return_tensors="pt")
    assert tokens.attention_mask.sum(-1).min() > 4
    for encoder in (t5_encoder(tokenizer), umt5_encoder(tokenizer)):
        with torch.no_grad():
            states = encoder(**tokens)[0]
        assert states.shape[:2] == (2, 512)
        assert _relative(states[0, :4], states[1, :4]) > 0.2


def test_no_part_is_hidden_by_zeros(pipe: Any) -> None:
    """A modulation, gate or bias of zeros would let a test pass that leaves it out."""
    assert not [key for key, value in pipe.transformer.named_parameters() if not value.any()]


def test_picture_follows_the_prompt(name: str, pipe: Any) -> None:
    pictures = [_draw(pipe, name, prompt) for prompt in PROMPTS]
    assert torch.equal(pictures[0], _draw(pipe, name, PROMPTS[0]))
    assert all(0.15 < picture.std() < 0.5 for picture in pictures)
    assert (pictures[0] - pictures[1]).abs().mean() > 0.05


def test_the_text_comes_through_cross_attention(name: str, pipe: Any) -> None:
    """With the texts of a batch exchanged where attention reads them, other latents come out."""
    plain = _draw(pipe, name, PROMPTS, output_type="latent")

    def exchanged(module: nn.Module, args: tuple, given: dict[str, Any]) -> tuple:
        texts = {
            key: value.flip(0)
            for key, value in given.items()
            if key in ("encoder_hidden_states", "attention_mask") and value is not None
        }
        return args, given | texts

    hooks = [m.register_forward_pre_hook(exchanged, with_kwargs=True) for m in _cross(pipe)]
    try:
        other = _draw(pipe, name, PROMPTS, output_type="latent")
    finally:
        for hook in hooks:
            hook.remove()
    assert torch.equal(_draw(pipe, name, PROMPTS, output_type="latent"), plain)
    assert _relative(other, plain) > 0.1


def test_attention_is_of_the_real_size_and_not_uniform(name: str, attended: Any) -> None:
    pipe = BUILDERS[name]()
    found = attended(pipe)
    _draw(pipe, name, PROMPTS[0])
    assert len(found) >= 2 * len(_cross(pipe))
    for index, (probabilities, head_dim) in enumerate(found):
        # Where there is guidance the text is the second half; the empty one may have one key.
        text = probabilities[-1]
        assert text.shape[-1] == SIZES[name][0]
        assert head_dim == SIZES[name][1] // (2 if "ltx2" in name and index % 2 else 1)
        keys = (text > 1e-12).sum(-1)
        assert keys.min() > 4
        assert (text.amax(-1) * keys).mean() > 2
        # Nor is it a choice of one key, nor the same for all pixels.
        assert text.amax(-1).median() < 0.95
        assert (text - text.mean(-2, keepdim=True)).abs().sum(-1).mean() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bf16", "fp64"])
def test_other_dtypes_are_the_same_model(name: str, pipe: Any, dtype: torch.dtype) -> None:
    other = BUILDERS[name](dtype=dtype)
    calls: list[tuple[tuple, dict[str, Any], torch.Tensor]] = []
    other.transformer.register_forward_hook(
        lambda _, args, given, out: calls.append((args, given, out[0])), with_kwargs=True
    )
    assert _draw(other, name, PROMPTS[0]).isfinite().all()
    args, given, out = calls[0]
    assert out.dtype == dtype
    args, given = tree_map(
        lambda x: x.float() if torch.is_tensor(x) and x.is_floating_point() else x, (args, given)
    )
    with torch.no_grad():
        expected = pipe.transformer(*args, **given)[0]
    # What random weights make of rounding, not a precision: other weights are off by 1 and more.
    assert _relative(out.float(), expected) < (0.2 if dtype == torch.bfloat16 else 1e-3)
