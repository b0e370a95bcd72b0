"""Compiled blocks: as few graphs as there are kinds of pass, whatever the shapes; and said where that fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from tune.modules import (
    ClampedSwiGLU,
    DecoderConfig,
    GatedDeltaConfig,
    MoEConfig,
    ShortConvConfig,
    TransformerDecoder,
)
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum
from tune.modules.peft import LoRAConfig, apply_lora, reset_adapters
from tune.training import checkpoint_activations, compile_blocks

STATES = {"delta": GatedDeltaConfig((0,), 2, 4, 6, 10), "attn_gate": True}
CONVOLUTIONS = {"conv": ShortConvConfig((0,)), "qk_norm": "head"}
GATES = {
    "attn_gate": True,
    "attn_gate_apart": True,
    "qk_norm": "scaleless",
    "embed_norm": True,
    "nope_layers": (0,),
    "sliding_window": 6,
    "sliding_layers": (1,),
}
SINKS = {
    "attn_sinks": True,
    "attn_bias": "all",
    "sliding_window": 6,
    "sliding_layers": (0,),
    "moe": MoEConfig(5, 2, 20, bias=True, clamped=ClampedSwiGLU()),
}
SHAPES = [(2, 9), (3, 17), (2, 33), (4, 40)]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


def build(method: str = "full", **changes: Any) -> TransformerDecoder:
    torch.manual_seed(4)
    model = TransformerDecoder(DecoderConfig(61, 2, 6, 2, 48, 8, 50, 64, **changes))
    if method != "full":
        apply_lora(model, LoRAConfig(rank=4, alpha=8, quantize_base=method == "qlora"))
        reset_adapters(model, torch.float32)
    return model


def run_pass(model: TransformerDecoder, shape: tuple[int, int]) -> None:
    tokens = torch.randint(0, 61, shape)
    loss = loss_sum(LinearCrossEntropyLoss(), model, tokens, tokens)
    if torch.is_grad_enabled():
        loss.backward()


def num_graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize(("method", "recomputed"), [("full", 0), ("lora", 1), ("qlora", 2)])
def test_one_graph_for_each_kind_of_pass(method: str, recomputed: int) -> None:
    model = build(method)
    checkpoint_activations(model.layers[:recomputed])
    compile_blocks(model.layers, backend="eager")
    kinds = 2 if recomputed == 1 else 1  # blocks that are recomputed, and others
    for shape in SHAPES:
        run_pass(model, shape)
    assert num_graphs() == kinds
    run_pass(model, (1, 21))  # one row: what is left of an epoch
    run_pass(model, (1, 11))
    assert num_graphs() == 2 * kinds
    model.eval()
    with torch.no_grad():
        for shape in SHAPES:
            run_pass(model, shape)
        assert num_graphs() == 3 * kinds
        model.setup_caches(1, 16)
        model(torch.arange(7)[None])
        for token in range(4):
            model(torch.tensor([[token]]))
        model.delete_caches()
    assert num_graphs() == 3 * kinds
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    ("changes", "is_dense"),
    [({}, False), ({}, True), (STATES, False), (CONVOLUTIONS, False), (SINKS, False), (GATES, False)],
    ids=["positions", "mask", "states", "convolutions", "sinks", "gates"],
)
def test_one_graph_for_packed_batches(changes: dict[str, Any], is_dense: bool) -> None:
    model = build(**changes)
    compile_blocks(model.layers, backend="eager")
    for b, s in SHAPES:
        document = torch.arange(s) // 5
        mask = (document[:, None] == document) & torch.ones(s, s, dtype=torch.bool).tril()
        tokens, positions = torch.randint(0, 61, (b, s)), (torch.arange(s) % 5).expand(b, s)
        dense = mask.expand(b, s, s) if is_dense else None
        loss_sum(LinearCrossEntropyLoss(), model, tokens, tokens, dense, positions).backward()
    assert num_graphs() == (2 if changes else 1)  # one for each kind of block
    assert not counters["graph_break"]


@pytest.mark.parametrize("changes", [STATES, GATES], ids=["states", "gates"])
def test_one_graph_for_adapters_on_packed_batches(changes: dict[str, Any]) -> None:
    model = build("qlora", **changes)
    compile_blocks(model.layers, backend="eager")
    for b, s in SHAPES:
        tokens, positions = torch.randint(0, 61, (b, s)), (torch.arange(s) % 5).expand(b, s)
        loss_sum(LinearCrossEntropyLoss(), model, tokens, tokens, None, positions).backward()
    assert num_graphs() == 2
    assert not counters["graph_break"]


def test_past_the_limit_blocks_run_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = build()
    expected = [model(torch.arange(2 * s).view(2, s)) for s in (5, 6, 7)]
    compile_blocks(model.layers, backend="eager")
    with torch._dynamo.config.patch(recompile_limit=1):
        model(torch.arange(10).view(2, 5))
        with torch.no_grad():  # another graph
            for s, logits in zip((5, 6, 7), expected, strict=True):
                assert torch.equal(model(torch.arange(2 * s).view(2, s)), logits)
    assert num_graphs() == 1
    assert caplog.text.count("runs uncompiled from now on") == 1


def test_past_the_limit_is_an_error_where_asked_for() -> None:
    from torch._dynamo.exc import FailOnRecompileLimitHit

    model = build()
    compile_blocks(model.layers, backend="eager")
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        model(torch.arange(10).view(2, 5))
        with torch.no_grad(), pytest.raises(FailOnRecompileLimitHit):
            model(torch.arange(10).view(2, 5))


def test_no_spread_of_tokens_over_experts_is_compiled_anew() -> None:
    model = build(moe=MoEConfig(11, 3, 20))
    batches = torch.randint(0, 61, (5, 2, 7))
    with torch.no_grad():
        expected = [model(batch) for batch in batches]
        compile_blocks(model.layers, backend="eager")
        torch.testing.assert_close(model(batches[0]), expected[0])
        before = num_graphs()
        assert before > 0
        for batch, logits in zip(batches, expected, strict=True):
            torch.testing.assert_close(model(batch), logits)
    assert num_graphs() == before


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_compiled_block_keeps_few_bytes_per_token(method: str) -> None:
    """What both matrix products and attention want again, once each: what lies between is computed again.

    Of the width: what comes in, both normed inputs, queries, what attention gives, and the sum after it; a frozen
    output matrix does not ask for its input. Of the feed-forward: gate, up and their product, which adapters elsewhere
    do not want. In fp32 a number per head and norm.
    """
    model = build(method).to(torch.bfloat16)
    if method == "lora":
        reset_adapters(model, torch.float32)
    compile_blocks(model.layers[:1], backend="aot_eager_decomp_partition")
    config = model.config

    def kept_bytes(num_tokens: int) -> int:
        kept: dict[int, Tensor] = {}
        x = torch.randn(2, num_tokens, config.embed_dim, dtype=torch.bfloat16, requires_grad=True)
        rope = model.rope(torch.arange(num_tokens)[None], num_tokens)
        given = {tensor.untyped_storage().data_ptr() for tensor in (*rope, *model.parameters())}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.layers[0](x, rope)
        return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in given)

    per_token = (kept_bytes(19) - kept_bytes(11)) / 16  # weights that were cast cancel out
    assert num_graphs() == 1
    kv_dim = config.num_kv_heads * config.head_dim
    wide, between, ranks = (6, 3, 0) if method == "full" else (5, 2, 2 * 4)
    values = wide * config.embed_dim + 2 * kv_dim + between * config.intermediate_dim + ranks
    assert per_token <= 2 * values + 4 * (config.num_heads + 2)


def test_compiled_blocks_keep_no_copy_of_wider_weights() -> None:
    """Weights in fp32 that are computed with in bf16: what is kept follows the tokens alone."""
    model = build()
    compile_blocks(model.layers[:1], backend="aot_eager_decomp_partition")
    given = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def kept_bytes(num_tokens: int) -> int:
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.randn(2, num_tokens, model.config.embed_dim, dtype=torch.bfloat16, requires_grad=True)
        rope = model.rope(torch.arange(num_tokens)[None], num_tokens)
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            out = model.layers[0](x, rope)
        assert out.requires_grad
        return sum(size for place, size in kept.items() if place not in given)

    few, many = kept_bytes(11), kept_bytes(22)
    smallest_matrix = model.layers[0].attn.k_proj.weight.numel() * 2
    assert 2 * few - many < smallest_matrix / 2  # what does not grow with the tokens


def test_compiled_layers_with_a_state_compute_the_same() -> None:
    model, tokens = build(**STATES), torch.randint(0, 61, (2, 70))
    positions = torch.cat((torch.arange(33), torch.arange(37))).expand(2, -1)
    found = []
    for is_compiled in (False, True):
        if is_compiled:
            compile_blocks(model.layers[:1], backend="aot_eager")  # all but the machine code
        loss = loss_sum(LinearCrossEntropyLoss(), model, tokens, tokens, None, positions)
        loss.backward()
        found.append((loss.detach(), *(parameter.grad for parameter in model.parameters())))
        model.zero_grad()
    for compiled, eager in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)
