"""Configs of torchtune's distillation, by their keys: they are valid as they stand, and run on small weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.recipes.small_checkpoints import builder, small_checkpoint
from tune.cli.main import main

PAIRS = {
    "qwen2/1.5_to_0.5B_KD_lora": {
        "student": "qwen2.lora_qwen2_0_5b",
        "teacher": "qwen2.qwen2_1_5b",
        "tokenizer": "qwen2.qwen2_tokenizer",
        "type": "QWEN2",
        "tokenizer_path": "vocab.json\n  merges_file: /tmp/student/merges.txt",
    },
    "qwen2_5/1.5B_to_0.5B_KD_lora": {
        "student": "qwen2_5.lora_qwen2_5_0_5b",
        "teacher": "qwen2_5.qwen2_5_1_5b_instruct",
        "tokenizer": "qwen2_5.qwen2_5_tokenizer",
        "type": "QWEN2",
        "tokenizer_path": "vocab.json\n  merges_file: /tmp/student/merges.txt",
    },
    "qwen2_5/14B_to_7B_KD_lora": {
        "student": "qwen2_5.lora_qwen2_5_7b",
        "teacher": "qwen2_5.lora_qwen2_5_14b_instruct\n  lora_attn_modules: ['q_proj', 'v_proj', 'output_proj']",
        "tokenizer": "qwen2_5.qwen2_5_tokenizer",
        "type": "QWEN2",
        "tokenizer_path": "vocab.json\n  merges_file: /tmp/student/merges.txt",
    },
    "llama3_2/8B_to_1B_KD_lora": {
        "student": "llama3_2.lora_llama3_2_1b",
        "teacher": "llama3_1.llama3_1_8b",
        "tokenizer": "llama3.llama3_tokenizer",
        "type": "LLAMA3",
        "tokenizer_path": "original/tokenizer.model",
    },
}
RECIPES = {
    "single_device": {"memory_stats": "True", "more": ""},
    "distributed": {"memory_stats": "False", "more": "clip_grad_norm: null\nfsdp_cpu_offload: False"},
}
CONFIG = """\
output_dir: /tmp/torchtune/{name}
model:
  _component_: torchtune.models.{student}
  lora_attn_modules: ['q_proj', 'v_proj', 'output_proj']
  apply_lora_to_mlp: True
  lora_rank: 32
  lora_alpha: 64
  lora_dropout: 0.0
teacher_model:
  _component_: torchtune.models.{teacher}
tokenizer:
  _component_: torchtune.models.{tokenizer}
  path: /tmp/student/{tokenizer_path}
  max_seq_len: null
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: /tmp/student
  checkpoint_files: [
    model.safetensors
  ]
  recipe_checkpoint: null
  output_dir: ${{output_dir}}
  model_type: {type}
resume_from_checkpoint: False
save_adapter_weights_only: False
teacher_checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: /tmp/teacher
  checkpoint_files: [
    model-00001-of-00002.safetensors,
    model-00002-of-00002.safetensors
  ]
  recipe_checkpoint: null
  output_dir: ${{output_dir}}
  model_type: {type}
dataset:
  _component_: torchtune.datasets.alpaca_cleaned_dataset
  packed: False
seed: null
shuffle: True
batch_size: 8
optimizer:
  _component_: torch.optim.AdamW
  weight_decay: 0.01
  lr: 3e-4
lr_scheduler:
  _component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 100
loss:
  _component_: torchtune.modules.loss.CEWithChunkedOutputLoss
kd_loss:
  _component_: torchtune.modules.loss.ForwardKLWithChunkedOutputLoss
kd_ratio: 0.5
epochs: 1
max_steps_per_epoch: null
gradient_accumulation_steps: 8
compile: False
metric_logger:
  _component_: torchtune.training.metric_logging.DiskLogger
  log_dir: ${{output_dir}}/logs
log_every_n_steps: 1
log_peak_memory_stats: {memory_stats}
device: cuda
dtype: bf16
enable_activation_checkpointing: False
enable_activation_offloading: False
{more}
profiler:
  _component_: torchtune.training.setup_torch_profiler
  enabled: False
  output_dir: ${{output_dir}}/profiling_outputs
  cpu: True
  cuda: True
  profile_memory: False
  with_stack: False
  record_shapes: True
  with_flops: False
  wait_steps: 5
  warmup_steps: 3
  active_steps: 2
  num_cycles: 1
"""
QWEN_FILES = {"path": "vocab.json", "merges_file": "merges.txt"}


def write_config(folder: Path, name: str, kind: str) -> Path:
    path = folder / f"{kind}.yaml"
    path.write_text(CONFIG.format(name=name, **PAIRS[name], **RECIPES[kind]))
    return path


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("name", PAIRS)
def test_they_are_valid_as_they_stand(
    name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, name, kind)
    recipe = f"knowledge_distillation_{kind}"
    assert main(["validate", str(config), "--recipe", recipe, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    # Nothing is said but that names of torchtune's are read as ours.
    assert {warning["code"] for warning in report["warnings"]} <= {"renamed-package"}
    # Ours goes by the same name, and by its own recipe.
    assert main(["validate", f"{name}_{kind}", "--json"]) == 0


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("name", PAIRS)
def test_they_run_on_small_weights(name: str, kind: str, tmp_path: Path, spm_file: Path) -> None:
    """Their builders are of published sizes: these are replaced, as the files' places are, and the device."""
    rows = [
        {"instruction": "Add the numbers.", "input": f"{n} and 3", "output": f"It is {n + 3}.", "text": ""}
        for n in range(9)
    ]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    small = [
        f"dataset.source={tmp_path / 'data.json'}",
        f"output_dir={tmp_path / 'out'}",
        "device=cpu",
        "dtype=fp32",
        "batch_size=3",
        "gradient_accumulation_steps=2",
    ]
    families = ("llama3_2", "llama3_1") if name.startswith("llama") else ("qwen2", "qwen2")
    parts = {"student": ("model", "checkpointer"), "teacher": ("teacher_model", "teacher_checkpointer")}
    for part, family, width in zip(parts, families, (24, 32), strict=True):
        model, checkpointer = parts[part]
        sizes = small_checkpoint(family, tmp_path / part, spm_file, width)
        small.append(f"{model}._component_={builder(family, 'lora_' in PAIRS[name][part])}")
        small += [f"{model}.{size}={number}" for size, number in sizes.items()]
        small += [f"{checkpointer}.checkpoint_dir={tmp_path / part}"]
        small += [f"{checkpointer}.checkpoint_files=[model.safetensors]"]
    if name.startswith("llama"):
        small += [f"tokenizer.path={tmp_path / 'student' / 'original' / 'tokenizer.model'}"]
        small += [f"teacher_tokenizer.path={tmp_path / 'teacher' / 'original' / 'tokenizer.model'}"]
    else:
        small += [f"tokenizer.{file}={tmp_path / 'student' / where}" for file, where in QWEN_FILES.items()]
    config = write_config(tmp_path, name, kind)
    assert main(["run", f"knowledge_distillation_{kind}", "--config", str(config), *small]) == 0
    steps = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 2
    for row in steps:
        assert row["loss"] == pytest.approx((row["kd_loss"] + row["ce_loss"]) / 2, rel=1e-5)
    assert (tmp_path / "out" / "latest" / "adapter" / "adapter_model.safetensors").is_file()
