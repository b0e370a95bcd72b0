"""How fast all weights of a model are trained: tune's step beside transformers', on the same weights and tokens.

    python -m benchmarks.full_finetune --size 15m --seq-len 256
    python -m benchmarks.full_finetune --size 7b --device cuda --dtype bf16 --seq-len 4096 --compile

Both contestants take the same optimizer step (fused AdamW) on the same random tokens, in turn, each round beginning
with another one; their losses must agree, or the figures are worth nothing. Formulas are in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.setting import SIZES, describe_machine, timed, write_figures
from tune.checkpoints import load_into, open_weights, save_model
from tune.models.llama2 import llama2
from tune.modules import DecoderConfig, flops_per_token
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum
from tune.training import clip_gradients, compile_blocks, measure_matmul_rate

# Train on tokens [b, s] with their targets [b, s], and return the loss per token, not yet read from the device.
Step = Callable[[Tensor, Tensor], Tensor]
LEARNING_RATE = 1e-4
# bf16 rounds differently where operations are ordered differently; in fp32 a step must be the same step.
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}


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


def make_step(model: nn.Module, forward: Step) -> Step:
    """Return a whole optimizer step around a forward pass."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def step(tokens: Tensor, labels: Tensor) -> Tensor:
        loss = forward(tokens, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the rounds and return every figure.

    Raises:
        SystemExit: the contestants' losses differ, so they did not do the same work.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    config, steps = make_steps(arguments, dtype)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    on_gpu = arguments.device != "cpu"
    generator = torch.Generator().manual_seed(1)
    shape = (arguments.rounds + 1, arguments.batch_size, arguments.seq_len + 1)
    batches = torch.randint(config.vocab_size, shape, generator=generator).to(arguments.device)

    losses: dict[str, list[float]] = {name: [] for name in steps}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    peaks = dict.fromkeys(steps, 0)
    order = list(steps)
    for index, batch in enumerate(batches):
        for name in order:
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            work = partial(steps[name], batch[:, :-1], batch[:, 1:])
            result: list[Tensor] = []
            taken = timed(lambda work=work, result=result: result.append(work()), arguments.device, clock)  # type: ignore[misc]
            losses[name].append(float(result[0]))
            if index:  # the first one warms up
                seconds[name].append(taken)
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated() if on_gpu else 0)
        order = order[1:] + order[:1]
    apart = max(abs(a - b) for a, b in zip(losses["tune"], losses["transformers"], strict=True))
    if apart > LOSS_TOLERANCE[arguments.dtype]:
        sys.exit(
            f"the losses are up to {apart:.2e} apart: the contestants did not do the same work\n{losses}"
        )

    matmul_rate = measure_matmul_rate(torch.device(arguments.device), dtype, seconds=0.5)
    limit = matmul_rate / flops_per_token(config, arguments.seq_len)
    num_tokens = arguments.batch_size * arguments.seq_len
    results = {}
    for name, taken_by_round in seconds.items():
        rates = [num_tokens / taken for taken in taken_by_round]
        results[name] = {
            "tokens_per_s": statistics.median(rates),
            "tokens_per_s_min": min(rates),
            "tokens_per_s_max": max(rates),
            "share_of_matmul_limit": statistics.median(rates) / limit,
            # Both models stay on the device, so this holds the other's weights and optimizer state as well.
            "peak_memory_gib_with_both_models": peaks[name] / 1024**3 if on_gpu else None,
            "losses": losses[name],
        }
    return {
        "machine": {**describe_machine(arguments.device), "matmul_tflop_per_s": matmul_rate / 1e12},
        "work": {**vars(arguments), "parameters": config.num_parameters()},
        "limit_tokens_per_s": limit,
        "losses_apart": apart,
        "results": results,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="15m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of weights and optimizer")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compile each block of both")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count processor seconds of all threads, for a machine shared with others (set OMP_NUM_THREADS=1)",
    )
    parser.add_argument("--output", help="also write the figures to this JSON file")
    arguments = parser.parse_args(argv)
    write_figures(compare(arguments), arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
