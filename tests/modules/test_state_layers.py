"""A decoder whose layers keep a state: packed, padded, masked, recomputed and step by step it computes the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tune.errors import ConfigError, GenerationError, TrainingError
from tune.modules import DecoderConfig, GatedDeltaConfig, ShortConvConfig, TransformerDecoder
from tune.modules.document_mask import dense_mask, find_document_starts
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum
from tune.training import checkpoint_activations

B, S, V = 3, 13, 31
DELTA = GatedDeltaConfig((0, 2, 3), 2, 4, 6, 5)
LENGTHS = (5, 1, 70, 2, 9)  # shorter and longer than the convolution and than a chunk


KINDS = {
    "delta": {"rotary_dim": 4, "attn_gate": True, "qk_norm": "head", "norm_offset": 1.0, "delta": DELTA},
    "convolution": {"qk_norm": "head", "conv": ShortConvConfig((0, 2, 3), 4)},
}


def build(kind: str = "delta", **changes: object) -> TransformerDecoder:
    torch.manual_seed(6)
    sizes = KINDS[kind]
    model = TransformerDecoder(DecoderConfig(V, 4, 6, 2, 20, 8, 27, 64, 1e-2, **{**sizes, **changes}))
    for name, parameter in model.named_parameters():
        if not name.endswith(("a_log", "dt_bias")):  # those say how fast each head forgets
            nn.init.normal_(parameter, std=0.25)
    return model.eval()


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> TransformerDecoder:
    return build(request.param).requires_grad_(False)


@pytest.fixture
def cached(model: TransformerDecoder) -> Iterator[TransformerDecoder]:
    model.setup_caches(B, S + 4)
    yield model
    model.delete_caches()


def tokens_of(*shape: int) -> Tensor:
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


def gradients(model: TransformerDecoder) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    assert all(grad is not None and grad.abs().max() > 0 for grad in found.values())
    return {name: grad for name, grad in found.items() if grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_mask", [False, True], ids=["positions", "mask"])
def test_packed_loss_and_all_gradients_are_those_of_each_alone(as_mask: bool, kind: str) -> None:
    model = build(kind)
    tokens, labels = tokens_of(2, sum(LENGTHS)), tokens_of(2, sum(LENGTHS)).flip(1)
    positions = torch.cat([torch.arange(length) for length in LENGTHS]).expand(2, -1)
    mask = dense_mask(find_document_starts(positions)) if as_mask else None
    packed = loss_sum(LinearCrossEntropyLoss(), model, tokens, labels, mask, positions)
    packed.backward()
    together = gradients(model)
    alone = 0.0
    for pair in zip(tokens.split(LENGTHS, 1), labels.split(LENGTHS, 1), strict=True):
        loss = loss_sum(LinearCrossEntropyLoss(), model, *pair)
        loss.backward()
        alone += loss.item()
    assert packed.item() == pytest.approx(alone, rel=1e-6)
    for name, grad in gradients(model).items():
        mean, expected = together[name] / labels.numel(), grad / labels.numel()
        # Where the parts of a gradient cancel each other, what is left has their rounding.
        assert (mean - expected).norm() < 1e-6 * max(expected.norm().item(), 0.1), name


def test_pads_on_either_side_change_nothing(model: TransformerDecoder) -> None:
    lengths, s = (13, 4, 9), 13
    tokens = tokens_of(B, s)
    for is_left in (False, True):
        padded = torch.zeros(B, s, dtype=torch.int64)
        mask = torch.ones(s, s).tril().bool().repeat(B, 1, 1)
        for row, length in enumerate(lengths):
            own = slice(s - length, s) if is_left else slice(0, length)
            padded[row, own] = tokens[row, :length]
            if is_left:
                mask[row, :, : s - length] = False  # pads are seen by nobody, nor do they see
        out = model(padded, mask=mask if is_left else None)
        for row, length in enumerate(lengths):
            own = slice(s - length, s) if is_left else slice(0, length)
            close(out[row, own], model(tokens[row : row + 1, :length])[0])


def test_a_mask_that_no_state_can_follow_is_refused(model: TransformerDecoder) -> None:
    mask = torch.ones(S, S).tril().bool().repeat(B, 1, 1)
    holed = mask.clone()
    holed[1, 6, 2] = False
    window = mask & ~torch.ones(S, S).tril(-4).bool()
    for wrong in (holed, window):
        with pytest.raises(TrainingError, match="keep a state"):
            model(tokens_of(B, S), mask=wrong)


@pytest.mark.parametrize("cuts", [(S,), (5, *(1,) * 8), (1,) * S, (2, 1, 10)])
@pytest.mark.parametrize("with_positions", [False, True])
def test_any_cut_of_a_text_goes_on_from_its_state(
    cached: TransformerDecoder, cuts: tuple[int, ...], with_positions: bool
) -> None:
    tokens = tokens_of(B, S)
    positions = torch.arange(S).expand(B, S).split(cuts, 1)
    pieces = [
        cached(piece, input_pos=position if with_positions else None)
        for piece, position in zip(tokens.split(cuts, 1), positions, strict=True)
    ]
    cached.delete_caches()
    close(torch.cat(pieces, 1), cached(tokens))


def test_padded_rows_go_on_from_their_own_ends(cached: TransformerDecoder) -> None:
    tokens, lengths = tokens_of(B, S), torch.tensor([1, 6, 2])
    prompts = tokens[:, :6].where(torch.arange(6) < lengths[:, None], 30)
    first = cached(prompts, input_pos=torch.arange(6)[None], num_tokens=lengths)
    found = [[first[row, : int(length)]] for row, length in enumerate(lengths)]
    # Two more of each row, but none in the second call of the last one: it rests, its state with it.
    for step in range(4):
        takes = torch.tensor([1, 1, step != 1])
        position = lengths[:, None]
        out = cached(tokens.gather(1, position), input_pos=position, num_tokens=takes)
        for row in range(B):
            if takes[row]:
                found[row].append(out[row])
        lengths = lengths + takes
    cached.delete_caches()
    for row, length in enumerate(lengths.tolist()):
        close(torch.cat(found[row]), cached(tokens[row : row + 1, :length])[0])


def test_pads_on_the_left_are_masked_in_caches_as_well(cached: TransformerDecoder) -> None:
    tokens, pads = tokens_of(B, S), torch.tensor([4, 0, 2])
    slots = torch.arange(S + 4)
    padded = torch.stack([torch.cat((tokens.new_zeros(int(n)), row))[:S] for n, row in zip(pads, tokens)])
    pieces = []
    for begin, end in ((0, 7), (7, 8), (8, 9), (9, S)):
        mask = (slots <= torch.arange(begin, end)[:, None]) & (slots >= pads[:, None, None])
        pieces.append(cached(padded[:, begin:end], mask=mask))
    out = torch.cat(pieces, 1)
    cached.delete_caches()
    for row, num_pads in enumerate(pads.tolist()):
        close(out[row, num_pads:], cached(tokens[row : row + 1, : S - num_pads])[0])


def test_a_new_text_begins_with_an_empty_state(cached: TransformerDecoder) -> None:
    tokens = tokens_of(B, S)
    cached(tokens)
    cached.reset_caches()
    out = cached(tokens[:, 3:])
    again = cached(tokens[:, 5:9], input_pos=torch.arange(4).expand(B, -1))  # position 0 begins one, too
    cached.delete_caches()
    close(out, cached(tokens[:, 3:]))
    close(again, cached(tokens[:, 5:9]))


def test_no_way_back_is_said(cached: TransformerDecoder) -> None:
    tokens, lengths = tokens_of(B, S), torch.tensor([6, 4, 6])
    cached(tokens[:, :6])
    with pytest.raises(
        GenerationError, match=r"row 1 has 6 tokens, and positions from 4 on came.*num_tokens"
    ):
        cached(tokens[:, :1], input_pos=lengths[:, None])
    with pytest.raises(GenerationError, match="positions from 6 on"):
        cached(tokens[:, :2], input_pos=torch.tensor([6, 8]).expand(B, -1))
    cached.reset_caches()
    cached(tokens[:, :6], num_tokens=lengths)
    with pytest.raises(GenerationError, match="row 1 has 4 tokens, and positions from 6 on"):
        cached(tokens[:, :1])


@pytest.mark.parametrize("kind", KINDS)
def test_recomputation_changes_no_gradient(kind: str) -> None:
    model, tokens = build(kind), tokens_of(2, 70)
    positions = torch.cat((torch.arange(50), torch.arange(20))).expand(2, -1)
    found = []
    for is_recomputed in (False, True):
        if is_recomputed:
            checkpoint_activations(model.layers)
        loss_sum(LinearCrossEntropyLoss(), model, tokens, tokens, None, positions).backward()
        found.append(gradients(model))
    assert all(torch.equal(found[0][name], grad) for name, grad in found[1].items())


def test_layers_that_cannot_be_are_named() -> None:
    delta = GatedDeltaConfig((0, 4), 4, 6, 0, 5)
    with pytest.raises(ConfigError, match="layer 4; layers count from 0 to 3") as raised:
        build(delta=delta)
    assert "key_head_dim is 0" in str(raised.value)
    with pytest.raises(ConfigError, match="num_value_heads is 6, not a multiple of num_key_heads 4"):
        build(delta=GatedDeltaConfig((0,), 4, 6, 3, 5))
    with pytest.raises(ConfigError, match="layer 2 is both"):
        build(sliding_window=4, sliding_layers=(1, 2))
    with pytest.raises(ConfigError, match="layer 3 is both a delta layer and a conv layer"):
        build(conv=ShortConvConfig((1, 3)))
    with pytest.raises(ConfigError, match="the convolution's width is 0") as raised:
        build("convolution", conv=ShortConvConfig((1, 7), 0))
    assert "conv layers names layer 7" in str(raised.value)
