"""Stretched rotary frequencies against transformers' formulas, and the switch between short and long texts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tune.errors import ConfigError
from tune.modules import (
    DecoderConfig,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    RotaryEmbedding,
    TransformerDecoder,
    YarnScaling,
)

HEAD_DIM, BASE, ORIGINAL = 16, 700.0, 24
SHORT = tuple(1.0 + 0.1 * index for index in range(HEAD_DIM // 2))
LONG = tuple(1.5 + 0.7 * index for index in range(HEAD_DIM // 2))
PAIRS: dict[str, tuple[RopeScaling, dict[str, object]]] = {
    "linear": (LinearScaling(2.5), {"rope_type": "linear", "factor": 2.5}),
    "llama3": (
        Llama3Scaling(8.0, 1.0, 4.0, ORIGINAL),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": ORIGINAL,
        },
    ),
    "yarn": (
        YarnScaling(4.0, ORIGINAL),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    ),
    "yarn-fractional": (
        YarnScaling(4.0, ORIGINAL, beta_fast=5.0, beta_slow=0.4, magnitude=1.3, truncate=False),
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": ORIGINAL,
            "beta_fast": 5.0,
            "beta_slow": 0.4,
            "attention_factor": 1.3,
            "truncate": False,
        },
    ),
}


def turned(
    scaling: RopeScaling | None, positions: Tensor, text_len: int | None = None
) -> tuple[Tensor, Tensor]:
    cos, sin = RotaryEmbedding(HEAD_DIM, BASE, scaling)(positions, text_len)
    return cos[0, :, 0], sin[0, :, 0]


@pytest.mark.parametrize("case", PAIRS)
def test_frequencies_and_factors_equal_the_reference(case: str) -> None:
    scaling, theirs = PAIRS[case]
    config = LlamaConfig(
        hidden_size=2 * HEAD_DIM,
        num_attention_heads=2,
        max_position_embeddings=96,
        rope_parameters={**theirs, "rope_theta": BASE},
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[str(theirs["rope_type"])](config, torch.device("cpu"))
    positions = torch.tensor([[0, 1, 5, 40, 1000]])
    cos, sin = turned(scaling, positions)
    angles = positions[0, :, None].float() * frequencies
    torch.testing.assert_close(cos, angles.cos() * factor, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sin, angles.sin() * factor, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(cos, turned(None, positions)[0], atol=1e-2)


@pytest.mark.parametrize("length", [ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, 3 * ORIGINAL])
def test_long_texts_have_the_frequencies_of_the_reference(length: int) -> None:
    parameters = {
        "rope_type": "longrope",
        "rope_theta": BASE,
        "short_factor": list(SHORT),
        "long_factor": list(LONG),
    }
    config = Phi3Config(
        hidden_size=2 * HEAD_DIM,
        num_attention_heads=2,
        max_position_embeddings=96,
        original_max_position_embeddings=ORIGINAL,
        rope_parameters=parameters,
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"), seq_len=length)
    scaling = LongRopeScaling(SHORT, LONG, ORIGINAL, factor)
    positions = torch.arange(length)[None]
    angles = positions[0, :, None].float() * frequencies
    for text_len in (None, length):
        cos, sin = turned(scaling, positions, text_len)
        torch.testing.assert_close(cos, angles.cos() * factor, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sin, angles.sin() * factor, rtol=1e-5, atol=1e-5)


def test_the_length_of_the_text_decides_for_each_of_its_tokens() -> None:
    scaling = LongRopeScaling(SHORT, LONG, ORIGINAL)
    first = torch.tensor([[0, 1, 2]])
    short, long = turned(scaling, first, ORIGINAL)[0], turned(scaling, first, ORIGINAL + 1)[0]
    assert not torch.allclose(short, long, atol=1e-3)
    torch.testing.assert_close(short, turned(scaling, first)[0])
    together = torch.tensor([[0, 1, 2, ORIGINAL]])
    torch.testing.assert_close(long, turned(scaling, together)[0][:3])


@pytest.mark.parametrize("capacity", [ORIGINAL, 2 * ORIGINAL])
def test_the_size_of_the_cache_decides_so_that_steps_agree(capacity: int) -> None:
    torch.manual_seed(3)
    scaling = LongRopeScaling(SHORT, LONG, ORIGINAL)
    config = DecoderConfig(31, 2, 2, 1, 20, HEAD_DIM, 22, 96, rope_base=BASE, rope_scaling=scaling)
    model = TransformerDecoder(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    tokens = torch.randint(0, 31, (1, capacity))
    model.setup_caches(1, capacity)
    with torch.no_grad():
        pieces = [model(part) for part in tokens.split((3, *([1] * (capacity - 3))), 1)]
        model.delete_caches()
        # Without caches the largest position decides: here it is the last slot of the caches.
        torch.testing.assert_close(torch.cat(pieces, 1), model(tokens), rtol=1e-4, atol=1e-4)


def test_texts_that_are_counted_from_0_wait_for_no_device() -> None:
    scaling = LongRopeScaling(SHORT, LONG, ORIGINAL)
    config = DecoderConfig(31, 2, 2, 1, 20, HEAD_DIM, 22, 96, rope_base=BASE, rope_scaling=scaling)
    with torch.device("meta"):  # no value of a tensor can be asked for there
        logits = TransformerDecoder(config)(torch.zeros(2, 3 * ORIGINAL, dtype=torch.long))
    assert logits.shape == (2, 3 * ORIGINAL, 31)


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        (LinearScaling(0.0), "factor is 0.0"),
        (LinearScaling(float("nan")), "factor is nan"),
        (Llama3Scaling(8.0, 4.0, 4.0), "low_freq_factor is 4.0"),
        (YarnScaling(float("inf"), 64), "factor is inf"),
        (LongRopeScaling(SHORT[1:], LONG, ORIGINAL), "short_factors has 7 entries"),
        (LongRopeScaling(SHORT, (0.0, *LONG[1:]), ORIGINAL), "long_factors must be above 0"),
    ],
)
def test_impossible_settings_are_named(scaling: RopeScaling, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DecoderConfig(31, 2, 2, 1, 20, HEAD_DIM, 22, 96, rope_scaling=scaling)
