"""Folders as runs leave them, with numbers and texts of one's choice."""

from __future__ import annotations

import json
import math
from pathlib import Path

# What text of a stranger's may try in a page.
HOSTILE = (
    "</script></pre><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>"
    "\"'--><svg onload=alert(1)>&lt;b&gt;\x1b[31m\u202e⟧⟦</title>"
)


def make_run(folder: Path, num_steps: int = 20, lr: float = 0.1, text: str = "a plain text") -> Path:
    """Write the files of a run, with metrics of each step and a validation at every tenth."""
    folder.mkdir(parents=True)
    write_metrics(folder / "metrics.jsonl", num_steps, lr)
    sample = {"prompt": text, "answer": text}
    lines = [json.dumps({"step": step, **sample}) for step in range(0, num_steps, 5)]
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    quoted = json.dumps(text)
    (folder / "config.yaml").write_text(
        "recipe: full_finetune\n\n# Data\n"
        f"dataset:\n  _component_: tune.datasets.instruct_dataset  # mine.yaml:3\n  source: {quoted}  # {text[:40]!r}\n"
        f"optimizer:\n  lr: {lr}  # command line: lr={lr}\nclip_grad_norm: null  # default\n"
        f"metric_logger:\n  api_key: s3cret  # command line: metric_logger.api_key=s3cret\n"
        f"output_dir: {folder.name}  # x\n",
        encoding="utf-8",
    )
    (folder / "preview.txt").write_text(
        "The first examples as the model reads them: ...\n\n--- example 0 ---\n"
        f"⟨<s>⟩{text}⟦ learnt {text}⟨</s>⟩⟧\n\n--- example 1 ---\n⟦{text}\n",
        encoding="utf-8",
    )
    record = {
        "tune_run": 1,
        "status": text,
        "command": text,
        "num_steps": num_steps,
        "versions": {"tune": text, "torch": "2"},
        "recipe": {"file": text, "git": {"commit": text, "branch": text}},
        "host": {"name": text},
        "device": {"name": text, "type": "cpu"},
        "data": {"text": text},
        "memory": {
            "parts_gib": {text: [0.1, 0.2, 0.3]},
            "predicted_gib": 0.6,
            "measured_gib": 0.5,
            "predicted_for_measured_gib": 0.55,
            "fullest": text,
        },
        "warnings": [text],
        "sessions": [{"started": text, "status": text, "from_step": text, "error": text}],
    }
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def write_metrics(path: Path, num_steps: int, lr: float = 0.1) -> None:
    with path.open("w", encoding="utf-8") as file:
        for step in range(1, num_steps + 1):
            loss = 2.0 + 3.0 * math.exp(-lr * step / 10) + 0.1 * math.sin(step)
            row = {
                "step": step,
                "epoch": 0,
                "loss": loss,
                "lr": lr * step / num_steps,
                "grad_norm": 1.0 + 0.1 * math.cos(step),
                "tokens_per_second": 1000.0 + step % 7,
                "trained_tokens_per_second": 200.0 + step % 3,
                "fraction_of_limit": 0.4 + 0.001 * (step % 5),
                "num_tokens": 100 * step,
                "num_trained_tokens": 20 * step,
                "peak_memory_gib": 1.0 + step / num_steps,
            }
            if step % 10 == 0 or step in (1, num_steps):
                row |= {"val_loss": loss + 0.1, "val_perplexity": math.exp(loss + 0.1)}
            file.write(json.dumps(row) + "\n")
