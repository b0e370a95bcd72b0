"""Runs that start from a larger model: what they save is that model, trained in its text part alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from larger_models import is_text, random_larger
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedModel

import tune.models
from tune.cli.main import main

TOKENS = torch.randint(0, 300, (2, 31), generator=torch.Generator().manual_seed(0))
RESUMED = (
    *("resume_from_checkpoint=true", "allow_changes_on_resume=true"),
    "enable_async_checkpointing=true",
)
TOLERANCE = {"rtol": 1e-5, "atol": 5e-5}


@pytest.fixture(params=["gemma3", "ministral3"])
def reference(request: pytest.FixtureRequest) -> PreTrainedModel:
    return random_larger(request.param, vocab_size=307)


@pytest.fixture
def base(reference: PreTrainedModel, tokenizer_dir: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "base"
    reference.save_pretrained(directory, max_shard_size="40KB")
    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(directory)
    (directory / "processor_config.json").write_text('{"image_seq_length": 4}')
    return directory


def run(recipe: str, base: Path, data_file: Path, out: Path, *others: str, steps: int = 2) -> None:
    settings = {
        "model": "auto",
        "tokenizer": "auto",
        "model_checkpoint": base,
        "output_dir": out,
        "dataset.source": data_file,
        "optimizer": "{_component_: AdamW, lr: 0.02}",
        "lr_scheduler": "null",
        "epochs": 1,
        "max_steps_per_epoch": steps,
        "gradient_accumulation_steps": 1,
        "device": "cpu",
        "dtype": "fp32",
        "log_level": "WARNING",
    }
    overrides = [f"{name}={value}" for name, value in settings.items()]
    config = "gemma3/1B_full" if recipe == "full_finetune" else "gemma3/1B_lora"
    assert main(["run", recipe, "--config", config, *overrides, *others]) == 0


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()
    }


def check_whole(kind: type[PreTrainedModel], base: Path, saved: Path) -> PreTrainedModel:
    """Check that a saved model loads as the larger one with our logits, and that its other tensors are the base's."""
    held, before = tensors_of(saved), tensors_of(base)
    assert held.keys() == before.keys()
    assert all(torch.equal(held[name], before[name]) for name in held if not is_text(name))
    moved = [name for name in held if is_text(name) and not torch.equal(held[name], before[name])]
    assert len(moved) > 5
    assert (saved / "processor_config.json").read_text() == '{"image_seq_length": 4}'
    model = kind.from_pretrained(saved, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(input_ids=TOKENS).logits
        torch.testing.assert_close(tune.models.from_checkpoint(saved)(TOKENS), logits, **TOLERANCE)
    return model


def test_a_full_run_and_its_resumption_save_the_whole(
    reference: PreTrainedModel, base: Path, data_file: Path, tmp_path: Path
) -> None:
    out, kept = tmp_path / "out", ["save_every_n_steps=1", "keep_last_n_checkpoints=1"]
    run("full_finetune", base, data_file, out, *kept)
    check_whole(type(reference), base, out / "latest" / "model")
    # The step that is gone on from is deleted before the last one is written.
    run("full_finetune", base, data_file, out, *kept, *RESUMED, steps=4)
    assert [path.name for path in sorted(out.glob("step_*"))] == ["step_000004"]
    check_whole(type(reference), base, out / "latest" / "model")
    manifest = json.loads((out / "latest" / "manifest.json").read_text())
    assert "model/processor_config.json" in manifest["files"]


def test_a_lora_run_saves_what_peft_applies_to_the_whole(
    reference: PreTrainedModel, base: Path, data_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("lora_finetune", base, data_file, out, "save_adapter_weights_only=true")
    with safe_open(out / "latest" / "adapter" / "adapter_model.safetensors", framework="pt") as file:
        assert all("model.model.language_model.layers." in name for name in file.keys())  # noqa: SIM118
    whole = type(reference).from_pretrained(base, attn_implementation="eager")
    theirs = PeftModel.from_pretrained(whole, out / "latest" / "adapter").eval()
    assert main(["merge", str(out / "latest"), "--to", str(tmp_path / "merged")]) == 0
    merged = check_whole(type(reference), base, tmp_path / "merged")
    with torch.no_grad():
        expected = theirs(input_ids=TOKENS).logits
        torch.testing.assert_close(merged(input_ids=TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
