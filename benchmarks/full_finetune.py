"""How fast all weights of a model are trained: tune's step beside transformers', on the same weights and tokens.

    python -m benchmarks.full_finetune --size 15m --seq-len 256
    python -m benchmarks.full_finetune --size 7b --device cuda --dtype bf16 --seq-len 4096 --compile

Both contestants take the same optimizer step (fused AdamW) on the same random tokens, in turn, each round beginning
with another one; their losses must agree, or the figures are worth nothing. Formulas are in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

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


def make_steps(arguments: argparse.Namespace, dtype: torch.dtype) -> tuple[DecoderConfig, dict[str, Step]]:
    """Return the sizes, and each contestant's optimizer step under its name, all from the same weights."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    start = llama2(**SIZES[arguments.size], max_seq_len=arguments.seq_len)
    with tempfile.TemporaryDirectory() as folder:
        save_model(start, folder, dtype=dtype)
        with torch.device("meta"):
            ours = llama2(**SIZES[arguments.size], max_seq_len=arguments.seq_len).to(dtype)
        load_into(ours, open_weights(folder), device=torch.device(arguments.device))
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(arguments.device)
    if arguments.compile:
        compile_blocks(ours.layers)
        for layer in theirs.model.layers:
            layer.compile()
    loss_fn = LinearCrossEntropyLoss()

    def forward_ours(tokens: Tensor, labels: Tensor) -> Tensor:
        return loss_sum(loss_fn, ours, tokens, labels) / labels.numel()

    def forward_theirs(tokens: Tensor, labels: Tensor) -> Tensor:
        logits = theirs(tokens, use_cache=False).logits.float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    contestants = {"tune": (ours, forward_ours), "transformers": (theirs, forward_theirs)}
    return ours.config, {
        name: make_step(model.train(), forward) for name, (model, forward) in contestants.items()
    }


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the rounds and return every figure.

    Raises:
        SystemExit: the contestants' losses differ, so they did not do the same work.
    """
    dtype = DTYPES[arguments.dtype]
    config, steps = make_steps(arguments, dtype)
    turns = take_turns(steps, draw_batches(arguments, config.vocab_size), arguments)
    apart = check_same_work(turns.losses, LOSS_TOLERANCE[arguments.dtype])
    matmul_rate = measure_limit(arguments)
    limit = matmul_rate / flops_per_token(config, arguments.seq_len)
    num_tokens = arguments.batch_size * arguments.seq_len
    results = {
        name: {
            **describe_rates(seconds, num_tokens, limit),
            # Both models stay on the device, so this holds the other's weights and optimizer state as well.
            "peak_memory_gib_with_both_models": turns.peaks[name] / 1024**3 if turns.peaks[name] else None,
            "losses": turns.losses[name],
        }
        for name, seconds in turns.seconds.items()
    }
    return {
        "machine": {**describe_machine(arguments.device), "matmul_tflop_per_s": matmul_rate / 1e12},
        "work": {**vars(arguments), "parameters": config.num_parameters()},
        "limit_tokens_per_s": limit,
        "losses_apart": apart,
        "results": results,
    }


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_steps(__doc__).parse_args(argv)
    write_figures(compare(arguments), arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
