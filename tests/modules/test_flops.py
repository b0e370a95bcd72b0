"""Counted work against what torch counts while a step runs."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tune.modules import DecoderConfig, TransformerDecoder, flops_per_token


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
