"""Adapters in a model: where they stand, what is trained, and what is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune.errors import ConfigError
from tune.modules import DecoderConfig, MoEConfig, TransformerDecoder
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum
from tune.modules.peft import (
    FrozenLinear,
    LoRAConfig,
    LoRALinear,
    LoRAModule,
    NF4Weight,
    adapted_modules,
    adapter_parameters,
    apply_lora,
    is_adapter,
    merge_adapters,
    reset_adapters,
)
from tune.training import checkpoint_activations

CONFIG = DecoderConfig(
    vocab_size=61,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    embed_dim=48,
    head_dim=10,
    intermediate_dim=50,
    max_seq_len=40,
    attn_bias="qkv",
    qk_norm="head",
    final_softcap=9.0,
)
EVERYTHING = LoRAConfig(
    rank=3,
    alpha=7.0,
    attn_modules=("q_proj", "k_proj", "v_proj", "output_proj"),
    apply_to_mlp=True,
    apply_to_output=True,
)
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "dropout": {"dropout": 0.4},
    "dora-dropout": {"use_dora": True, "dropout": 0.4},
}


def stirred(module: nn.Module, seed: int = 1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if is_adapter(f".{name}"):
                noise = torch.randn(parameter.shape, generator=generator) * 0.2
                parameter.add_(noise.to(parameter))
    return module


def decoder(seed: int = 0, **others: Any) -> TransformerDecoder:
    torch.manual_seed(seed)
    model = TransformerDecoder(replace(CONFIG, **others))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_begins_as_its_base_and_ends_as_its_merged_self(kind: str, dtype: torch.dtype) -> None:
    model = decoder().to(dtype).eval()
    plain = model(tokens(2, 9))
    apply_lora(model, replace(EVERYTHING, **KINDS[kind]))
    assert torch.equal(model(tokens(2, 9)), plain)
    assert torch.equal(model.train()(tokens(2, 9)), plain)
    loss = loss_sum(LinearCrossEntropyLoss(), model, tokens(2, 9), tokens(2, 9))
    assert torch.equal(
        loss, loss_sum(LinearCrossEntropyLoss(), decoder().to(dtype), tokens(2, 9), tokens(2, 9))
    )
    adapted = stirred(model).eval()(tokens(2, 9))
    wide = copy.deepcopy(model).float()
    reference = wide(tokens(2, 9))
    for path, module in adapted_modules(wide).items():
        # One matrix is rounded thrice at most: the rows' lengths, the sum, and the sum brought to its length.
        rounded = adapted_modules(model)[path].merged_weight().float()
        rtol = 3 * torch.finfo(dtype).eps / 2
        torch.testing.assert_close(rounded, module.merged_weight(), rtol=rtol, atol=1e-6)
    merge_adapters(model)
    assert not adapted_modules(model)
    assert not adapter_parameters(model)
    assert {type(module) for module in model.modules() if "Linear" in type(module).__name__} == {nn.Linear}
    merged = model(tokens(2, 9))
    if dtype == torch.float32:
        torch.testing.assert_close(merged, adapted, rtol=1e-5, atol=2e-5)
    else:  # two roundings of one model: off by 0.006 to 0.047 of its spread, with 24 draws of each kind
        for found in (merged, adapted):
            assert (found.float() - reference).std() < 0.05 * reference.std()


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_alone_have_gradients(kind: str) -> None:
    model = decoder()
    apply_lora(model, replace(EVERYTHING, **KINDS[kind]))
    stirred(model)
    loss_sum(LinearCrossEntropyLoss(), model, tokens(2, 9), tokens(2, 9)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == is_adapter(name), name
        assert (parameter.grad is not None) == is_adapter(name), name
        assert not is_adapter(name) or parameter.grad.abs().sum() > 0, name
    num_modules = 7 * CONFIG.num_layers + 1
    assert len(adapter_parameters(model)) == num_modules * (3 if "dora" in kind else 2)


def test_the_loss_sees_the_adapter_of_the_output_matrix() -> None:
    """From hidden states and one matrix, or from logits: the same loss, the same gradients."""
    labels = tokens(2, 9).roll(-1, 1)
    gradients = []
    for loss_fn in (LinearCrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")):
        for use_dora in (False, True):
            model = decoder()
            apply_lora(model, replace(EVERYTHING, use_dora=use_dora))
            stirred(model)
            loss = loss_sum(loss_fn, model, tokens(2, 9), labels)
            loss.backward()
            gradients.append(
                {name: p.grad for name, p in adapter_parameters(model).items()} | {"loss": loss.detach()}
            )
    for first, second in zip(gradients[:2], gradients[2:], strict=True):
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=2e-5, msg=name)


def recompute(model: TransformerDecoder) -> None:
    checkpoint_activations(model.layers)


def traced(model: TransformerDecoder) -> None:
    """As `compile_blocks` after recomputation, in one graph for each block, without the minutes that code takes."""
    checkpoint_activations(model.layers[:1])
    for block in model.layers:
        block.compile(backend="aot_eager", fullgraph=True)


@pytest.mark.parametrize("kind", ["dora", "dropout", "quantized"])
@pytest.mark.parametrize("change", [recompute, traced])
def test_recomputed_and_traced_blocks(change: Callable[[TransformerDecoder], None], kind: str) -> None:
    torch._dynamo.reset()
    found = []
    for does_change in (False, True):
        model = decoder(num_layers=2)
        apply_lora(
            model, replace(EVERYTHING, **({"quantize_base": True} if kind == "quantized" else KINDS[kind]))
        )
        stirred(model)
        if does_change:
            change(model)
        torch.manual_seed(3)
        loss = loss_sum(LinearCrossEntropyLoss(), model, tokens(2, 9), tokens(2, 9))
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in adapter_parameters(model).values())])
    for changed, plain in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(changed, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("context", [nullcontext(), torch.autocast("cpu", torch.bfloat16)])
def test_generation_with_caches(context: Any) -> None:
    model = decoder()
    apply_lora(model, replace(EVERYTHING, use_dora=True))
    stirred(model).eval()
    with torch.no_grad(), context:
        whole = model(tokens(2, 9))
        model.setup_caches(2, 9, dtype=torch.float32)
        parts = [model(part) for part in tokens(2, 9).split((4, 3, 1, 1), 1)]
    torch.testing.assert_close(torch.cat(parts, 1).float(), whole.float(), rtol=0.05, atol=0.15)


def test_a_quantised_base() -> None:
    model = decoder()
    apply_lora(model, replace(EVERYTHING, apply_to_mlp=False, quantize_base=True))
    kinds = {type(module) for module in model.layers.modules() if "Linear" in type(module).__name__}
    assert kinds == {LoRALinear, FrozenLinear, nn.Linear}  # the last are A and B
    assert not isinstance(model.output.nf4, NF4Weight)
    assert all(
        isinstance(module.nf4, NF4Weight) and module.weight is None
        for module in model.layers.modules()
        if isinstance(module, FrozenLinear)
    )
    plain = model(tokens(2, 9))
    loss_sum(LinearCrossEntropyLoss(), stirred(model), tokens(2, 9), tokens(2, 9)).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(
        adapter_parameters(model)
    )
    adapted = model(tokens(2, 9))
    assert (adapted - plain).abs().max() > 0.1
    merge_adapters(model)
    torch.testing.assert_close(model(tokens(2, 9)), adapted, rtol=1e-5, atol=2e-5)


def test_a_model_without_memory_gets_its_adapters_after_its_base() -> None:
    with torch.device("meta"):
        model = TransformerDecoder(CONFIG)
        apply_lora(model, replace(EVERYTHING, use_dora=True))
    assert all(parameter.is_meta for parameter in model.parameters())
    with pytest.raises(ConfigError, match="load the base first"):
        reset_adapters(model)


def test_a_model_from_scratch_has_adapters_that_do_nothing_yet() -> None:
    model = decoder()
    apply_lora(model, replace(EVERYTHING, use_dora=True))
    stirred(model).reset_parameters()
    assert not any(module.lora_b.weight.any() for module in adapted_modules(model).values())
    adapted = model(tokens(2, 9))
    assert math.isclose(model.layers[1].attn.k_proj.weight.std(), 0.02, rel_tol=0.1)
    merge_adapters(model)
    assert torch.equal(model(tokens(2, 9)), adapted)


def test_beginning_anew_is_decided_by_the_seed() -> None:
    model = decoder()
    apply_lora(model, EVERYTHING)
    values = []
    for _ in range(2):
        stirred(model)
        torch.manual_seed(8)
        reset_adapters(model)
        values.append({name: p.clone() for name, p in adapter_parameters(model).items()})
    assert all(torch.equal(values[0][name], values[1][name]) for name in values[0])
    a = values[0]["layers.1.mlp.w2.lora_a.weight"]
    bound = 1 / math.sqrt(CONFIG.intermediate_dim)
    assert bound * 0.9 < a.abs().max() <= bound
    reset_adapters(model, torch.bfloat16)
    assert {p.dtype for p in adapter_parameters(model).values()} == {torch.bfloat16}


# --- What is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "fact"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 2.0}, "rank is 2.0"),
        ({"rank": 10**20}, "at most 65536"),
        ({"rank": True}, "rank is True"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"alpha": "8"}, "alpha is '8'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": math.nan}, "dropout is nan"),
        ({"attn_modules": "q_proj"}, "a list of names"),
        (
            {"attn_modules": ("q_proj", "o_proj")},
            "'o_proj'; the attention has q_proj, k_proj, v_proj, output_proj",
        ),
        ({"attn_modules": ("q_proj", "q_proj")}, "q_proj is named twice"),
        ({"attn_modules": ()}, "no matrix gets an adapter"),
        ({"modules": (LoRAModule("layers.0.attn.q_proj", 0, 1.0),)}, "layers.0.attn.q_proj: rank is 0"),
    ],
)
def test_impossible_settings(wrong: dict[str, Any], fact: str) -> None:
    with pytest.raises(ConfigError) as error:
        LoRAConfig(**wrong)
    assert fact in str(error.value)


def test_every_problem_of_the_settings_is_listed() -> None:
    with pytest.raises(ConfigError) as error:
        LoRAConfig(rank=0, alpha=0.0, dropout=2.0, attn_modules=("w1",))  # type: ignore[arg-type]
    assert str(error.value).count("\n") == 4


def test_a_model_that_cannot_have_them() -> None:
    with pytest.raises(ConfigError, match="output matrix is its embedding"):
        apply_lora(decoder(tie_word_embeddings=True), EVERYTHING)
    experts = MoEConfig(num_experts=4, experts_per_token=2, intermediate_dim=20)
    with pytest.raises(ConfigError, match="rows of experts have no magnitudes"):
        apply_lora(decoder(moe=experts), replace(EVERYTHING, use_dora=True))
    dense = replace(experts, dense_layers=(1,))
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.w2: .* without experts get no adapters"):
        apply_lora(decoder(moe=dense), LoRAConfig(modules=(LoRAModule("layers.1.mlp.w2", 2, 1.0),)))
    for path, fact in (
        ("layers.0.mlp.experts.1.w1", "no matrix layers.0.mlp.experts.1.w1"),
        ("layers.7.attn.q_proj", "no matrix layers.7"),
    ):
        with pytest.raises(ConfigError, match=fact):
            apply_lora(decoder(moe=experts), LoRAConfig(modules=(LoRAModule(path, 2, 1.0),)))
    model = decoder()
    apply_lora(model, EVERYTHING)
    with pytest.raises(ConfigError, match="has adapters already"):
        apply_lora(model, EVERYTHING)
    with pytest.raises(ConfigError, match="has no adapters"):
        reset_adapters(decoder())


def test_a_refused_model_is_not_touched() -> None:
    model = decoder(tie_word_embeddings=True)
    with pytest.raises(ConfigError):
        apply_lora(model, EVERYTHING)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not adapted_modules(model)


def test_ranks_of_their_own() -> None:
    modules = (LoRAModule("layers.2.mlp.w2", 5, 3.0), LoRAModule("layers.0.attn.k_proj", 2, 8.0))
    model = decoder()
    apply_lora(model, LoRAConfig(modules=modules))
    sizes = {path: (module.rank, module.scaling) for path, module in adapted_modules(model).items()}
    assert sizes == {"layers.0.attn.k_proj": (2, 4.0), "layers.2.mlp.w2": (5, 0.6)}
