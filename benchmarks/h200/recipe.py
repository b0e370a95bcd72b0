"""Packed rows through `tune run full_finetune` as a user starts it, from random weights: the figures its log gives."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

NUM_DOCUMENTS = 3000
# Steps before these find shapes, kernels and memory for the first time.
WARM_UP_STEPS = 4
STEPS = 16


def write_documents(path: Path, longest: int) -> None:
    """Write documents of random words, of lengths from a handful of tokens to about `longest`."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(NUM_DOCUMENTS):
            count = int(draw.triangular(3, longest / 3, longest / 20))
            words = ("".join(draw.choices("aeioustrnlm", k=draw.randint(1, 6))) for _ in range(count))
            file.write(json.dumps({"text": " ".join(words)}) + "\n")


def run_recipe(folder: Path, device: str, toy: bool, seconds: float) -> dict[str, Any]:
    """Return tokens per second of a 0.5B model (a tiny one as a toy) trained on packed rows, or the error."""
    longest = 64 if toy else 4096
    write_documents(folder / "documents.jsonl", longest)
    sizes = "vocab_size=768 num_layers=2 num_heads=4 num_kv_heads=2 embed_dim=64 intermediate_dim=128 max_seq_len=64"
    model = [f"model.{size}" for size in sizes.split()] if toy else []
    command = [
        *(sys.executable, "-m", "tune", "run", "full_finetune"),
        *("train_from_scratch=true", "tokenizer=llama2_tokenizer"),
        "tokenizer.path=bundled:tiny_llama/tokenizer.model",
        f"model={'qwen2' if toy else 'qwen2_5_0_5b'}",
        *model,
        *("dataset=text_completion", f"dataset.source={folder / 'documents.jsonl'}"),
        *(f"dataset.max_seq_len={longest}", "dataset.packed=true", "batch_size=8"),
        *("optimizer=AdamW", "optimizer.lr=1e-4", "clip_grad_norm=1.0", f"max_steps={STEPS}", "epochs=1"),
        *(f"device={device}", "dtype=bf16", f"compile={'false' if toy else 'true'}", "seed=1"),
        *("log_every_n_steps=1", "metric_logger=jsonl", f"output_dir={folder / 'run'}"),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=max(seconds, 1))
    except subprocess.TimeoutExpired:
        return {"error": "no time was left"}
    if done.returncode != 0:
        return {"error": (done.stdout + done.stderr)[-500:]}
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "tokens_per_second" in line][WARM_UP_STEPS:]
    return {
        "command": [word.replace(str(folder), "FOLDER") for word in command[1:]],
        "tokens_per_s": statistics.median(step["tokens_per_second"] for step in steps),
        "steps": steps,
    }
