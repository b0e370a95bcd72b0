"""Configs with the keys of torchtune's for its recipe `eleuther_eval`: valid as they stand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tune.cli.main import main

TAIL = """
device: cuda
dtype: bf16
seed: 1234
tasks: ["truthfulqa_mc2"]
limit: null
max_seq_length: 4096
batch_size: 8
enable_kv_cache: True
quantizer: null
"""
LLAMA2 = """
model:
  _component_: torchtune.models.llama2.llama2_7b
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: /tmp/Llama-2-7b-hf
  checkpoint_files: [pytorch_model-00001-of-00002.bin, pytorch_model-00002-of-00002.bin]
  output_dir: ${output_dir}
  model_type: LLAMA2
tokenizer:
  _component_: torchtune.models.llama2.llama2_tokenizer
  path: /tmp/Llama-2-7b-hf/tokenizer.model
  max_seq_len: null
"""
PHI4 = """
model:
  _component_: torchtune.models.phi4.phi4_14b
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: /tmp/phi-4
  checkpoint_files: {filename_format: "model-{}-of-{}.safetensors", max_filename: "00006"}
  recipe_checkpoint: null
  output_dir: ${output_dir}
  model_type: PHI3_MINI
resume_from_checkpoint: False
tokenizer:
  _component_: torchtune.models.phi4.phi4_tokenizer
  vocab_path: /tmp/phi-4/vocab.json
  merges_path: /tmp/phi-4/merges.txt
  max_seq_len: null
"""
QWEN = """
model:
  _component_: torchtune.models.qwen2_5.qwen2_5_3b
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: /tmp/Qwen2.5
  checkpoint_files: [model-00001-of-00002.safetensors, model-00002-of-00002.safetensors]
  output_dir: ${output_dir}
  model_type: QWEN2
tokenizer:
  _component_: torchtune.models.qwen2_5.qwen2_5_tokenizer
  path: /tmp/Qwen2.5/vocab.json
  merges_file: /tmp/Qwen2.5/merges.txt
  max_seq_len: null
"""
HEAD = "output_dir: ./\n"


@pytest.mark.parametrize(
    "text",
    [HEAD + LLAMA2, HEAD + PHI4, HEAD + QWEN, LLAMA2, LLAMA2 + "resume_from_checkpoint: False\n"],
    ids=["eleuther_evaluation", "phi4", "qwen2_5", "no output_dir", "code_llama2"],
)
def test_a_config_of_torchtune_is_valid(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evaluation.yaml"
    path.write_text(text + TAIL)
    assert main(["validate", str(path), "--recipe", "eleuther_eval", "--json"]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert {warning["code"] for warning in warnings} <= {"renamed-package", "no-effect"}
    assert main(["validate", str(path), "--recipe", "eleuther_eval", "quantizer=int4"]) == 2
