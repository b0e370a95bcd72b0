"""Small checkpoints of families that torchtune's configs name: random weights by transformers, real tokenizers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, Qwen2Config, Qwen2ForCausalLM

from tests.tokenizers.trained_tokenizers import SPECIAL, tiktoken_lines, train

# Of the builders that take sizes: what their names are, and what transformers calls their constants.
_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_KINDS: dict[str, tuple[str, type[PretrainedConfig], type, dict[str, Any]]] = {
    "llama2": ("llama2.{}llama2", LlamaConfig, LlamaForCausalLM, {}),
    "llama3_1": (
        "llama3_1.{}llama3_1",
        LlamaConfig,
        LlamaForCausalLM,
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5, **_ROPE}},
    ),
    "llama3_2": (
        "llama3_2.{}llama3_2",
        LlamaConfig,
        LlamaForCausalLM,
        {
            "rope_parameters": {"rope_type": "llama3", "factor": 32.0, "rope_theta": 5e5, **_ROPE},
            "tie_word_embeddings": True,
        },
    ),
    "qwen2": ("qwen2.{}qwen2", Qwen2Config, Qwen2ForCausalLM, {"rope_parameters": {"rope_theta": 1e6}}),
}


def small_checkpoint(kind: str, folder: Path, spm_file: Path, width: int = 24) -> dict[str, int]:
    """Write one with the files of a download; return the arguments of its builder."""
    _, config_cls, model_cls, constants = _KINDS[kind]
    folder.mkdir(parents=True)
    sizes = {"vocab_size": _write_tokenizer(kind, folder, spm_file), "embed_dim": width}
    sizes |= {"num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "intermediate_dim": 40, "max_seq_len": 192}
    config = config_cls(
        vocab_size=sizes["vocab_size"],
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=40,
        max_position_embeddings=192,
        rms_norm_eps=1e-5,
        **constants,
    )
    torch.manual_seed(width)
    model_cls(config).save_pretrained(folder)
    return sizes


def builder(kind: str, is_lora: bool) -> str:
    """Return the builder that takes these sizes, by torchtune's name."""
    return f"torchtune.models.{_KINDS[kind][0].format('lora_' * is_lora)}"


def _write_tokenizer(kind: str, folder: Path, spm_file: Path) -> int:
    """Write the tokenizer's files; return the number of its tokens."""
    if kind == "llama2":
        shutil.copyfile(spm_file, folder / "tokenizer.model")
        return 600
    if kind == "qwen2":
        content = train("qwen")
        model = content["model"]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
        (folder / "tokenizer.json").write_text(json.dumps(content))
        settings = {"eos_token": SPECIAL["qwen"][2], "pad_token": SPECIAL["qwen"][0]}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return len(model["vocab"]) + len(content["added_tokens"])
    lines = tiktoken_lines(train("llama3"))
    (folder / "original").mkdir()
    (folder / "original" / "tokenizer.model").write_bytes(lines)
    return lines.count(b"\n") + 256
