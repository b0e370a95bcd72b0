"""Adapters in files: peft's own are read whatever form they have, ours are peft's, and the rest is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3MoeConfig

import tune.models
from tune.checkpoints import (
    load_adapter,
    load_into,
    open_weights,
    read_adapter_base,
    read_adapter_config,
    save_adapter,
    save_meta,
    save_model,
)
from tune.errors import CheckpointError, TuneError
from tune.modules import TransformerDecoder
from tune.modules.peft import LoRAConfig, LoRAModule, adapted_modules, adapter_parameters, apply_lora

SIZES = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
LAYERS = "base_model.model.model.layers"
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    directory = tmp_path_factory.mktemp("base")
    AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, initializer_range=0.2)).save_pretrained(directory)
    return directory


def theirs_of(base: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(base).eval()


def ours_of(base: Path) -> TransformerDecoder:
    return tune.models.from_checkpoint(base)


def tokens() -> Tensor:
    return torch.randint(0, SIZES["vocab_size"], (2, 13), generator=torch.Generator().manual_seed(1))


def logits_of(model: TransformerDecoder) -> Tensor:
    with torch.no_grad():
        return model(tokens())


def stir(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def made_by_peft(base: Path, directory: Path, **settings: Any) -> Tensor:
    """Write an adapter and return the logits with it."""
    torch.manual_seed(7)
    options = {"r": 4, "lora_alpha": 9, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
    model = get_peft_model(theirs_of(base), LoraConfig(**options | settings)).eval()
    stir(model)
    model.save_pretrained(directory)
    with torch.no_grad():
        return model(tokens()).logits


def made_here(base: Path, directory: Path, **settings: Any) -> TransformerDecoder:
    model = ours_of(base)
    apply_lora(model, LoRAConfig(**{"rank": 4, "alpha": 9.0} | settings))
    stir(model)
    save_adapter(model, directory, base=str(base))
    return model


def edit(directory: Path, **changes: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- Both ways -------------------------------------------------------------------------------------------

FROM_PEFT: dict[str, dict[str, Any]] = {
    "list": {"target_modules": ["k_proj", "o_proj", "down_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "output": {"target_modules": ["q_proj", "lm_head"]},
    "regex": {"target_modules": r".*\.(0|2)\.(self_attn\.q_proj|mlp\.up_proj)"},
    "some-layers": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["model.layers.1.mlp.up_proj"]},
    "whole-names": {"target_modules": ["model.layers.1.self_attn.v_proj"]},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 6, r"layers\.1\..*(up|down)_proj": 2, "^model.layers.0.mlp.up_proj": 3},
        "alpha_pattern": {"down_proj": 3, r"layers.(0|2).self_attn.(k|v)_proj": 5},
    },
    "rslora-dora": {"use_rslora": True, "use_dora": True, "target_modules": "all-linear"},
    "gaussian": {"init_lora_weights": "gaussian", "lora_dropout": 0.25},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "eva": {"init_lora_weights": "eva", "eva_config": EvaConfig()},
}


@pytest.mark.parametrize("kind", FROM_PEFT)
def test_adapters_of_peft_are_read(kind: str, base: Path, tmp_path: Path) -> None:
    expected = made_by_peft(base, tmp_path / "theirs", **FROM_PEFT[kind])
    ours = ours_of(base)
    load_adapter(ours, tmp_path / "theirs")
    torch.testing.assert_close(logits_of(ours), expected, **TOLERANCE)
    # Written again it is the same adapter, tensor by tensor, and peft reads it; the base's own is left out.
    save_adapter(ours, tmp_path / "ours", base=str(base))
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "ours"))
    assert {name for name in first if "base_layer" not in name} == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in second)
    again = PeftModel.from_pretrained(theirs_of(base), tmp_path / "ours").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(tokens()).logits, expected, **TOLERANCE)
    assert read_adapter_base(tmp_path / "ours") == str(base)
    dropouts = {module.dropout for module in adapted_modules(ours).values()}
    assert dropouts == {FROM_PEFT[kind].get("lora_dropout", 0.0)}


def test_a_pickled_adapter_and_old_names(base: Path, tmp_path: Path) -> None:
    expected = made_by_peft(base, tmp_path, use_dora=True)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    renamed = {name + ".weight" * name.endswith("_vector"): tensor for name, tensor in tensors.items()}
    torch.save(renamed, tmp_path / "adapter_model.bin")
    for field in (
        "peft_version",
        "lora_bias",
        "use_qalora",
        "rank_pattern",
        "exclude_modules",
        "lora_dropout",
    ):
        edit(tmp_path, **{field: None})
    ours = ours_of(base)
    load_adapter(ours, tmp_path)
    torch.testing.assert_close(logits_of(ours), expected, **TOLERANCE)


def test_a_base_that_is_on_its_way_is_named_by_its_place(base: Path, tmp_path: Path) -> None:
    ours = ours_of(base)
    apply_lora(ours, LoRAConfig(rank=2))
    save_adapter(ours, tmp_path / "adapter", str(tmp_path / "base" / ".converting"))
    assert read_adapter_base(tmp_path / "adapter") == str(tmp_path / "base")


def test_an_adapter_of_2023(base: Path, tmp_path: Path) -> None:
    """All that peft 0.2 wrote, and nothing more."""
    expected = made_by_peft(base, tmp_path)
    path = tmp_path / "adapter_config.json"
    now = json.loads(path.read_text())
    names = ("base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "lora_alpha", "lora_dropout",
             "modules_to_save", "peft_type", "r", "target_modules", "task_type")  # fmt: skip
    path.write_text(json.dumps({**{n: now[n] for n in names}, "enable_lora": None, "merge_weights": False}))
    ours = ours_of(base)
    load_adapter(ours, tmp_path)
    torch.testing.assert_close(logits_of(ours), expected, **TOLERANCE)
    edit(tmp_path, enable_lora=[True, False, True])
    with pytest.raises(CheckpointError, match="`enable_lora`"):
        load_adapter(ours_of(base), tmp_path)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_adapters_of_a_changed_base_are_refused_until_converted(
    init: str, base: Path, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    settings = LoraConfig(r=4, lora_alpha=9, target_modules=["q_proj", "v_proj"], init_lora_weights=init)
    model = get_peft_model(theirs_of(base), settings).eval()
    model.peft_config["default"].init_lora_weights = True  # as their documents say
    model.save_pretrained(tmp_path / "begun")
    model.peft_config["default"].init_lora_weights = init
    stir(model)
    with torch.no_grad():
        expected = model(tokens()).logits
    model.save_pretrained(tmp_path / "raw")
    with pytest.raises(CheckpointError, match=rf'"{init}".*path_initial_model_for_weight_conversion'):
        load_adapter(ours_of(base), tmp_path / "raw")
    begun = str(tmp_path / "begun")
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=begun)
    ours = ours_of(base)
    load_adapter(ours, tmp_path / "converted")
    torch.testing.assert_close(logits_of(ours), expected, **TOLERANCE)


def test_feed_forwards_beside_a_mixture_are_refused(tmp_path: Path) -> None:
    """peft takes their names for those of the experts, and leaves them out."""
    torch.manual_seed(5)
    sizes = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [1]}
    AutoModelForCausalLM.from_config(Qwen3MoeConfig(**SIZES, **sizes)).save_pretrained(tmp_path / "base")
    expected = made_by_peft(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj", "o_proj"])
    ours = ours_of(tmp_path / "base")
    load_adapter(ours, tmp_path / "adapter")
    torch.testing.assert_close(logits_of(ours), expected, **TOLERANCE)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    for layer in (0, 1):
        values = {f"{LAYERS}.{layer}.mlp.down_proj.lora_A.weight": torch.ones(4, 56)}
        save_file(load_file(file) | values, file)
        with pytest.raises(
            CheckpointError, match=rf"{layer}\.mlp\.down_proj\.lora_A\.weight: the model has no matrix"
        ):
            load_adapter(ours_of(tmp_path / "base"), tmp_path / "adapter")
    with pytest.raises(TuneError, match=r"layers\.1\.mlp\.w2: .* model that has experts"):
        apply_lora(ours_of(tmp_path / "base"), LoRAConfig(modules=(LoRAModule("layers.1.mlp.w2", 3, 5.0),)))


def test_parameters_that_a_model_has_not_are_refused(base: Path, tmp_path: Path) -> None:
    made_here(base, tmp_path)
    edit(tmp_path, target_parameters=["mlp.experts.gate_up_proj"])
    with pytest.raises(CheckpointError, match=r"`target_parameters` names mlp\.experts\.gate_up_proj"):
        load_adapter(ours_of(base), tmp_path)


def test_other_heads_than_the_bases_are_refused(base: Path, tmp_path: Path) -> None:
    made_by_peft(base, tmp_path, target_modules=["lm_head"])
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.lm_head.base_layer.weight"
    for other in (tensors[name] + 1e-6, torch.cat([tensors[name], tensors[name][:1]])):
        save_file(tensors | {name: other}, file)
        with pytest.raises(CheckpointError, match=r"lm_head\.base_layer\.weight: not the base's own"):
            load_adapter(ours_of(base), tmp_path)


def test_only_the_adapter_is_written(base: Path, tmp_path: Path) -> None:
    model = made_here(base, tmp_path)
    num_bytes = sum(parameter.nbytes for parameter in adapter_parameters(model).values())
    found = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(found) == {"adapter_config.json", "adapter_model.safetensors"}
    assert num_bytes < found["adapter_model.safetensors"] < num_bytes + 3000
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["target_modules"] == ["q_proj", "v_proj"]
    assert (content["r"], content["lora_alpha"], content["rank_pattern"]) == (4, 9, {})


@pytest.mark.parametrize(
    "config",
    [
        LoRAConfig(rank=3, alpha=2.5, attn_modules=("output_proj",), apply_to_mlp=True, use_dora=True),
        LoRAConfig(rank=3, alpha=4.0, attn_modules=(), apply_to_output=True, use_rslora=True, dropout=0.1),
        LoRAConfig(
            modules=(LoRAModule("layers.1.attn.k_proj", 2, 3.0), LoRAModule("layers.2.mlp.w3", 5, 1.0))
        ),
    ],
)
def test_a_configuration_comes_back_as_it_was(config: LoRAConfig, base: Path, tmp_path: Path) -> None:
    model = ours_of(base)
    apply_lora(model, config)
    save_adapter(model, tmp_path, base="")
    with torch.device("meta"):
        empty = tune.models.auto(str(base))
    found = read_adapter_config(tmp_path, empty)
    if not config.modules:
        assert found == config
    assert {(module.path, module.rank, module.alpha) for module in found.modules} == {
        (module.path, module.rank, module.alpha) for module in config.modules
    }
    apply_lora(empty, replace(found, quantize_base=True))
    load_into(empty, open_weights(base))
    load_adapter(empty, tmp_path)
    other = ours_of(base)
    apply_lora(other, replace(found, quantize_base=True))
    load_adapter(other, tmp_path)
    assert torch.equal(logits_of(empty), logits_of(other))
    assert not torch.equal(logits_of(empty), logits_of(model))


def test_a_saved_step_and_an_output_directory(base: Path, tmp_path: Path) -> None:
    model = made_here(base, tmp_path / "step_000020" / "adapter")
    (tmp_path / "latest").symlink_to("step_000020")
    for path in (tmp_path, tmp_path / "latest", tmp_path / "step_000020"):
        again = ours_of(base)
        load_adapter(again, path)
        assert torch.equal(logits_of(again), logits_of(model))


def test_training_goes_on_with_the_same_parameters(base: Path, tmp_path: Path) -> None:
    model = made_here(base, tmp_path)
    other = ours_of(base)
    apply_lora(other, LoRAConfig(rank=4, alpha=9.0, dropout=0.2))
    held = list(adapter_parameters(other).values())
    load_adapter(other, tmp_path)
    assert all(a is b for a, b in zip(held, adapter_parameters(other).values(), strict=True))
    assert all(
        torch.equal(mine, parameter)
        for mine, parameter in zip(held, adapter_parameters(model).values(), strict=True)
    )


def test_wrappers_leave_no_mark_on_names(base: Path, tmp_path: Path) -> None:
    made_here(base, tmp_path / "plain")
    model = ours_of(base)
    load_adapter(model, tmp_path / "plain")
    for index, layer in enumerate(model.layers):
        model.layers[index] = torch.compile(layer)
    save_adapter(model, tmp_path / "wrapped", base=str(base))
    first, second = (tmp_path / name / "adapter_model.safetensors" for name in ("plain", "wrapped"))
    assert first.read_bytes() == second.read_bytes()
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.zero_()
    load_adapter(model, tmp_path / "plain")
    assert all(parameter.abs().sum() > 0 for parameter in adapter_parameters(model).values())


# --- Merged ----------------------------------------------------------------------------------------------


def test_a_saved_model_is_merged_tensor_by_tensor(base: Path, tmp_path: Path) -> None:
    model = made_here(base, tmp_path / "adapter", attn_modules=("q_proj",), use_dora=True)
    save_model(model, tmp_path / "hf")
    save_meta(model, tmp_path / "meta")
    for name in ("hf", "meta"):
        torch.testing.assert_close(logits_of(ours_of(tmp_path / name)), logits_of(model), **TOLERANCE)
    written, before = (load_file(path / "model.safetensors") for path in (tmp_path / "hf", base))
    changed = {name for name, tensor in written.items() if not torch.equal(tensor, before[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(3)}


def test_a_merged_weight_is_rounded_once(base: Path, tmp_path: Path) -> None:
    made_here(base, tmp_path / "adapter")
    model = tune.models.from_checkpoint(base, dtype="bf16")
    load_adapter(model, tmp_path / "adapter", dtype=torch.float32)
    module = adapted_modules(model)["layers.1.attn.q_proj"]
    exact = (
        module.weight.double()
        + module.scaling * module.lora_b.weight.double() @ module.lora_a.weight.double()
    )
    for dtype in (torch.bfloat16, torch.float32):
        save_model(model, tmp_path / str(dtype), dtype=dtype)
        found = load_file(tmp_path / str(dtype) / "model.safetensors")[
            "model.layers.1.self_attn.q_proj.weight"
        ]
        assert found.dtype == dtype
        off = (found.double() - exact).abs() / exact.abs().clamp(min=1e-3)
        assert off.max() <= (2.0**-8 if dtype == torch.bfloat16 else 1e-5)


# --- What is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "LOHA"),
        ("task_type", "TOKEN_CLS"),
        ("bias", "lora_only"),
        ("fan_in_fan_out", True),
        ("modules_to_save", "lm_head"),
        ("init_lora_weights", "pissa"),
        ("layer_replication", [[0, 2]]),
        ("target_parameters", "mlp.experts.gate_up_proj"),
        ("trainable_token_indices", {"embed_tokens": ["one"]}),
        ("alora_invocation_tokens", [1]),
        ("lora_bias", True),
        ("megatron_config", {"a": 1}),
        ("use_qalora", True),
        ("a_field_of_next_year", 0.5),
        ("r", "four"),
        ("r", 0),
        ("r", True),
        ("lora_alpha", None),
        ("lora_alpha", 0),
        ("lora_alpha", float("inf")),
        ("lora_alpha", 1e308),
        ("lora_dropout", 1.0),
        ("use_dora", "yes"),
        ("target_modules", {"q_proj": 1}),
        ("target_modules", [3]),
        ("rank_pattern", [4]),
        ("rank_pattern", {"q_proj": "four"}),
        ("alpha_pattern", {"(a*)*b": 4}),
        ("alpha_pattern", {"a" * 1000: 4}),
        ("alpha_pattern", {"(": 4}),
        ("alpha_pattern", {".?" * 90 + "X": 4}),
        ("alpha_pattern", {"(.|.)" * 50 + "X": 4}),
        ("alpha_pattern", {r"(.)\1": 4}),
        ("rank_pattern", {f"m{number}": 4 for number in range(5000)}),
        ("alpha_pattern", {"q_proj": float("nan")}),
    ],
)
def test_settings_that_are_not_supported_are_named(
    field: str, value: Any, base: Path, tmp_path: Path
) -> None:
    made_here(base, tmp_path)
    edit(tmp_path, **{field: value})
    model = ours_of(base)
    with pytest.raises(CheckpointError) as error:
        load_adapter(model, tmp_path)
    words = {"r": ("`r`",), "lora_alpha": ("`lora_alpha`",)}.get(field, (field,))
    assert all(word in str(error.value) for word in words)
    assert not adapted_modules(model)
    with pytest.raises(CheckpointError):
        read_adapter_base(tmp_path)


def test_other_trained_modules_are_named(base: Path, tmp_path: Path) -> None:
    made_by_peft(base, tmp_path / "one", target_modules=["q_proj"], modules_to_save=["lm_head", "norm"])
    made_by_peft(base, tmp_path / "two", target_modules=["q_proj", "embed_tokens"])
    for name, fact in (
        ("one", "`modules_to_save` names 'norm'"),
        ("two", "lora_embedding_A: no part of a linear adapter"),
    ):
        with pytest.raises(CheckpointError, match=fact):
            load_adapter(ours_of(base), tmp_path / name)


def without(ending: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.endswith(ending)}


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (
            without("layers.1.self_attn.q_proj.lora_B.weight"),
            "layers.1.self_attn.q_proj: its lora_B is missing",
        ),
        (
            without("layers.1.self_attn.q_proj.lora_A.weight"),
            "layers.1.self_attn.q_proj: its lora_A is missing",
        ),
        (without("weight"), "no tensor is named"),
        (
            lambda tensors: {n: t for n, t in tensors.items() if "layers.2.self_attn.v_proj" not in n},
            "layers.2.self_attn.v_proj: `target_modules` names it, and it has no weights",
        ),
        (
            lambda tensors: tensors | {f"{LAYERS}.0.mlp.up_proj.lora_A.weight": torch.ones(4, 48)},
            "up_proj.lora_A.weight: `target_modules` does not name it",
        ),
        (
            lambda tensors: (
                tensors
                | {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.ones(4, 48)}
            ),
            "layers.9.self_attn.q_proj.lora_A.weight: the model has no matrix of this name",
        ),
        (lambda tensors: tensors | {"surplus": torch.ones(2)}, "surplus: no part of a linear adapter"),
        (
            lambda tensors: {n: t[:2] if n.endswith("lora_A.weight") else t for n, t in tensors.items()},
            r"\[2, 48\] in the file, where the model and adapter_config.json need \[4, 48\]",
        ),
        (
            lambda tensors: {n: t.to(torch.int32) for n, t in tensors.items()},
            "stored as I32; only",
        ),
    ],
)
def test_misfits_are_all_named_and_nothing_is_loaded(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], fact: str, base: Path, tmp_path: Path
) -> None:
    made_here(base, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    model = ours_of(base)
    plain = logits_of(model)
    with pytest.raises(CheckpointError, match=fact):
        load_adapter(model, tmp_path)
    assert torch.equal(logits_of(model), plain)
    assert not adapted_modules(model)


def test_an_adapter_of_another_form_than_the_models(base: Path, tmp_path: Path) -> None:
    made_here(base, tmp_path)
    model = ours_of(base)
    apply_lora(model, LoRAConfig(rank=5, alpha=9.0, attn_modules=("q_proj", "k_proj")))
    before = {name: parameter.clone() for name, parameter in adapter_parameters(model).items()}
    with pytest.raises(CheckpointError) as error:
        load_adapter(model, tmp_path)
    for fact in (
        "layers.0.attn.v_proj: an adapter in the file, none in the model",
        "layers.2.attn.k_proj: an adapter in the model, none in the file",
        "layers.1.attn.q_proj: rank 4 in the file, 5 in the model",
    ):
        assert fact in str(error.value)
    assert all(torch.equal(before[name], parameter) for name, parameter in adapter_parameters(model).items())
    for wrong, fact in (
        ({"alpha": 8.0}, "scaled by 2.25 in the file, by 2 "),
        ({"use_dora": True}, "use_dora is False"),
    ):
        model = ours_of(base)
        apply_lora(model, LoRAConfig(**{"rank": 4, "alpha": 9.0} | wrong))
        with pytest.raises(CheckpointError, match=fact):
            load_adapter(model, tmp_path)


def test_files_that_are_missing_or_broken(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no adapter was found"):
        load_adapter(ours_of(base), tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no adapter was found"):
        load_adapter(ours_of(base), base)
    made_here(base, tmp_path / "a")
    weights, config = (tmp_path / "a" / name for name in ("adapter_model.safetensors", "adapter_config.json"))
    whole = weights.read_bytes()
    for content in (b"", whole[:50], whole[:-7]):
        weights.write_bytes(content)
        with pytest.raises(CheckpointError):
            load_adapter(ours_of(base), tmp_path / "a")
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"but no adapter_model.safetensors or adapter_model.bin"):
        load_adapter(ours_of(base), tmp_path / "a")
    weights.write_bytes(whole)
    config.write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_adapter(ours_of(base), tmp_path / "a")


@pytest.mark.parametrize("parts", ["{", "[]", '{"a": 1}', '{"model.layers.0.self_attn.q_proj": {"x": -1}}'])
def test_broken_metadata(parts: str, base: Path, tmp_path: Path) -> None:
    made_here(base, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file(load_file(file), file, {"parts": parts})
    with pytest.raises(CheckpointError, match="metadata of the adapter's file is broken"):
        load_adapter(ours_of(base), tmp_path)


def test_an_adapter_is_no_model(base: Path, tmp_path: Path) -> None:
    made_here(base, tmp_path)
    with pytest.raises(CheckpointError, match="holds an adapter, which is nothing without its base"):
        tune.models.from_checkpoint(tmp_path)


def test_what_cannot_be_saved(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no adapters to save"):
        save_adapter(ours_of(base), tmp_path, base="")
    model = made_here(base, tmp_path)
    with pytest.raises(CheckpointError, match="holds weights already"):
        save_adapter(model, tmp_path, base="")
    with torch.device("meta"):
        empty = tune.models.auto(str(base))
        apply_lora(empty, LoRAConfig(rank=4, alpha=9.0))
        bare = tune.models.auto(str(base))
    with pytest.raises(CheckpointError, match="no memory yet"):
        save_adapter(empty, tmp_path / "b", base="")
    for model in (empty, bare):
        with pytest.raises(CheckpointError, match="no memory yet"):
            load_adapter(model, tmp_path)
    assert not adapted_modules(bare)
