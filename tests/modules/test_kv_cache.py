"""Decoding with caches equals the full forward pass, however the text is cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tune.errors import GenerationError
from tune.modules import DecoderConfig, TransformerDecoder

B, S = 3, 11


@pytest.fixture(scope="module")
def model() -> TransformerDecoder:
    torch.manual_seed(6)
    built = TransformerDecoder(DecoderConfig(31, 3, 6, 2, 20, 8, 27, 64))
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.4)
    return built.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, 31, (B, S), generator=torch.Generator().manual_seed(1))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cuts", [(S,), (5, 1, 1, 1, 1, 1, 1), (1,) * S, (4, 3, 1, 3), (1, 10)])
@pytest.mark.parametrize("with_positions", [False, True])
def test_any_cut_of_the_text_gives_the_full_pass(
    model: TransformerDecoder, tokens: torch.Tensor, cuts: tuple[int, ...], with_positions: bool
) -> None:
    model.setup_caches(B, S + 2)
    positions = torch.arange(S).expand(B, S).split(cuts, 1)
    pieces = [
        model(piece, input_pos=position if with_positions else None)
        for piece, position in zip(tokens.split(cuts, 1), positions)
    ]
    model.delete_caches()
    close(torch.cat(pieces, 1), model(tokens))


def test_rows_of_different_lengths_decode_as_each_alone(
    model: TransformerDecoder, tokens: torch.Tensor
) -> None:
    lengths = torch.tensor([2, 6, 4])
    width = int(lengths.max())
    prompts = tokens[:, :width].where(torch.arange(width) < lengths[:, None], 30)  # padded on the right
    full = model(tokens)
    model.setup_caches(B, S)
    first = model(prompts, input_pos=torch.arange(width)[None])
    for row, length in enumerate(lengths.tolist()):
        close(first[row, :length], full[row, :length])
    for step in range(S - width):
        position = (lengths + step)[:, None]
        out = model(tokens.gather(1, position), input_pos=position)
        close(out[:, 0], full[torch.arange(B), position[:, 0]])
    model.delete_caches()


def test_a_mask_over_the_slots_is_obeyed(model: TransformerDecoder, tokens: torch.Tensor) -> None:
    full_mask = torch.rand(B, S, S, generator=torch.Generator().manual_seed(3)) < 0.6
    full_mask = (full_mask | torch.eye(S).bool()) & torch.ones(S, S).tril().bool()
    full = model(tokens, mask=full_mask)
    model.setup_caches(B, S + 5)
    first = model(tokens[:, :7], mask=full_mask[:, :7, :7])
    wide = torch.zeros(B, S, S + 5, dtype=torch.bool)  # over the caches' whole length
    wide[..., :S] = full_mask
    rest = [model(tokens[:, i : i + 1], mask=wide[:, i : i + 1]) for i in range(7, S)]
    model.delete_caches()
    close(torch.cat([first, *rest], 1), full)


def test_a_new_text_sees_nothing_of_the_one_before(model: TransformerDecoder, tokens: torch.Tensor) -> None:
    model.setup_caches(B, S)
    model(tokens.flip(0))
    model.reset_caches()
    close(model(tokens), model_without_caches(model, tokens))
    model.delete_caches()


def model_without_caches(model: TransformerDecoder, tokens: torch.Tensor) -> torch.Tensor:
    cache, model._cache = model._cache, None
    out = model(tokens)
    model._cache = cache
    return out


def test_caches_may_be_narrower_than_the_weights(model: TransformerDecoder, tokens: torch.Tensor) -> None:
    model.setup_caches(B, S, dtype=torch.bfloat16)
    pieces = [model(piece) for piece in tokens.split((6, 1, 4), 1)]
    model.delete_caches()
    full = model(tokens)
    assert (torch.cat(pieces, 1) - full).norm() / full.norm() < 0.02


def test_caches_made_under_inference_mode_can_be_used_outside(
    model: TransformerDecoder, tokens: torch.Tensor
) -> None:
    with torch.inference_mode():
        model.setup_caches(B, S)
        first = model(tokens[:, :4]).clone()
    rest = model(tokens[:, 4:])
    model.delete_caches()
    close(torch.cat([first, rest], 1), model(tokens))


def test_what_does_not_fit_is_refused(model: TransformerDecoder, tokens: torch.Tensor) -> None:
    with pytest.raises(GenerationError, match="setup_caches"):
        model.reset_caches()
    assert not model.caches_are_enabled()
    model.setup_caches(B, 8)
    assert model.caches_are_enabled()
    with pytest.raises(GenerationError, match="8 slots, and positions 0 to 10 came"):
        model(tokens)
    with pytest.raises(GenerationError, match="positions 0 to 8 came"):
        model(tokens[:, :1], input_pos=torch.tensor([[3], [8], [0]]))
    with pytest.raises(GenerationError, match="set up for 3 rows, and 2 came"):
        model(tokens[:2, :4])
    model.delete_caches()


def test_training_through_caches_is_refused(tokens: torch.Tensor) -> None:
    trained = TransformerDecoder(DecoderConfig(31, 1, 2, 1, 12, 4, 9, 64))
    trained.setup_caches(B, S)
    with pytest.raises(GenerationError, match="delete_caches"):
        trained(tokens)
    with torch.no_grad():
        trained(tokens)
