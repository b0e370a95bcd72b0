"""Layers that see no further than a window: which keys count, packed, padded and with caches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tune.data import block_causal_mask
from tune.modules import DecoderConfig, TransformerDecoder

WINDOW, VOCAB = 5, 61
CONFIG = DecoderConfig(
    VOCAB, 3, 6, 2, 40, 8, 56, 64, sliding_window=WINDOW, sliding_layers=(0, 2), local_rope_base=300.0
)
CAPPED = replace(CONFIG, attn_softcap=1.5, final_softcap=2.0, norm_placement="both", norm_offset=1.0)


def model_of(config: DecoderConfig) -> TransformerDecoder:
    torch.manual_seed(6)
    model = TransformerDecoder(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.05, std=0.3)
    return model.eval()


def tokens_of(b: int, s: int) -> Tensor:
    return torch.randint(0, VOCAB, (b, s), generator=torch.Generator().manual_seed(b + s))


@pytest.mark.parametrize("config", [CONFIG, CAPPED], ids=["plain", "capped"])
def test_a_token_reaches_as_far_as_windows_and_layers_carry_it(config: DecoderConfig) -> None:
    only_windows = model_of(replace(config, sliding_layers=(0, 1, 2)))
    tokens = tokens_of(1, 29)
    changed = tokens.clone()
    changed[0, 3] = (changed[0, 3] + 1) % VOCAB
    with torch.no_grad():
        differs = (only_windows(tokens) != only_windows(changed)).any(-1)[0]
    # Each of three layers carries it WINDOW - 1 tokens further.
    assert differs.nonzero().flatten().tolist() == list(range(3, 3 + 3 * (WINDOW - 1) + 1))


@pytest.mark.parametrize("config", [CONFIG, CAPPED], ids=["plain", "capped"])
def test_rows_of_different_lengths_are_generated_as_each_alone(config: DecoderConfig) -> None:
    model, lengths, num_new = model_of(config), (11, 3, 7), 9
    tokens = tokens_of(3, max(lengths) + num_new)
    with torch.no_grad():
        alone = [model(tokens[row : row + 1, : length + num_new]) for row, length in enumerate(lengths)]
        model.setup_caches(3, max(lengths) + num_new)
        prompt = tokens[:, : max(lengths)].clone()
        for row, length in enumerate(lengths):
            prompt[row, length:] = 0  # pads on the right
        out = model(prompt)
        for row, length in enumerate(lengths):
            torch.testing.assert_close(out[row, :length], alone[row][0, :length], rtol=1e-4, atol=1e-4)
        for step in range(num_new):
            positions = torch.tensor(lengths)[:, None] + step
            out = model(tokens.gather(1, positions), input_pos=positions)
            for row, length in enumerate(lengths):
                torch.testing.assert_close(out[row, 0], alone[row][0, length + step], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [CONFIG, CAPPED], ids=["plain", "capped"])
def test_packed_documents_and_their_gradients_equal_each_alone(config: DecoderConfig) -> None:
    model, lengths = model_of(config), (13, 2, 8)
    tokens = tokens_of(1, sum(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = model(tokens, mask=block_causal_mask(positions), input_pos=positions)
    packed.square().sum().backward()
    together = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    alone = torch.cat([model(document) for document in tokens.split(lengths, 1)], 1)
    alone.square().sum().backward()
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)
    for (name, parameter), grad in zip(model.named_parameters(), together, strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-3, atol=1e-3, msg=name)


def test_a_text_within_the_window_needs_no_mask() -> None:
    model, full = model_of(CONFIG), model_of(replace(CONFIG, sliding_layers=(), sliding_window=None))
    seen: list[Tensor | None] = []
    for layer in model.layers:
        layer.attn.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    tokens = tokens_of(2, WINDOW)
    with torch.no_grad():
        out = model(tokens)
    assert seen == [None, None, None]
    # Only the base of the rotary frequencies tells the layers apart then.
    same_base = model_of(replace(CONFIG, local_rope_base=None))
    with torch.no_grad():
        torch.testing.assert_close(same_base(tokens), full(tokens))
    assert not torch.allclose(out, full(tokens), atol=1e-3)
