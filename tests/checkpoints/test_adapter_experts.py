"""Adapters of experts in files: what peft writes is read, and what is written here peft reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GptOssConfig, MixtralConfig, PreTrainedConfig, Qwen3MoeConfig

import tune.models
from tune.checkpoints import load_adapter, read_adapter_config, save_adapter
from tune.errors import CheckpointError
from tune.modules import TransformerDecoder
from tune.modules.peft import (
    LoRAConfig,
    LoRAExperts,
    LoRAModule,
    adapted_modules,
    adapter_parameters,
    apply_lora,
    merge_adapters,
)

SIZES = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "initializer_range": 0.2,
}
BASES: dict[str, PreTrainedConfig] = {
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, num_experts=5, moe_intermediate_size=24, mlp_only_layers=[1]),
    # Its files know no single experts: transposed, gates and what they open in turns, with biases.
    "gpt_oss": GptOssConfig(**SIZES, num_local_experts=5, head_dim=8, sliding_window=4),
}
# As peft had them while experts were modules.
OF_EXPERTS = {"mixtral": ["w1", "w2", "w3"], "qwen3_moe": ["gate_proj", "up_proj", "down_proj"]}
TOLERANCE = {"rtol": 1e-5, "atol": 5e-5}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    for name, config in BASES.items():
        torch.manual_seed(5)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    return {name: folder / name for name in BASES}


@pytest.fixture(params=OF_EXPERTS)
def base(request: pytest.FixtureRequest, bases: dict[str, Path]) -> Path:
    return bases[request.param]


@pytest.fixture(params=BASES)
def any_base(request: pytest.FixtureRequest, bases: dict[str, Path]) -> Path:
    return bases[request.param]


def tokens() -> Tensor:
    return torch.randint(0, SIZES["vocab_size"], (2, 13), generator=torch.Generator().manual_seed(1))


def logits_of(model: TransformerDecoder) -> Tensor:
    with torch.no_grad():
        return model.eval()(tokens())


def stir(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def made_by_peft(base: Path, directory: Path, **settings: Any) -> Tensor:
    torch.manual_seed(7)
    config = LoraConfig(**{"r": 4, "lora_alpha": 9, "task_type": "CAUSAL_LM"} | settings)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base).eval(), config).eval()
    stir(model)
    model.save_pretrained(directory)
    with torch.no_grad():
        return model(tokens()).logits


def read_by_peft(base: Path, directory: Path) -> Tensor:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), directory).eval()
    with torch.no_grad():
        return model(tokens()).logits


def ours_with(base: Path, directory: Path) -> TransformerDecoder:
    model = tune.models.from_checkpoint(base)
    load_adapter(model, directory)
    return model


PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
FROM_PEFT: dict[str, dict[str, Any]] = {
    "both": {"target_modules": [], "target_parameters": PARAMETERS},
    "gates": {"target_modules": ["q_proj"], "target_parameters": PARAMETERS[:1]},
    "down": {"target_modules": ["k_proj", "o_proj"], "target_parameters": ["down_proj"]},
    "sizes": {
        "target_modules": ["v_proj"],
        "target_parameters": PARAMETERS,
        "rank_pattern": {"gate_up_proj": 6, "v_proj": 2},
        "alpha_pattern": {"down_proj": 3},
        "use_rslora": True,
    },
    "old names": {"target_modules": ["q_proj", "old"]},
}


@pytest.mark.parametrize("kind", FROM_PEFT)
def test_experts_of_peft_are_read_and_written(kind: str, any_base: Path, tmp_path: Path) -> None:
    base, settings = any_base, dict(FROM_PEFT[kind])
    if kind == "old names" and base.name not in OF_EXPERTS:
        pytest.skip("never had modules for them")
    if kind == "old names":
        settings["target_modules"] = ["q_proj", *OF_EXPERTS[base.name]]
    expected = made_by_peft(base, tmp_path / "theirs", **settings)
    ours = ours_with(base, tmp_path / "theirs")
    torch.testing.assert_close(logits_of(ours), expected, **TOLERANCE)
    stir(ours)  # gates and what they open part
    changed = logits_of(ours)
    assert not torch.allclose(changed, expected, atol=1e-2)
    save_adapter(ours, tmp_path / "ours", base=str(base))
    torch.testing.assert_close(read_by_peft(base, tmp_path / "ours"), changed, **TOLERANCE)
    again = ours_with(base, tmp_path / "ours")
    assert torch.equal(logits_of(again), changed)
    for name, parameter in adapter_parameters(ours).items():
        assert torch.equal(adapter_parameters(again)[name], parameter), name


def made_here(base: Path, directory: Path, **settings: Any) -> TransformerDecoder:
    model = tune.models.from_checkpoint(base)
    apply_lora(model, LoRAConfig(**{"rank": 3, "alpha": 7.0, "apply_to_mlp": True} | settings))
    stir(model)
    save_adapter(model, directory, base=str(base))
    return model


def test_experts_are_written_one_by_one(base: Path, tmp_path: Path) -> None:
    """As the checkpoints of these families have them, whatever adapts the attention."""
    model = made_here(base, tmp_path, dropout=0.2)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["target_modules"] == sorted(["q_proj", "v_proj", *OF_EXPERTS[base.name]])
    assert "target_parameters" not in content
    assert content["lora_dropout"] == 0  # peft takes no other with experts
    names = set(load_file(tmp_path / "adapter_model.safetensors"))
    assert sum(".experts." in name for name in names) == 2 * 3 * sum(
        module.num_experts for path, module in adapted_modules(model).items() if path.endswith(".w1")
    )
    torch.testing.assert_close(read_by_peft(base, tmp_path), logits_of(model), **TOLERANCE)
    again = ours_with(base, tmp_path)
    assert torch.equal(logits_of(again), logits_of(model))
    read = read_adapter_config(tmp_path, tune.models.from_checkpoint(base))
    assert read == LoRAConfig(rank=3, alpha=7.0, apply_to_mlp=True)


@pytest.mark.parametrize(
    "modules",
    [
        [("w1", 3, 7.0)],
        [("w1", 3, 7.0), ("w3", 6, 14.0)],
        [("w2", 2, 1.0), ("w3", 5, 3.0)],
        [("w1", 2, 4.0), ("w2", 2, 4.0), ("w3", 2, 4.0)],
    ],
)
def test_what_no_single_names_say_goes_beside_all(
    modules: list[tuple[str, int, float]], any_base: Path, tmp_path: Path
) -> None:
    """One layer's experts, gates alone, or of another rank than what they open."""
    base = any_base
    chosen = tuple(LoRAModule(f"layers.2.mlp.experts.{leaf}", *size) for leaf, *size in modules)
    model = made_here(base, tmp_path, modules=chosen)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert all(name.startswith("model.layers.2.mlp.experts.") for name in content["target_parameters"])
    torch.testing.assert_close(read_by_peft(base, tmp_path), logits_of(model), **TOLERANCE)
    again = ours_with(base, tmp_path)
    assert torch.equal(logits_of(again), logits_of(model))
    assert set(read_adapter_config(tmp_path, tune.models.from_checkpoint(base)).modules) == set(chosen)


def test_merged_experts_are_the_adapted_ones(any_base: Path, tmp_path: Path) -> None:
    model = made_here(any_base, tmp_path)
    expected = logits_of(model)
    tune.checkpoints.save_model(model, tmp_path / "merged")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens()).logits, expected, **TOLERANCE)
    merge_adapters(model)
    assert not adapted_modules(model)
    torch.testing.assert_close(logits_of(model), expected, **TOLERANCE)


def test_damaged_adapters_of_experts_are_named(base: Path, tmp_path: Path) -> None:
    made_here(base, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if ".experts.1." in name and "lora_B" in name)
    changes: list[tuple[dict[str, Tensor], str]] = [
        ({key: value for key, value in tensors.items() if key != name}, f"{name} is missing"),
        (
            tensors | {name: tensors[name][:, 1:].contiguous()},
            r"\[\d+, 2\] in the file, where .* need \[\d+, 3\]",
        ),
        (tensors | {name: tensors[name] * float("nan")}, "not finite"),
        (tensors | {name.replace(".1.", ".11."): tensors[name].clone()}, "no matrix of this name|unknown"),
    ]
    for damaged, fact in changes:
        save_file(damaged, file)
        with pytest.raises(CheckpointError, match=fact):
            ours_with(base, tmp_path)


def test_routers_and_magnitudes_are_refused(base: Path, tmp_path: Path) -> None:
    made_by_peft(base, tmp_path, target_modules=[], target_parameters=["mlp.gate.weight"])
    with pytest.raises(CheckpointError, match=r"`target_parameters` names mlp\.gate\.weight"):
        ours_with(base, tmp_path)
    with pytest.raises(tune.errors.ConfigError, match="use_dora"):
        apply_lora(tune.models.from_checkpoint(base), LoRAConfig(apply_to_mlp=True, use_dora=True))


def test_dense_layers_get_none_beside_experts(base: Path) -> None:
    model = tune.models.from_checkpoint(base)
    apply_lora(model, LoRAConfig(apply_to_mlp=True))
    paths = [path for path in adapted_modules(model) if ".mlp." in path]
    with_experts = [i for i, layer in enumerate(model.layers) if hasattr(layer.mlp, "experts")]
    assert paths == [f"layers.{i}.mlp.experts.{leaf}" for i in with_experts for leaf in ("w1", "w2", "w3")]
    assert all(isinstance(adapted_modules(model)[path], LoRAExperts) for path in paths)


def test_checkpoints_with_stacked_experts_are_read(base: Path, tmp_path: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(base).eval()
    theirs.save_pretrained(tmp_path, save_original_format=False)
    names = load_file(tmp_path / "model.safetensors")
    assert any(name.endswith("mlp.experts.gate_up_proj") for name in names)
    with torch.no_grad():
        expected = theirs(tokens()).logits
    torch.testing.assert_close(logits_of(tune.models.from_checkpoint(tmp_path)), expected, **TOLERANCE)
