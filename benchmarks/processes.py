"""What sharding saves each process, and what saving costs training: the real recipe, with one process and more.

    python -m benchmarks.processes --size 110m --processes 1 2 --output FILE.json

For each number of processes a run of a random Llama saves every other step, once in the foreground and once in the
background (`enable_async_checkpointing`). The global batch is the same, and so must be the losses of every step.
Reported are the largest peak of memory of any process before the first save, the seconds that training waited for a
save, and the seconds until that step was complete on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.setting import SIZES, describe_machine, write_figures
from tune.checkpoints import save_model
from tune.models.llama2 import llama2
from tune.tokenizers import from_checkpoint

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "recipes" / "bundled" / "tiny_llama"
NUM_STEPS = 8
SAVE_EVERY = 2
# AdamW in fp32: weights, gradients, two moments.
BYTES_PER_PARAMETER = 16
SAVED = re.compile(r"Saved \S+ in ([\d.]+) s(?: in the background; training waited ([\d.]+) s)?")
LOSS_TOLERANCE = 1e-4


def make_inputs(folder: Path, size: str) -> int:
    """Write a random model and some data into `folder`; return the number of parameters."""
    torch.manual_seed(0)
    sizes = dict(SIZES[size])
    model = llama2(max_seq_len=512, **{**sizes, "vocab_size": max(sizes["vocab_size"], 768)})
    save_model(model, folder / "base", tokenizer=from_checkpoint(TINY))
    rows = [{"question": f"{i} goose crab {i * 7 % 31}", "answer": f"crab {i}"} for i in range(64)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return sum(parameter.numel() for parameter in model.parameters())


def run(folder: Path, processes: int, in_background: bool, batch_size: int) -> dict[str, Any]:
    """Train once; return what it reported."""
    out = folder / f"out_{processes}_{in_background}"
    words = [
        *("--nproc_per_node", str(processes), "full_finetune", "--config", "tiny/full_finetune"),
        *(
            f"model_checkpoint={folder / 'base'}",
            f"dataset.source={folder / 'data.jsonl'}",
            f"output_dir={out}",
        ),
        *(f"batch_size={batch_size // processes}", f"max_steps_per_epoch={NUM_STEPS}", "epochs=1", "lr=1e-4"),
        *("log_every_n_steps=1", "lr_scheduler.num_warmup_steps=1", f"save_every_n_steps={SAVE_EVERY}"),
        *("keep_last_n_checkpoints=1", f"enable_async_checkpointing={str(in_background).lower()}"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tune", "run", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    saves = [(float(written), float(waited or written)) for written, waited in SAVED.findall(done.stderr)]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    step = next(out.glob("step_*"))
    return {
        "losses": [row["loss"] for row in rows],
        "peak_memory_gib": rows[SAVE_EVERY - 1]["peak_memory_gib"],
        "written_s": statistics.median(written for written, _ in saves),
        "training_waited_s": statistics.median(waited for _, waited in saves),
        "saved_bytes": sum(path.stat().st_size for path in step.rglob("*") if path.is_file()),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="110m")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-size", type=int, default=4, help="sequences of all processes together")
    parser.add_argument("--folder", help="where to write; a temporary folder if left out")
    parser.add_argument("--note", default="", help="kept with the figures, such as who shares the machine")
    parser.add_argument("--output", help="also write the figures to this JSON file")
    arguments = parser.parse_args(argv)
    results = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        num_parameters = make_inputs(Path(folder), arguments.size)
        losses: list[list[float]] = []
        for processes in arguments.processes:
            for in_background in (False, True):
                figures = run(Path(folder), processes, in_background, arguments.batch_size)
                losses.append(figures.pop("losses"))
                name = f"{processes} {'in the background' if in_background else 'in the foreground'}"
                results[name] = figures
    apart = max(abs(a - b) / b for run_losses in losses for a, b in zip(run_losses, losses[0], strict=True))
    if apart > LOSS_TOLERANCE:
        print(f"the runs did not do the same work: their losses are apart by {apart:.1e}", file=sys.stderr)
        return 1
    write_figures(
        {
            "command": f"python -m benchmarks.processes {' '.join(sys.argv[1:] if argv is None else argv)}",
            "machine": describe_machine("cpu"),
            "work": {
                "parameters": num_parameters,
                "states_gib": BYTES_PER_PARAMETER * num_parameters / 2**30,
                "losses_apart": apart,
                "note": arguments.note,
            },
            "results": results,
        },
        arguments.output,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
