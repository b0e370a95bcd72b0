"""How fast all weights of a model are trained: tune's step beside transformers', on the same weights and tokens.

    python -m benchmarks.full_finetune --size 15m --seq-len 256
    python -m benchmarks.full_finetune --size 7b --device cuda --dtype bf16 --seq-len 4096 --compile

Both contestants start from the same file and take the same optimizer steps (fused AdamW) on the same random tokens,
each in a process of its own, so that the peak memory is that of one. They take turns, every second time in the other
order. Their losses must agree, or the figures are worth nothing. Formulas are in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.checkpoints import read_memory
from benchmarks.lora import reset_peak
from benchmarks.setting import (
    DTYPES,
    LOSS_TOLERANCE,
    SIZES,
    Step,
    check_same_work,
    describe_machine,
    describe_rates,
    draw_batches,
    make_step,
    measure_limit,
    parse_steps,
    take_turns,
    write_figures,
)
from tune.checkpoints import load_into, open_weights, save_model
from tune.models.llama2 import llama2
from tune.modules import DecoderConfig, flops_per_token
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum
from tune.training import compile_blocks


def make_start(arguments: argparse.Namespace, folder: Path) -> DecoderConfig:
    """Write the model that everybody begins with, and return its sizes."""
    torch.manual_seed(0)
    start = llama2(**SIZES[arguments.size], max_seq_len=arguments.seq_len)
    save_model(start, folder, dtype=DTYPES[arguments.dtype])
    return start.config


def prepare_tune(arguments: argparse.Namespace, folder: Path) -> tuple[nn.Module, Step]:
    with torch.device("meta"):
        model = llama2(**SIZES[arguments.size], max_seq_len=arguments.seq_len).to(DTYPES[arguments.dtype])
    load_into(model, open_weights(folder), device=torch.device(arguments.device))
    if arguments.compile:
        compile_blocks(model.layers)
    loss_fn = LinearCrossEntropyLoss()
    return model, lambda tokens, labels: loss_sum(loss_fn, model, tokens, labels) / labels.numel()


def prepare_transformers(arguments: argparse.Namespace, folder: Path) -> tuple[nn.Module, Step]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[arguments.dtype]).to(arguments.device)
    if arguments.compile:
        for layer in model.model.layers:
            layer.compile()

    def forward(tokens: Tensor, labels: Tensor) -> Tensor:
        logits = model(tokens, use_cache=False).logits.float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    return model, forward


CONTESTANTS = {"tune": prepare_tune, "transformers": prepare_transformers}


def train(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Be one contestant: train alone, and return each step's loss and seconds, and the peak bytes."""
    import transformers  # for both, so that what an import takes is no part of anybody's memory

    assert transformers.LlamaForCausalLM
    before = 0 if arguments.device == "cuda" else read_memory(os.getpid())["VmRSS"]
    model, forward = CONTESTANTS[name](arguments, folder)
    reset_peak(torch.device(arguments.device))
    vocab_size = SIZES[arguments.size]["vocab_size"]
    turns = take_turns(
        {name: make_step(model.train(), forward)}, draw_batches(arguments, vocab_size), arguments
    )
    peak = turns.peaks[name] if arguments.device == "cuda" else read_memory(os.getpid())["VmHWM"] - before
    return {"losses": turns.losses[name], "seconds": turns.seconds[name], "peak": peak}


def run_alone(name: str, words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return what a contestant says of itself in a process of its own."""
    own = ["--contestant", name, "--folder", str(folder)]
    command = [sys.executable, "-m", "benchmarks.full_finetune", *words, *own]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{name} failed in a process of its own")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(arguments: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """Let everybody train in turn and return every figure.

    Raises:
        SystemExit: the contestants' losses differ, so they did not do the same work.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = make_start(arguments, Path(folder))
        order = list(CONTESTANTS)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in order}
        for turn in range(arguments.turns):
            for name in reversed(order) if turn % 2 else order:
                runs[name].append(run_alone(name, words, Path(folder)))
    losses = {f"{name} {turn}": run["losses"] for name in order for turn, run in enumerate(runs[name])}
    apart = check_same_work(losses, LOSS_TOLERANCE[arguments.dtype])
    matmul_rate = measure_limit(arguments)
    limit = matmul_rate / flops_per_token(config, arguments.seq_len)
    num_tokens = arguments.batch_size * arguments.seq_len
    results = {
        name: {
            **describe_rates([second for run in runs[name] for second in run["seconds"]], num_tokens, limit),
            "peak_memory_gib": max(run["peak"] for run in runs[name]) / 1024**3,
            "losses": runs[name][0]["losses"],
        }
        for name in order
    }
    return {
        "machine": {**describe_machine(arguments.device), "matmul_tflop_per_s": matmul_rate / 1e12},
        "work": {**vars(arguments), "parameters": config.num_parameters()},
        "load_average": os.getloadavg()[0],
        "limit_tokens_per_s": limit,
        "losses_apart": apart,
        "results": results,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = parse_steps(__doc__)
    parser.add_argument("--turns", type=int, default=2, help="processes of each, of so many rounds")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = parser.parse_args(words)
    contestant, folder = arguments.contestant, arguments.folder
    del arguments.contestant, arguments.folder
    if contestant:
        print(json.dumps(train(contestant, arguments, Path(folder))))
        return 0
    write_figures(compare(arguments, words), arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
