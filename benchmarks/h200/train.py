"""Training a Llama of 8B on one GPU, each contestant in a process of its own, in alternating order.

    python -m benchmarks.h200.train full --output benchmarks/results/h200_full.json
    python -m benchmarks.h200.train adapters --output benchmarks/results/h200_adapters.json
    python -m benchmarks.h200.train full --device cpu --toy

`full` trains all weights as configs shipped it until now (recomputed, not compiled), compiled, and compiled without
recomputation, beside transformers with compiled blocks and Liger's loss where that is installed. `adapters` trains LoRA
and QLoRA beside peft, a model of 0.5B in full, and packed rows through `tune run`. All see the same random tokens, so
that the first losses must agree: about ln V. What no longer fits into the minutes given is named, and left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from benchmarks.h200.contestant import Contestant
from benchmarks.h200.recipe import run_recipe
from benchmarks.setting import DTYPES, SIZES, describe_machine, write_figures
from tune.training.throughput import measure_matmul_rate

# Weights drawn from N(0, 0.02) make logits of a spread that adds a few hundredths to ln V.
FIRST_LOSS_WITHIN = 0.5

_FULL = Contestant("tune", "full", "8b", batch_size=2, seq_len=4096)
_LORA = Contestant("tune", "lora", "8b", batch_size=4, seq_len=4096)
PLANS: dict[str, dict[str, Contestant]] = {
    "full": {
        "tune, recomputed": replace(_FULL, compile=False, recompute=True),
        "tune, recomputed, compiled": replace(_FULL, recompute=True),
        "tune, compiled": _FULL,
        "transformers, compiled": replace(_FULL, tool="transformers"),
    },
    "adapters": {
        "tune, LoRA": _LORA,
        "peft, LoRA": replace(_LORA, tool="transformers"),
        "tune, QLoRA": replace(_LORA, method="qlora"),
        "tune, 0.5B full": replace(_FULL, size="0.5b", batch_size=8),
        "transformers, 0.5B full": replace(_FULL, size="0.5b", batch_size=8, tool="transformers"),
    },
}


def run_alone(name: str, work: Contestant, seconds: float) -> dict[str, Any]:
    """Return the figures of a contestant, or its error: one that needs too much memory ends nobody else."""
    command = [sys.executable, "-m", "benchmarks.h200.contestant", json.dumps(asdict(work))]
    print(f"{name} ...", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {**asdict(work), "error": f"not done within {seconds:.0f} s"}
    if done.returncode != 0:
        return {**asdict(work), "error": done.stderr.strip()[-500:]}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def contest(plan: Mapping[str, Contestant], rounds: int, ends_at: float) -> dict[str, list[dict[str, Any]]]:
    """Return each contestant's figures of every round, each round in the other order, until the time is up."""
    figures: dict[str, list[dict[str, Any]]] = {name: [] for name in plan}
    order = list(plan)
    for _ in range(rounds):
        for name in order:
            left = ends_at - time.monotonic()
            if left <= 0:
                print(f"no time left for {name}", file=sys.stderr)
            else:
                figures[name].append(run_alone(name, plan[name], left))
        order.reverse()
    return figures


def summarize(runs: Sequence[Mapping[str, Any]], limit: float, flops: float | None) -> dict[str, Any]:
    """Return one contestant's figures over its rounds, and their share of what matrix products alone would do."""
    done = [run for run in runs if "error" not in run]
    if not done:
        return {"error": runs[0]["error"] if runs else "no time was left"}
    for run in done:
        expected = math.log(SIZES[run["size"]]["vocab_size"])
        if abs(run["losses"][0] - expected) > FIRST_LOSS_WITHIN:
            sys.exit(
                f"the first loss is {run['losses'][0]:.3f}, not about {expected:.3f}: this is other work"
            )
    rate = statistics.median(run["tokens_per_s"] for run in done)
    return {
        "tokens_per_s": rate,
        "tokens_per_s_least": min(run["tokens_per_s_least"] for run in done),
        "share_of_matmul_limit": rate * flops / limit if flops else None,
        "peak_memory_gib": max(run["peak_memory_gib"] or 0.0 for run in done) or None,
        "graphs": done[0]["graphs"],
        "rounds": list(runs),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", choices=PLANS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="sizes that only show that all of it runs")
    parser.add_argument("--only", help="contestants whose name has this in it")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=9.0, help="no contestant is started after them")
    parser.add_argument("--output", help="also write the figures to this JSON file")
    options = parser.parse_args(argv)
    ends_at = time.monotonic() + 60 * options.minutes
    plan = {name: replace(work, device=options.device) for name, work in PLANS[options.plan].items()}
    plan = {name: work for name, work in plan.items() if (options.only or "") in name}
    if options.toy:
        toy: dict[str, Any] = {"size": "tiny", "batch_size": 2, "seq_len": 32, "steps": 2, "compile": False}
        plan = {name: replace(work, **toy) for name, work in plan.items()}
    limit = measure_matmul_rate(torch.device(options.device), DTYPES["bf16"], seconds=0.5)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # the second round finds what the first compiled
        runs = contest(plan, options.rounds, ends_at)
    # The same work by whoever does it: tune's count serves its peer.
    flops = {
        (run["method"], run["size"]): run["flops_per_token"]
        for run in chain.from_iterable(runs.values())
        if run.get("flops_per_token")
    }
    results = {
        name: summarize(found, limit, flops.get((plan[name].method, plan[name].size)))
        for name, found in runs.items()
    }
    if options.plan == "adapters" and (options.only or "") in "packed":
        with tempfile.TemporaryDirectory() as folder:
            results["tune run, packed"] = run_recipe(
                Path(folder), options.device, options.toy, ends_at - time.monotonic()
            )
    words = " ".join(sys.argv[1:] if argv is None else argv)
    write_figures(
        {
            "command": f"python -m benchmarks.h200.train {words}",
            "machine": {**describe_machine(options.device), "matmul_tflop_per_s": limit / 1e12},
            "results": results,
        },
        options.output,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
