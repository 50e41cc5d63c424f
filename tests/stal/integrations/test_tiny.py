"""The tiny parts themselves: equal each time, and a tokenizer that knows its words."""

import pytest
import torch

from tests.stal.integrations import tiny


def test_known_words_are_one_token_each_and_prompts_are_padded_to_77():
    tokens = tiny.tokenizer()
    assert len(tokens("a red circle").input_ids) == 2 + 3
    assert len(tokens("a red knight").input_ids) > 2 + 3
    padded = tokens("a red circle", padding="max_length").input_ids
    assert padded == [*tokens("a red circle").input_ids, *[tokens.eos_token_id] * 72]


def test_the_second_tokenizer_of_xl_pads_with_an_exclamation_mark():
    tokens = tiny.tokenizer(pad="!")
    padded = tokens("a red circle", padding="max_length").input_ids
    assert padded[4] == tokens.eos_token_id
    assert tokens.convert_ids_to_tokens(padded[5:]) == ["!"] * 72


@pytest.mark.parametrize("name", tiny.SCHEDULERS)
def test_schedulers_have_the_noise_levels_of_stable_diffusion(name):
    scheduler = tiny.scheduler(name, prediction_type="v_prediction")
    scheduler.set_timesteps(4)
    assert scheduler.config.prediction_type == "v_prediction"
    torch.testing.assert_close(scheduler.alphas_cumprod[-1].item(), 0.0047, atol=1e-4, rtol=0)


def test_seeds_leave_the_random_numbers_of_the_caller_alone():
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    with tiny.seeded(5):
        first = torch.randn(3)
    assert torch.equal(torch.randn(3), expected)
    with tiny.seeded(5):
        assert torch.equal(torch.randn(3), first)
