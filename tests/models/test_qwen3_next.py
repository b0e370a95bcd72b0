"""Qwen3-Next beyond the table: matrices that files keep head by head, published forms of its files, configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, stir
from peft import LoraConfig, PeftModel, get_peft_model
from published_qwens import PUBLISHED
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import tune.models
from tune.checkpoints import load_adapter, save_adapter, save_model
from tune.errors import CheckpointError
from tune.models.loading import read_model_config
from tune.modules.peft import adapted_modules

TOKENS = torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(1))
TOLERANCE = {"rtol": 1e-5, "atol": 2e-4}  # as in test_families_lora: the reference grows what it rounds


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(CASES["qwen3_next"](), attn_implementation="eager").eval()
    stir(model)
    directory = tmp_path_factory.mktemp("base")
    model.save_pretrained(directory)
    return directory


def theirs_of(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        found = model.eval()(TOKENS)
    return found if isinstance(found, Tensor) else found.logits


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_adapters_of_peft_are_read_and_written(use_dora: bool, base: Path, tmp_path: Path) -> None:
    targets = ["in_proj_qkvz", "in_proj_ba", "out_proj", "q_proj"]
    config = LoraConfig(r=4, lora_alpha=9, target_modules=targets, use_dora=use_dora, task_type="CAUSAL_LM")
    theirs = get_peft_model(theirs_of(base), config)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = tune.models.from_checkpoint(base)
    plain = logits_of(ours)
    load_adapter(ours, tmp_path / "theirs")
    expected = logits_of(theirs)
    assert (expected - plain).abs().mean() > 0.01
    torch.testing.assert_close(logits_of(ours), expected, **TOLERANCE)
    assert {"layers.0.attn.in_proj_z", "layers.2.attn.in_proj_a"} <= adapted_modules(ours).keys()
    save_adapter(ours, tmp_path / "ours", base=str(base))
    again = PeftModel.from_pretrained(theirs_of(base), tmp_path / "ours")
    torch.testing.assert_close(logits_of(again), expected, **TOLERANCE)
    save_model(ours, tmp_path / "merged")
    torch.testing.assert_close(logits_of(theirs_of(tmp_path / "merged")), expected, **TOLERANCE)


def test_files_with_experts_one_by_one_and_guesses_come_back(base: Path, tmp_path: Path) -> None:
    """As they are published: each expert's matrices by themselves, and layers that guess at tokens further on."""
    published = tmp_path / "published"
    published.mkdir()
    (published / "config.json").write_text((base / "config.json").read_text())
    tensors = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        owner, _, kind = name.rpartition(".")
        if kind not in ("gate_up_proj", "down_proj"):
            tensors[name] = tensor
            continue
        for expert, matrix in enumerate(tensor):
            kinds = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
            for own, part in zip(kinds, matrix.chunk(len(kinds)), strict=True):
                tensors[f"{owner}.{expert}.{own}.weight"] = part.clone()
    tensors["mtp.fc.weight"] = torch.randn(3, 5).bfloat16()
    save_file(tensors, published / "model.safetensors", metadata={"format": "pt"})
    model = tune.models.from_checkpoint(published)
    assert torch.equal(logits_of(model), logits_of(tune.models.from_checkpoint(base)))
    save_model(model, tmp_path / "saved")
    held = load_file(tmp_path / "saved" / "model.safetensors")
    assert torch.equal(held.pop("mtp.fc.weight"), tensors.pop("mtp.fc.weight"))
    torch.testing.assert_close(logits_of(theirs_of(tmp_path / "saved")), logits_of(model), **TOLERANCE)
    again = tune.models.from_checkpoint(tmp_path / "saved")
    assert torch.equal(logits_of(again), logits_of(model))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"decoder_sparse_step": 0}, "`decoder_sparse_step` is 0"),
        ({"mlp_only_layers": "none"}, "`mlp_only_layers` is"),
        ({"use_sliding_window": True}, "`use_sliding_window` is true"),
        ({"linear_num_value_heads": 24}, "num_value_heads is 24, not a multiple of num_key_heads 16"),
        ({"num_experts_per_tok": 513}, "experts_per_token is 513"),
        ({"num_experts": 10**6}, "so many experts are not built"),
        ({"norm_topk_prob": 1}, "`norm_topk_prob` is 1; it must be true or false"),
        ({"hidden_act": "gelu"}, "`hidden_act` is"),
        ({"quantization_config": {"quant_method": "auto-round"}}, "quantised"),
    ],
)
def test_what_is_not_understood_is_named(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["qwen3_next_80b_a3b"] | changes))
    with pytest.raises(CheckpointError, match=says):
        read_model_config(tmp_path)


def test_what_a_configuration_leaves_out_is_as_in_the_reference(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_next"}')
    found = read_model_config(tmp_path)[1]
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["qwen3_next_80b_a3b"]))
    published = read_model_config(tmp_path)[1]
    differing = {name for name, value in vars(published).items() if getattr(found, name) != value}
    assert differing == {"rope_base", "max_seq_len", "intermediate_dim"}
    assert (found.rope_base, found.max_seq_len, found.intermediate_dim) == (10_000.0, 32_768, 5632)


def test_layers_between_the_steps_have_no_experts(tmp_path: Path) -> None:
    content = {**PUBLISHED["qwen3_next_80b_a3b"], "num_hidden_layers": 6, "decoder_sparse_step": 2}
    (tmp_path / "config.json").write_text(json.dumps({**content, "mlp_only_layers": [3]}))
    moe = read_model_config(tmp_path)[1].moe
    assert moe is not None
    assert moe.dense_layers == (0, 2, 3, 4)
