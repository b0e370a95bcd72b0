"""Stretched rotary frequencies against transformers' formulas, and the switch between short and long texts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tune.errors import ConfigError, GenerationError
from tune.modules import (
    DecoderConfig,
    DynamicScaling,
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
    "yarn-two-scales": (
        YarnScaling(4.0, ORIGINAL, mscale=0.7, mscale_all_dim=1.4),
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": ORIGINAL,
            "mscale": 0.7,
            "mscale_all_dim": 1.4,
        },
    ),
    # Bounds in the wrong order make the blend fall, there as here.
    "yarn-backwards": (
        YarnScaling(4.0, ORIGINAL, beta_fast=0.2, beta_slow=5.0, truncate=False),
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": ORIGINAL,
            "beta_fast": 0.2,
            "beta_slow": 5.0,
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


@pytest.mark.parametrize("length", [1, 95, 96, 97, 300])
def test_frequencies_that_follow_the_length_are_the_reference_s(length: int) -> None:
    config = LlamaConfig(
        hidden_size=2 * HEAD_DIM,
        num_attention_heads=2,
        max_position_embeddings=96,
        rope_parameters={"rope_type": "dynamic", "rope_theta": BASE, "factor": 3.0},
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS["dynamic"](
        config, torch.device("cpu"), seq_len=torch.tensor(length)
    )
    assert factor == 1.0
    positions = torch.arange(length)[None]
    angles = positions[0, :, None].float() * frequencies
    for text_len in (None, length):
        cos, sin = turned(DynamicScaling(3.0, 96), positions, text_len)
        torch.testing.assert_close(cos, angles.cos(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sin, angles.sin(), rtol=1e-4, atol=1e-4)
    assert torch.equal(turned(DynamicScaling(3.0, 96), positions)[0], turned(None, positions)[0]) == (
        length <= 96
    )


def small_decoder(scaling: RopeScaling) -> TransformerDecoder:
    torch.manual_seed(3)
    config = DecoderConfig(31, 2, 2, 1, 20, HEAD_DIM, 22, 96, rope_base=BASE, rope_scaling=scaling)
    model = TransformerDecoder(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    return model


@pytest.mark.parametrize("parts", [(3, *[1] * 25), (20, 8), (ORIGINAL, 4), (28,), (23, 1, 1, 3)])
@torch.no_grad()
def test_caches_are_read_anew_where_a_text_becomes_long(parts: tuple[int, ...]) -> None:
    model = small_decoder(LongRopeScaling(SHORT, LONG, ORIGINAL))
    tokens = torch.randint(0, 31, (2, 28))
    model.setup_caches(2, 40)
    start = 0
    for length in parts:
        found = model(tokens[:, start : start + length])
        start += length
        cache, model._cache = model._cache, None
        expected = model(tokens[:, :start])[:, -length:]
        model._cache = cache
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_mask_of_one_s_own_cannot_cross() -> None:
    model = small_decoder(LongRopeScaling(SHORT, LONG, ORIGINAL))
    model.setup_caches(1, 40)
    model(torch.zeros(1, ORIGINAL, dtype=torch.long))
    mask = torch.ones(1, 1, ORIGINAL + 1, dtype=torch.bool)
    with pytest.raises(GenerationError, match="masks of earlier calls are not kept"):
        model(torch.zeros(1, 1, dtype=torch.long), mask=mask)


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
        (YarnScaling(2.0, 64, mscale=-1.0), "mscale is -1.0"),
        (DynamicScaling(0.5, 64), "factor is 0.5; it must be at least 1"),
        (LongRopeScaling(SHORT[1:], LONG, ORIGINAL), "short_factors has 7 entries"),
        (LongRopeScaling(SHORT, (0.0, *LONG[1:]), ORIGINAL), "long_factors must be above 0"),
    ],
)
def test_impossible_settings_are_named(scaling: RopeScaling, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DecoderConfig(31, 2, 2, 1, 20, HEAD_DIM, 22, 96, rope_scaling=scaling)
