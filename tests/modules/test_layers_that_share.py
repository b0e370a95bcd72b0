"""A decoder whose layers share keys, have inputs and widths of their own, and experts beside the feed-forward.

Packed, recomputed, compiled and step by step it computes the same, and every weight gets its whole gradient.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tune.errors import ConfigError
from tune.modules import (
    DecoderConfig,
    FullAttentionConfig,
    MoEConfig,
    PerLayerInputConfig,
    ProportionalScaling,
    SharedKVConfig,
    TransformerDecoder,
    flops_per_token,
)
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum
from tune.modules.new_rows import resize_vocabulary
from tune.modules.peft import FrozenLinear, LoRAConfig, adapted_modules, adapter_parameters, apply_lora
from tune.training import checkpoint_activations, compile_blocks

B, S, V = 3, 17, 31
CONFIG = DecoderConfig(
    vocab_size=V,
    num_layers=6,
    num_heads=6,
    num_kv_heads=2,
    embed_dim=20,
    head_dim=8,
    intermediate_dim=27,
    max_seq_len=64,
    norm_eps=1e-2,
    activation="gelu_tanh",
    norm_placement="both",
    qk_norm="head",
    v_norm=True,
    attn_scale=0.4,
    local_rope_base=300.0,
    rope_scaling=ProportionalScaling(0.5),
    sliding_window=5,
    sliding_layers=(0, 2, 3, 5),
    full_attention=FullAttentionConfig(10, 3, keys_as_values=True),
    shared_kv=SharedKVConfig(3, 54),
    per_layer_input=PerLayerInputConfig(37, 6),
    layer_scale=True,
)
EXPERTS = replace(
    CONFIG,
    per_layer_input=None,
    moe=MoEConfig(num_experts=5, experts_per_token=2, intermediate_dim=16, is_beside=True),
)
LENGTHS = (5, 1, 21, 2, 9)  # shorter and longer than the window


def build(config: DecoderConfig = CONFIG) -> TransformerDecoder:
    torch.manual_seed(6)
    model = TransformerDecoder(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.25)
    for layer in model.layers:
        layer.layer_scale.value.fill_(0.8)
    return model.eval()


def tokens_of(*shape: int) -> Tensor:
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(sum(shape)))


def gradients(model: TransformerDecoder) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    assert all(grad is not None and grad.abs().max() > 0 for grad in found.values())
    return {name: grad for name, grad in found.items() if grad is not None}


def backward(model: TransformerDecoder, tokens: Tensor, positions: Tensor | None = None) -> dict[str, Tensor]:
    loss_sum(LinearCrossEntropyLoss(), model, tokens, tokens.roll(-1, 1), None, positions).backward()
    return gradients(model)


@pytest.mark.parametrize("config", [CONFIG, EXPERTS], ids=["inputs", "experts"])
def test_packed_gradients_are_those_of_each_alone(config: DecoderConfig) -> None:
    model, tokens = build(config), tokens_of(1, sum(LENGTHS))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    labels = tokens.roll(-1, 1)
    loss_sum(LinearCrossEntropyLoss(), model, tokens, labels, None, positions).backward()
    packed = gradients(model)
    for document, its_labels in zip(tokens.split(LENGTHS, 1), labels.split(LENGTHS, 1), strict=True):
        loss_sum(LinearCrossEntropyLoss(), model, document, its_labels).backward()
    for name, grad in gradients(model).items():
        torch.testing.assert_close(packed[name], grad, rtol=1e-4, atol=5e-5, msg=name)


@pytest.mark.parametrize("config", [CONFIG, EXPERTS], ids=["inputs", "experts"])
@pytest.mark.parametrize("recomputed", [range(6), range(3), (2, 4)], ids=["all", "lenders", "some"])
def test_recomputation_changes_no_gradient(config: DecoderConfig, recomputed: Any) -> None:
    model, tokens = build(config), tokens_of(2, 30)
    positions = torch.cat((torch.arange(21), torch.arange(9))).expand(2, -1)
    plain = backward(model, tokens, positions)
    checkpoint_activations([model.layers[index] for index in recomputed])
    again = backward(model, tokens, positions)
    assert all(torch.equal(plain[name], grad) for name, grad in again.items())


def test_all_that_attend_to_shared_keys_move_them() -> None:
    """The gradient of a lender's keys is the sum over it and all layers that attend to them."""
    model, tokens = build(), tokens_of(2, S)
    name = "layers.2.attn.k_proj.weight"
    whole = backward(model, tokens)[name]
    parts = []
    for kept in ((2,), (3,), (5,)):
        torch.manual_seed(0)
        hooks = []
        for index, layer in enumerate(model.layers):
            if layer.is_sliding and index not in kept:
                # Its attention reads keys and values that nothing learns from.
                hooks.append(layer.attn.register_forward_pre_hook(_detached, with_kwargs=False))
        loss_sum(LinearCrossEntropyLoss(), model, tokens, tokens.roll(-1, 1)).backward()
        parts.append(model.get_parameter(name).grad)
        model.zero_grad()
        for hook in hooks:
            hook.remove()
    own, *lent = parts
    assert all(part.abs().max() > 0 for part in lent)
    assert (whole - own).abs().max() > 0


def _detached(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    *others, lent = args
    return (*others, None if lent is None else tuple(part.detach() for part in lent))


@pytest.mark.parametrize("config", [CONFIG, EXPERTS], ids=["inputs", "experts"])
@pytest.mark.parametrize("cuts", [(S,), (5, *(1,) * 12), (1,) * S, (2, 1, 14)], ids=str)
def test_any_cut_of_a_text_goes_on_from_its_caches(config: DecoderConfig, cuts: tuple[int, ...]) -> None:
    model, tokens = build(config).requires_grad_(False), tokens_of(B, S)
    expected = model(tokens)
    model.setup_caches(B, S + 3)
    found = torch.cat([model(part) for part in tokens.split(cuts, 1)], 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    assert model._cache is not None
    assert model._cache.layers[3] is model._cache.layers[2]
    assert model._cache.layers[4] is model._cache.layers[1]


def test_each_kind_of_layer_has_one_graph_for_all_lengths() -> None:
    torch._dynamo.reset()
    counters.clear()
    model = build()
    batches = [tokens_of(*shape) for shape in ((2, 9), (3, 17), (2, 33))]
    plain = [backward(model, tokens) for tokens in batches]
    compile_blocks(model.layers, backend="eager")
    for tokens, expected in zip(batches, plain, strict=True):
        for name, grad in backward(model, tokens).items():
            torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=5e-5, msg=name)
    # With a window or without one: of its own keys, lending them, attending to lent ones. No full layer is alone.
    assert counters["stats"]["unique_graphs"] == 5
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=2):  # of one kind of block
        model(batches[0])
    assert counters["stats"]["unique_graphs"] == 10
    assert not counters["graph_break"]
    torch._dynamo.reset()


def test_adapters_and_4_bits_stand_where_there_are_matrices() -> None:
    for config in (CONFIG, EXPERTS):
        model, tokens = build(config), tokens_of(2, S)
        modules = ("q_proj", "k_proj", "v_proj", "output_proj")
        apply_lora(model, LoRAConfig(rank=2, attn_modules=modules, apply_to_mlp=True, quantize_base=True))
        for parameter in adapter_parameters(model).values():
            nn.init.normal_(parameter, std=0.2)
        paths = set(adapted_modules(model))
        assert {f"layers.{index}.attn.k_proj" for index in range(3)} <= paths
        assert not {"layers.1.attn.v_proj", "layers.3.attn.k_proj", "layers.5.attn.v_proj"} & paths
        assert "layers.4.mlp.w2" in paths
        assert ("layers.4.moe.experts.w3" in paths) == (config is EXPERTS)
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear) and not path.endswith(("lora_a", "lora_b")):
                assert path.endswith(("router", "per_layer_input.projection", "output")), path
            if isinstance(module, FrozenLinear):
                assert module.nf4 is not None
        loss_sum(LinearCrossEntropyLoss(), model, tokens, tokens.roll(-1, 1)).backward()
        for name, parameter in adapter_parameters(model).items():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_new_tokens_get_rows_of_both_tables() -> None:
    model, tokens = build(), tokens_of(1, S)
    before = model(tokens)
    resize_vocabulary(model, 36)  # there are rows for these
    assert model.config.per_layer_input == CONFIG.per_layer_input
    resize_vocabulary(model, 41)
    assert model.per_layer_input is not None
    table = model.per_layer_input.table.weight
    assert model.config.per_layer_input == PerLayerInputConfig(41, 6)
    torch.testing.assert_close(table[37:], table[:37].mean(0).expand(4, -1))
    assert torch.equal(model(tokens)[..., :V], before)
    assert model.config.num_parameters() == sum(parameter.numel() for parameter in model.parameters())


def test_what_is_counted_is_what_there_is() -> None:
    for config in (CONFIG, EXPERTS, replace(CONFIG, attn_bias="all", shared_kv=None, mlp_bias=True)):
        model = build(config)
        assert config.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
        matrices = sum(
            parameter.numel()
            for name, parameter in model.named_parameters()
            if parameter.dim() == 2
            and "tok_embeddings" not in name
            and ".table." not in name
            and "output.weight" not in name
        )
        if config.moe is None:
            assert config.num_block_parameters() == matrices
    heads = 4 * 8 * 5 * (1 - 5 / 40) + 2 * 10 * 10  # width times keys, of layers with and without a window
    counted = 6 * (CONFIG.num_block_parameters() + V * 20) + 12 * 6 * heads
    assert flops_per_token(CONFIG, 20) == pytest.approx(counted)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"shared_kv": SharedKVConfig(5, 27)},
            r"layer 1 shares the keys .* without a window, and there is none",
        ),
        ({"shared_kv": SharedKVConfig(6, 27)}, r"shared_kv.num_layers is 6; .* below 6"),
        ({"shared_kv": SharedKVConfig(2, 0)}, r"shared_kv.intermediate_dim is 0"),
        ({"full_attention": FullAttentionConfig(9, 3)}, r"full_attention.head_dim is 9; it must be even"),
        ({"full_attention": FullAttentionConfig(10, 4)}, r"not a multiple of full_attention.num_kv_heads 4"),
        ({"local_rope_base": None}, r"full_attention needs a local_rope_base"),
        ({"per_layer_input": PerLayerInputConfig(30, 6)}, r"vocab_size is 30, and there are 31 tokens"),
        ({"per_layer_input": PerLayerInputConfig(31, 0)}, r"per_layer_input.dim is 0"),
        ({"rope_scaling": ProportionalScaling(1.5)}, r"rope_scaling.share is 1.5; it must be at most 1"),
        ({"moe": MoEConfig(5, 2, 8, dense_layers=(1,), is_beside=True)}, r"dense_layers names some without"),
    ],
)
def test_layers_that_cannot_be_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(CONFIG, **changes)
