"""Configs with the keys of torchtune's five for DPO: valid as they stand, and they train on small weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.recipes.small_checkpoints import builder, small_checkpoint
from tune.cli.main import main

HEAD = """
output_dir: /tmp/torchtune/{name}
resume_from_checkpoint: False
"""
LLAMA2_LORA = """
model:
  _component_: torchtune.models.llama2.lora_llama2_7b
  lora_attn_modules: ['q_proj', 'v_proj', 'output_proj']
  apply_lora_to_mlp: True
  apply_lora_to_output: False
  lora_rank: 8
  lora_alpha: 16
  lora_dropout: 0.0
tokenizer:
  _component_: torchtune.models.llama2.llama2_tokenizer
  path: /tmp/Llama-2-7b-hf/tokenizer.model
  max_seq_len: 1024
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: /tmp/Llama-2-7b-hf
  checkpoint_files: [pytorch_model-00001-of-00002.bin, pytorch_model-00002-of-00002.bin]
  adapter_checkpoint: null
  recipe_checkpoint: null
  output_dir: ${output_dir}
  model_type: LLAMA2
save_adapter_weights_only: False
"""
LLAMA3 = """
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  path: /tmp/Meta-Llama-3.1-8B-Instruct/original/tokenizer.model
  max_seq_len: 1024
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: /tmp/Meta-Llama-3.1-8B-Instruct/
  checkpoint_files:
    filename_format: model-{}-of-{}.safetensors
    max_filename: "00004"
  recipe_checkpoint: null
  output_dir: ${output_dir}
  model_type: LLAMA3
"""
LLAMA3_LORA = """
model:
  _component_: torchtune.models.llama3_1.lora_llama3_1_8b
  lora_attn_modules: ['q_proj', 'v_proj', 'output_proj']
  apply_lora_to_mlp: True
  apply_lora_to_output: False
  lora_rank: 16
  lora_alpha: 32
  lora_dropout: 0.0
save_adapter_weights_only: False
"""
LLAMA3_FULL = """
model:
  _component_: torchtune.models.llama3_1.llama3_1_8b
ref_checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: /tmp/Meta-Llama-3.1-8B-Instruct/
  checkpoint_files:
    filename_format: model-{}-of-{}.safetensors
    max_filename: "00004"
  recipe_checkpoint: null
  output_dir: ${output_dir}
  model_type: LLAMA3
tensor_parallel_dim: 1
"""
TRAINING = """
dataset:
  _component_: torchtune.datasets.stack_exchange_paired_dataset
seed: null
shuffle: True
batch_size: 4
optimizer:
  _component_: torch.optim.AdamW
  fused: True
  weight_decay: 0.05
  lr: 5e-4
lr_scheduler:
  _component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 100
loss:
  _component_: torchtune.rlhf.loss.DPOLoss
  beta: 0.1
  label_smoothing: 0
epochs: 1
max_steps_per_epoch: 1000
gradient_accumulation_steps: 8
compile: False
metric_logger:
  _component_: torchtune.training.metric_logging.DiskLogger
  log_dir: ${output_dir}
log_every_n_steps: 1
log_peak_memory_stats: True
device: cuda
dtype: bf16
enable_activation_checkpointing: True
enable_activation_offloading: False
"""
PROFILER = """
profiler:
  _component_: torchtune.training.setup_torch_profiler
  enabled: False
  output_dir: ${output_dir}/profiling_outputs
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
CONFIGS = {
    "llama2/7B_lora_dpo": ("lora_dpo_distributed", LLAMA2_LORA + TRAINING),
    "llama2/7B_lora_dpo_single_device": ("lora_dpo_single_device", LLAMA2_LORA + TRAINING + PROFILER),
    "llama3_1/8B_lora_dpo": ("lora_dpo_distributed", LLAMA3_LORA + LLAMA3 + TRAINING),
    "llama3_1/8B_lora_dpo_single_device": (
        "lora_dpo_single_device",
        LLAMA3_LORA + LLAMA3 + TRAINING + PROFILER,
    ),
    "llama3_1/8B_full_dpo": (
        "full_dpo_distributed",
        LLAMA3_FULL
        + LLAMA3
        + TRAINING.replace("lr: 5e-4", "lr: 1e-6")
        + "optimizer_in_bwd: False\nfsdp_cpu_offload: False\n",
    ),
}


@pytest.fixture
def config(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, Path]:
    recipe, text = CONFIGS[request.param]
    path = tmp_path / "config.yaml"
    path.write_text(HEAD.format(name=request.param) + text)
    return recipe, path


@pytest.mark.parametrize("config", CONFIGS, indirect=True)
def test_they_are_valid_as_they_stand(config: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    recipe, path = config
    assert main(["validate", str(path), "--recipe", recipe, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert report["errors"] == []


@pytest.fixture(scope="module")
def answers_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {
            "question": f"seven green apple{'s' * n}",
            "response_j": "walk",
            "response_k": "river " * (n + 1),
            "qid": n,
        }
        for n in range(5)
    ]
    path = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("config", CONFIGS, indirect=True)
def test_they_train_on_small_weights(
    config: tuple[str, Path], answers_file: Path, tmp_path: Path, spm_file: Path
) -> None:
    """Their model's builder is of 7B or 8B: sizes are replaced, as the files' places are, and the device."""
    recipe, path = config
    is_lora, kind = "lora" in recipe, "llama2" if "Llama-2" in path.read_text() else "llama3_1"
    small = tmp_path / "small"
    sizes = small_checkpoint(kind, small, spm_file)
    overrides = [f"model._component_={builder(kind, is_lora)}"]
    overrides += [f"model.{name}={size}" for name, size in sizes.items()]
    overrides += [
        f"tokenizer.path={small / ('tokenizer.model' if kind == 'llama2' else 'original/tokenizer.model')}",
        "tokenizer.max_seq_len=128",
        f"checkpointer.checkpoint_dir={small}",
        "checkpointer.checkpoint_files=[model.safetensors]",
        f"dataset.source={answers_file}",
        f"output_dir={tmp_path / 'out'}",
        "device=cpu",
        "optimizer.fused=false",
        "log_level=WARNING",
    ]
    if not is_lora:
        overrides += [f"ref_checkpointer.checkpoint_dir={small}"]
        overrides += ["ref_checkpointer.checkpoint_files=[model.safetensors]"]
    assert main(["run", recipe, "--config", str(path), *overrides]) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert row["loss"] == pytest.approx(0.6931472, rel=1e-6)
    assert (tmp_path / "out" / "latest" / "model" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "latest" / "adapter").is_dir() is is_lora
