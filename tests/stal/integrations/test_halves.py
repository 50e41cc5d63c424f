"""Rows of a batch are told apart by the prompts that they are."""

import pytest
import torch
from torch import Tensor

from stal.integrations.diffusers.halves import halves_of


def _prompts(count: int, *, tokens: int = 1024, width: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, tokens, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_rounding_does_not_make_another_prompt(dtype: torch.dtype) -> None:
    prompts = _prompts(2)
    # Two pictures of each, after the unconditional half.
    batch = torch.cat([_prompts(4, seed=1), prompts.repeat_interleave(2, 0)]).to(dtype)
    found = halves_of(batch, prompts)
    assert found is not None
    assert (found.conditional, found.images, found.prompts) == ((False, True), 2, 2)


def test_one_word_of_a_thousand_tokens_makes_another_prompt() -> None:
    prompts = _prompts(1)
    other = prompts.clone()
    other[0, 3] = _prompts(1, seed=1)[0, 3]
    found = halves_of(torch.cat([other, prompts]), prompts)
    assert found is not None
    assert found.conditional == (False, True)


def test_a_token_that_outweighs_all_others_does_not_hide_them() -> None:
    """Text encoders give the first token a norm that may be a hundred times the others'."""
    prompts = _prompts(1, tokens=77)
    prompts[:, 0] *= 1000
    other = _prompts(1, tokens=77, seed=1)
    other[:, 0] = prompts[:, 0]
    found = halves_of(torch.cat([other, prompts]), prompts)
    assert found is not None
    assert found.conditional == (False, True)


def test_tokens_of_zeros_are_alike() -> None:
    prompts = _prompts(1, tokens=77)
    prompts[:, 40:] = 0
    batch = torch.cat([_prompts(1, tokens=77, seed=1), prompts]).to(torch.bfloat16)
    batch[1, 40:] += 1e-5
    found = halves_of(batch, prompts)
    assert found is not None
    assert found.conditional == (False, True)
    # An empty prompt all of zeros is not the prompt.
    found = halves_of(torch.cat([torch.zeros_like(prompts), prompts]), prompts)
    assert found is not None
    assert found.conditional == (False, True)


def test_a_batch_in_another_order_has_no_halves() -> None:
    prompts = _prompts(2)
    assert halves_of(prompts.flip(0), prompts) is None
    assert halves_of(torch.cat([prompts, prompts[:1]]), prompts) is None
