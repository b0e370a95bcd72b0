"""Counted work against what torch counts while a step runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tune.modules import (
    DecoderConfig,
    GatedDeltaConfig,
    MoEConfig,
    ShortConvConfig,
    TransformerDecoder,
    flops_per_token,
)


def count_grouped(left: torch.Size, *others: torch.Size, out_shape: torch.Size, **_: Any) -> int:
    """Return two for each row of `left`, [n, o] or [n, i], and number of the matrix it meets, [o, i]."""
    o, i = out_shape[1:] if len(out_shape) == 3 else others[1][1:]
    return 2 * left[0] * o * i


GROUPED = {torch.ops.tune.grouped_matmul: count_grouped, torch.ops.tune.grouped_outer: count_grouped}


@pytest.mark.parametrize("is_tied", [False, True])
def test_the_formula_counts_what_a_step_does(is_tied: bool) -> None:
    config = DecoderConfig(97, 3, 6, 2, 40, 8, 56, 64, tie_word_embeddings=is_tied)
    model = TransformerDecoder(config)
    tokens = torch.randint(0, 97, (2, 29))
    # The plain backend multiplies the whole square of scores; the counter sees each product.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    counted = flops_per_token(config, 29, causal=False) * tokens.numel()
    # The first layer's input needs no gradient only for the embedding, which multiplies nothing.
    assert counter.get_total_flops() == pytest.approx(counted, rel=1e-6)


def test_causal_attention_is_half_of_the_square() -> None:
    config = DecoderConfig(97, 3, 6, 2, 40, 8, 56, 64)
    square = flops_per_token(config, 100, causal=False) - flops_per_token(config, 0)
    assert flops_per_token(config, 100) - flops_per_token(config, 0) == square / 2
    assert square == 12 * 3 * 6 * 8 * 100


@pytest.mark.parametrize("seq_len", [5, 16, 17, 400])
def test_a_window_bounds_what_a_query_sees(seq_len: int) -> None:
    window, num_layers, num_heads, head_dim = 16, 5, 6, 8
    config = DecoderConfig(97, num_layers, num_heads, 2, 40, head_dim, 56, 64)
    sliding = replace(config, sliding_window=window, sliding_layers=(0, 2, 3))
    spared = flops_per_token(config, seq_len) - flops_per_token(sliding, seq_len)
    # Counted query by query, in the middle of each step, as the half of the square is.
    seen = [index + 0.5 for index in range(seq_len)]
    bounded = sum(keys if keys < window else window for keys in seen)
    assert spared == pytest.approx(12 * 3 * num_heads * head_dim * (sum(seen) - bounded) / seq_len)
    square = flops_per_token(sliding, seq_len, causal=False) - flops_per_token(sliding, 0)
    assert square == 12 * num_heads * head_dim * (2 * seq_len + 3 * min(seq_len, window))


def test_of_experts_those_count_that_a_token_is_sent_to() -> None:
    moe = MoEConfig(num_experts=7, experts_per_token=3, intermediate_dim=24, dense_layers=(1,))
    config = DecoderConfig(97, 3, 6, 2, 40, 8, 56, 64, moe=moe)
    model = TransformerDecoder(config)
    tokens = torch.randint(0, 97, (2, 29))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=GROUPED) as counter:
        model(tokens).sum().backward()
    counted = flops_per_token(config, 29, causal=False) * tokens.numel()
    assert counter.get_total_flops() == pytest.approx(counted, rel=1e-6)
    wider = replace(config, moe=replace(moe, num_experts=70))
    router = 6 * 2 * 40 * 63
    assert flops_per_token(wider, 29) - flops_per_token(config, 29) == router


def test_a_state_is_counted_token_by_token() -> None:
    delta = GatedDeltaConfig((0, 2), 2, 6, 5, 7, conv_width=3)
    config = DecoderConfig(97, 3, 6, 2, 40, 8, 56, 64, delta=delta, attn_gate=True)
    model = TransformerDecoder(config)
    tokens = torch.randint(0, 97, (2, 29))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    # The counter does not look into the operator, nor at products of single numbers.
    state, convolution = 3 * 2 * 6 * 5 * 7, 2 * 3 * (2 * 2 * 5 + 6 * 7)
    unseen = 3 * 2 * (state + convolution) * tokens.numel()
    counted = flops_per_token(config, 29, causal=False) * tokens.numel()
    assert counter.get_total_flops() + unseen == pytest.approx(counted, rel=1e-6)
    assert config.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
    longer = flops_per_token(config, 130) - flops_per_token(config, 29)
    assert longer == 12 * 6 * 8 * (130 - 29) / 2  # of the one layer that attends


def test_a_gate_of_its_own_is_counted_without_bias() -> None:
    others = {"qk_norm": "scaleless", "embed_norm": True, "attn_bias": "all"}
    config = DecoderConfig(97, 3, 6, 2, 40, 8, 56, 64, attn_gate=True, attn_gate_apart=True, **others)
    model = TransformerDecoder(config)
    tokens = torch.randint(0, 97, (2, 29))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    counted = flops_per_token(config, 29, causal=False) * tokens.numel()
    assert counter.get_total_flops() == pytest.approx(counted, rel=1e-6)
    assert config.num_parameters() == sum(parameter.numel() for parameter in model.parameters())


def test_a_convolution_is_counted_channel_by_channel() -> None:
    config = DecoderConfig(97, 3, 6, 2, 40, 8, 56, 64, conv=ShortConvConfig((0, 2), 4))
    model = TransformerDecoder(config)
    tokens = torch.randint(0, 97, (2, 29))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    unseen = 3 * 2 * (2 * 40 * 4) * tokens.numel()
    counted = flops_per_token(config, 29, causal=False) * tokens.numel()
    assert counter.get_total_flops() + unseen == pytest.approx(counted, rel=1e-6)
    assert config.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
