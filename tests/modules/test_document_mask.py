"""Documents that share a row: each as if alone, by either kernel, in one graph for all batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

from tune.data import block_causal_mask, padded_collate_sft, shift_labels
from tune.modules import DecoderConfig, TransformerDecoder
from tune.modules.document_mask import (
    DocumentMask,
    _block_mask,
    _first_keys,
    dense_mask,
    find_document_starts,
)
from tune.modules.kernels.block_attention import scale_by_sinks
from tune.modules.kernels.document_attention import document_attention
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum
from tune.training import checkpoint_activations, compile_blocks

VOCAB = 61
PLAIN = DecoderConfig(VOCAB, 3, 6, 6, 40, 8, 56, 512)
KINDS = {
    "plain": PLAIN,
    "grouped": replace(PLAIN, num_kv_heads=2),
    "windows": replace(PLAIN, num_kv_heads=2, sliding_window=5, sliding_layers=(0, 2), local_rope_base=300.0),
    "all windows": replace(PLAIN, num_kv_heads=3, sliding_window=7, sliding_layers=(0, 1, 2)),
    "caps": replace(PLAIN, num_kv_heads=2, attn_softcap=1.5, sliding_window=5, sliding_layers=(1,)),
    "norms": replace(PLAIN, num_kv_heads=2, qk_norm="head"),
    "sinks": replace(PLAIN, num_kv_heads=3, attn_sinks=True, sliding_window=5, sliding_layers=(0, 2)),
    "sinks and caps": replace(PLAIN, num_kv_heads=2, attn_sinks=True, attn_softcap=1.5),
}


def model_of(config: DecoderConfig) -> TransformerDecoder:
    torch.manual_seed(6)
    model = TransformerDecoder(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.02, std=0.15)
    return model


def gradients(model: TransformerDecoder, batches: list[dict[str, Tensor]]) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    total = torch.zeros(())
    for batch in batches:
        labels = shift_labels(batch["labels"])
        loss = loss_sum(
            LinearCrossEntropyLoss(), model, batch["tokens"], labels, None, batch.get("input_pos")
        )
        loss.backward()
        total = total + loss.detach()
    return total, [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_packed_and_padded_equal_each_alone(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    # One is longer than the queries of a window that are taken together.
    documents = [
        torch.randint(0, VOCAB, (length,), generator=generator).tolist() for length in (13, 2, 150, 8)
    ]
    alone = [{"tokens": tokens, "labels": [-100, *tokens[1:]]} for tokens in documents]
    rows = [
        {
            "tokens": [token for example in examples for token in example["tokens"]],
            "labels": [label for example in examples for label in example["labels"]],
            "input_pos": [place for example in examples for place in range(len(example["tokens"]))],
        }
        for examples in (alone[:3], alone[3:])
    ]
    model = model_of(KINDS[kind])
    expected = gradients(model, [padded_collate_sft([example]) for example in alone])
    for batch in (padded_collate_sft(rows, pad_to_multiple_of=9), padded_collate_sft(alone)):
        loss, grads = gradients(model, [batch])
        torch.testing.assert_close(loss, expected[0], rtol=1e-6, atol=0)
        for grad, other in zip(grads, expected[1], strict=True):
            # Of the gradient's own size: sums over 170 tokens in another order.
            assert (grad - other).abs().max() <= 2e-6 * max(1.0, other.abs().max().item())


def test_dropout_and_a_given_mask_take_the_dense_way() -> None:
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2], [0, 0, 1, 2, 3, 4, 5]])
    starts = find_document_starts(positions)
    assert starts.tolist() == [[0, 0, 0, 0, 4, 4, 4], [0, 1, 1, 1, 1, 1, 1]]
    assert torch.equal(dense_mask(starts), block_causal_mask(positions))
    tokens = torch.randint(0, VOCAB, (2, 7), generator=torch.Generator().manual_seed(3))
    for config in KINDS.values():
        by_documents = model_of(config)
        expected = by_documents(tokens, input_pos=positions)
        given = by_documents(tokens, mask=block_causal_mask(positions), input_pos=positions)
        torch.testing.assert_close(given, expected)
        dropping = model_of(replace(config, attn_dropout=1e-9))  # drops nothing, by a kernel that could
        torch.testing.assert_close(dropping(tokens, input_pos=positions), expected)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_the_operators_gradient(window: int | None, softcap: float | None, has_sinks: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    starts = find_document_starts(torch.tensor([[0, 1, 2, 3, 4, 0, 1], [0, 1, 0, 1, 2, 3, 4]]))
    q, k, v = (
        torch.randn(2, heads, 7, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (6, 3, 3)
    )
    sinks = torch.linspace(-2.0, 3.0, 6, dtype=torch.float64, requires_grad=True) if has_sinks else None
    arguments = (starts, window, softcap, 0.4)
    assert torch.autograd.gradcheck(
        lambda q, k, v, sinks: document_attention(q, k, v, *arguments, sinks)[0], (q, k, v, sinks)
    )
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(document_attention, (q, k, v, *arguments, sinks), test_utils=tests)


@pytest.mark.parametrize(("length", "window"), [(37, None), (128, 5), (300, None), (300, 130)])
def test_flex_attention_gets_the_same_mask(length: int, window: int | None) -> None:
    generator = torch.Generator().manual_seed(length)
    begins = torch.rand(3, length, generator=generator) < torch.tensor([[0.3], [0.01], [0.0]])
    starts = find_document_starts((~begins).long())
    first = _first_keys(starts, window)
    ours = _block_mask(first)
    theirs = create_block_mask(
        lambda b, h, q, kv: (kv <= q) & (kv >= first[b, q]), 3, None, length, length, device="cpu"
    )
    for kind in ("kv", "full_kv", "q", "full_q"):
        lists = []
        for block_mask in (ours, theirs):
            counts, indices = (getattr(block_mask, f"{kind}_{name}") for name in ("num_blocks", "indices"))
            order = torch.arange(indices.shape[-1])
            lists.append((counts, indices.where(order < counts[..., None], 0)))
        assert all(torch.equal(*pair) for pair in zip(*lists, strict=True))
    q, k, v = (torch.randn(3, heads, length, 16, generator=generator) for heads in (6, 2, 2))
    by_flex, aux = flex_attention(q, k, v, None, ours, 0.3, True, return_aux=AuxRequest(lse=True))
    torch.testing.assert_close(by_flex, document_attention(q, k, v, starts, window, None, 0.3)[0])
    sinks = torch.linspace(-1.0, 2.0, 6)
    with_sinks = document_attention(q, k, v, starts, window, None, 0.3, sinks)[0]
    torch.testing.assert_close(scale_by_sinks(by_flex, aux.lse, sinks), with_sinks)


def _with_blocks(cls: Any, starts: Tensor, window: int | None = None) -> DocumentMask:
    return DocumentMask(starts, window, _block_mask(_first_keys(starts, window)))


@pytest.mark.parametrize(("kind", "by_flex"), [("caps", False), ("sinks and caps", True)])
def test_no_batch_is_compiled_anew(kind: str, by_flex: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, FlexAttention included; its backward pass alone has no form on a CPU."""
    config = replace(KINDS[kind], num_layers=2, sliding_window=5, sliding_layers=(1,))
    model, plain = model_of(config), model_of(config)
    model.requires_grad_(not by_flex)
    graphs = CompileCounterWithBackend("eager")
    checkpoint_activations(model.layers)
    compile_blocks(model.layers, graphs)
    seen = []
    with monkeypatch.context() as patched, torch.set_grad_enabled(not by_flex):
        # Of three and of four blocks: torch takes sizes that are equal at first, two blocks in two rows, for one.
        for length, document in ((300, 11), (390, 30), (450, 7)):
            tokens = torch.randint(0, VOCAB, (2, length))
            positions = torch.arange(length).remainder(document).expand(2, -1)
            expected = plain(tokens, input_pos=positions)
            if by_flex:
                patched.setattr(DocumentMask, "build", classmethod(_with_blocks))
            out = model(tokens, input_pos=positions)
            patched.undo()
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
            seen.append(graphs.frame_count)
    # FlexAttention's lists of blocks have a size that torch takes for fixed until it meets another.
    assert seen == ([1, 2, 2] if by_flex else [seen[0]] * 3)
