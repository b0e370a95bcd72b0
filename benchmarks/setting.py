"""What the benchmarks share: sizes, training steps in turn, a clock that waits for the device, figures as JSON."""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tune.modules.products import multiply
from tune.training import clip_gradients
from tune.training.throughput import measure_matmul_rate

# Train on tokens [b, s] with their targets [b, s], and return the loss per token, not yet read from the device.
Step = Callable[[Tensor, Tensor], Tensor]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LEARNING_RATE = 1e-4
# bf16 rounds differently where operations are ordered differently; in fp32 a step must be the same step.
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 512, "num_layers": 2, "num_heads": 3, "embed_dim": 48, "intermediate_dim": 112},
    "15m": {"vocab_size": 32_000, "num_layers": 6, "num_heads": 6, "embed_dim": 288, "intermediate_dim": 768},
    "110m": {
        "vocab_size": 32_000,
        "num_layers": 12,
        "num_heads": 12,
        "embed_dim": 768,
        "intermediate_dim": 2048,
    },
    "1b": {
        "vocab_size": 32_000,
        "num_layers": 22,
        "num_heads": 32,
        "num_kv_heads": 4,
        "embed_dim": 2048,
        "intermediate_dim": 5632,
    },
    "0.5b": {
        "vocab_size": 151_936,
        "num_layers": 24,
        "num_heads": 14,
        "num_kv_heads": 2,
        "embed_dim": 896,
        "intermediate_dim": 4864,
    },
    "7b": {
        "vocab_size": 32_000,
        "num_layers": 32,
        "num_heads": 32,
        "embed_dim": 4096,
        "intermediate_dim": 11_008,
    },
    "8b": {
        "vocab_size": 128_256,
        "num_layers": 32,
        "num_heads": 32,
        "num_kv_heads": 8,
        "embed_dim": 4096,
        "intermediate_dim": 14_336,
    },
}


def timed(work: Callable[[], Any], device: str, clock: Callable[[], float]) -> float:
    """Return what ``work`` takes; its results are on the host when it returns, so nothing is pending."""
    if device != "cpu":
        torch.cuda.synchronize()
    started = clock()
    work()
    return clock() - started


def make_step(model: nn.Module, forward: Step) -> Step:
    """Return a whole optimizer step around a forward pass."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)

    def step(tokens: Tensor, labels: Tensor) -> Tensor:
        loss = forward(tokens, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def draw_batches(arguments: argparse.Namespace, vocab_size: int) -> Tensor:
    """Return the same random tokens for everybody, [rounds + 1, b, s + 1]: the first round warms up."""
    generator = torch.Generator().manual_seed(1)
    shape = (arguments.rounds + 1, arguments.batch_size, arguments.seq_len + 1)
    return torch.randint(vocab_size, shape, generator=generator).to(arguments.device)


@dataclass(frozen=True)
class Turns:
    """What contestants did, by name: the loss of every step, and of all but the first its seconds and peak bytes."""

    losses: dict[str, list[float]]
    seconds: dict[str, list[float]]
    peaks: dict[str, int]


def take_turns(steps: Mapping[str, Step], batches: Tensor, arguments: argparse.Namespace) -> Turns:
    """Let all contestants take a step on each batch, each round beginning with another one."""
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    on_gpu = arguments.device != "cpu"
    losses: dict[str, list[float]] = {name: [] for name in steps}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    peaks = dict.fromkeys(steps, 0)
    order = list(steps)
    for index, batch in enumerate(batches):
        for name in order:
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            result: list[float] = []

            def work(step: Step = steps[name], batch: Tensor = batch, result: list[float] = result) -> None:
                result.append(float(step(batch[:, :-1], batch[:, 1:])))

            taken = timed(work, arguments.device, clock)
            losses[name].append(result[0])
            if index:
                seconds[name].append(taken)
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated() if on_gpu else 0)
        order = order[1:] + order[:1]
    return Turns(losses, seconds, peaks)


def check_same_work(losses: Mapping[str, list[float]], tolerance: float) -> float:
    """Return how far apart the losses of any two contestants are.

    Raises:
        SystemExit: further than `tolerance`, so they did not do the same work; or they are no numbers.
    """
    apart: float = max(max(step) - min(step) for step in zip(*losses.values(), strict=True))
    if not all(math.isfinite(loss) for step in losses.values() for loss in step):
        sys.exit(f"the losses are no numbers\n{losses}")
    if apart > tolerance:
        sys.exit(
            f"the losses are up to {apart:.2e} apart: the contestants did not do the same work\n{losses}"
        )
    return apart


def measure_limit(arguments: argparse.Namespace) -> float:
    """Return FLOP/s of a large matrix product, the best of many, by the clock that the steps are timed with."""
    if arguments.device != "cpu" or not arguments.cpu_time:
        return measure_matmul_rate(torch.device(arguments.device), DTYPES[arguments.dtype], seconds=0.5)
    n = 1024
    left, right = torch.randn(2, n, n).to(DTYPES[arguments.dtype])
    products = [timed(lambda: multiply(left, right), "cpu", time.process_time) for _ in range(20)]
    return float(2 * n**3 / min(products))


def describe_rates(seconds: list[float], num_tokens: int, limit: float) -> dict[str, float]:
    """Return tokens per second, their spread over the rounds, and their share of a limit."""
    rates = [num_tokens / taken for taken in seconds]
    return {
        "tokens_per_s": statistics.median(rates),
        "tokens_per_s_min": min(rates),
        "tokens_per_s_max": max(rates),
        "share_of_matmul_limit": statistics.median(rates) / limit,
    }


def parse_steps(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every benchmark of training steps asks."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="15m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
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
    return parser


def describe_machine(device: str) -> dict[str, Any]:
    """Return the device, threads and versions that figures belong to."""
    import transformers

    return {
        "device": torch.cuda.get_device_name() if device != "cpu" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def write_figures(figures: Mapping[str, Any], path: str | None) -> None:
    """Print figures as JSON, and write them to a file where one is named."""
    text = json.dumps(figures, indent=2)
    print(text)
    if path:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text + "\n")
