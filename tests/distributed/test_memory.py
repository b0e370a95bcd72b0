"""Sharded over processes, each of them holds less."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.distributed.launching import launch
from tune.checkpoints import save_model
from tune.models.llama2 import llama2
from tune.tokenizers import SentencePieceTokenizer


def test_two_processes_need_less_memory_each_than_one(tmp_path: Path, spm_file: Path) -> None:
    """Weights, gradients and AdamW's two moments in fp32 are 16 bytes per parameter, of which each then holds half."""
    torch.manual_seed(0)
    model = llama2(600, 10, 8, 480, 64, intermediate_dim=1312)
    num_bytes = 16 * sum(parameter.numel() for parameter in model.parameters())
    save_model(model, tmp_path / "base", tokenizer=SentencePieceTokenizer(spm_file))
    data = tmp_path / "data.jsonl"
    rows = [{"instruction": "Say it.", "input": "goose crab", "output": "goose crab"}] * 8
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    peaks = {}
    for processes in (1, 2):
        out = tmp_path / f"out_{processes}"
        done = launch(
            processes,
            "full_finetune",
            *("--config", "tiny/full_finetune", f"model_checkpoint={tmp_path / 'base'}", "dtype=fp32"),
            *(f"dataset.source={data}", f"output_dir={out}", f"batch_size={4 // processes}", "epochs=1"),
            *("log_every_n_steps=1", "lr_scheduler.num_warmup_steps=1"),
        )
        assert done.returncode == 0, done.stderr
        lines = (out / "metrics.jsonl").read_text().splitlines()
        # The largest of any process, before the last step is saved.
        peaks[processes] = json.loads(lines[-1])["peak_memory_gib"] * 2**30
    # Half of it would be ideal. In between stand a gathered block, buffers of what is sent, and 60 MiB of torch's
    # distributed package.
    assert peaks[1] - peaks[2] > 0.3 * num_bytes
