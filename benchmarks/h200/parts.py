"""What the parts of training take on this GPU: matrix products, attention, new shapes, decoding, the loss, NF4.

    python -m benchmarks.h200.parts --output benchmarks/results/h200_parts.json
    python -m benchmarks.h200.parts --device cpu --toy

Before them the tests marked `gpu` run, whose last lines stand among the figures. All inputs are random; each figure is
the median of at least eight runs, by the device's own events. A part that fails is named with its error; the others
go on.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.setting import SIZES, describe_machine, timed, write_figures
from tune.generation import generate
from tune.models.llama2 import llama2
from tune.modules.loss import LinearCrossEntropyLoss
from tune.modules.optim import AdamW
from tune.modules.peft import nf4_linear, quantize_nf4

RUNS = 8
NEW_SHAPES = 20


class Scale:
    """How large everything is: an 8B model's, or a toy's."""

    def __init__(self, device: str, toy: bool) -> None:
        self.device, self.toy = device, toy
        self.model = SIZES["tiny"] if toy else SIZES["8b"]
        self.d, self.f, self.vocab = (
            self.model[name] for name in ("embed_dim", "intermediate_dim", "vocab_size")
        )
        self.rows = 64 if toy else 8192
        self.heads, self.kv_heads, self.head_dim = (4, 2, 16) if toy else (32, 8, 128)
        self.batch, self.length = (2, 64) if toy else (2, 4096)

    def randn(self, *shape: int, grad: bool = False) -> Tensor:
        """Return random numbers in bf16, spread as hidden states are."""
        return torch.randn(*shape, device=self.device, dtype=torch.bfloat16).requires_grad_(grad)


def median_ms(work: Callable[[], Any], device: str) -> float:
    """Return what work takes in milliseconds: the median of its runs, after two that warm up."""
    for _ in range(2):
        work()
    return 1000 * statistics.median(timed_on(work, device) for _ in range(RUNS))


def timed_on(work: Callable[[], Any], device: str) -> float:
    """Return seconds, by events where the device has them: the host's own time is then no part."""
    if device == "cpu":
        return timed(work, device, time.perf_counter)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def products(scale: Scale) -> dict[str, Any]:
    """Return the rate of the matrix products of an 8B block and of its vocabulary, in TFLOP/s."""
    shapes = {
        "q": (scale.d, scale.d),
        "k or v": (scale.d, scale.kv_heads * scale.head_dim),
        "gate or up": (scale.d, scale.f),
        "down": (scale.f, scale.d),
        "vocabulary": (scale.d, scale.vocab),
        "LoRA's A": (scale.d, 16),
    }
    rates = {}
    for name, (inner, outer) in shapes.items():
        left, right = scale.randn(scale.rows, inner), scale.randn(outer, inner)
        taken = median_ms(partial(F.linear, left, right), scale.device)
        rates[name] = 2e-9 * scale.rows * inner * outer / taken
    return rates


def attention(scale: Scale) -> dict[str, Any]:
    """Return milliseconds of causal attention, forward and backward, by each of torch's kernels that takes it."""
    shape = (scale.batch, scale.heads, scale.length, scale.head_dim)
    shape_kv = (scale.batch, scale.kv_heads, scale.length, scale.head_dim)
    q, k, v = (scale.randn(*size, grad=True) for size in (shape, shape_kv, shape_kv))
    taken: dict[str, Any] = {}

    def step() -> None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out.backward(torch.ones_like(out) * 0.1)  # type: ignore[no-untyped-call]

    for backend in (
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ):
        with sdpa_kernel(backend):
            taken[backend.name] = attempt(partial(median_ms, step, scale.device))
    return taken


def new_shapes(scale: Scale) -> dict[str, Any]:
    """Return milliseconds of the first forward pass at each of 20 lengths, and of a second one, on one block."""
    model = tiny_depth(scale)
    first, second = [], []
    for index in range(NEW_SHAPES):
        tokens = torch.randint(scale.vocab, (1, scale.length // 2 + 8 * index + 1), device=scale.device)
        with torch.no_grad():
            first.append(1000 * timed_on(partial(model, tokens), scale.device))
            second.append(1000 * timed_on(partial(model, tokens), scale.device))
    return {"first_ms": statistics.median(first), "second_ms": statistics.median(second)}


def tiny_depth(scale: Scale) -> Any:
    """Return a model as wide as the whole one, of two blocks."""
    with torch.device("meta"):
        model = llama2(**{**scale.model, "num_layers": 2}, max_seq_len=2 * scale.length)
    model.to(torch.bfloat16).to_empty(device=scale.device)
    model.reset_parameters()
    return model


def decoding(scale: Scale) -> dict[str, Any]:
    """Return milliseconds a token takes in a model of two blocks, its vocabulary included."""
    model = tiny_depth(scale).eval()
    prompt = torch.randint(scale.vocab, (33,)).tolist()
    few, many = 4, 36
    taken = {
        count: median_ms(partial(generate, model, prompt, max_new_tokens=count), scale.device)
        for count in (few, many)
    }
    return {"token_ms": (taken[many] - taken[few]) / (many - few)}


def loss(scale: Scale) -> dict[str, Any]:
    """Return milliseconds and peak GiB of the loss over the vocabulary, forward and backward."""
    hidden, weight = scale.randn(1, scale.rows, scale.d, grad=True), scale.randn(scale.vocab, scale.d)
    weight = (weight * 0.02).requires_grad_()
    labels = torch.randint(scale.vocab, (1, scale.rows), device=scale.device)
    ours = LinearCrossEntropyLoss()

    def plain() -> Tensor:
        return F.cross_entropy(
            F.linear(hidden, weight).float().flatten(0, 1), labels.flatten(), reduction="sum"
        )

    def step(forward: Callable[[], Tensor]) -> None:
        forward().backward()  # type: ignore[no-untyped-call]
        hidden.grad = weight.grad = None

    found: dict[str, Any] = {}
    for name, forward in {"tune": lambda: ours(hidden, weight, labels), "torch, all logits": plain}.items():
        if scale.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found[name] = {"ms": median_ms(partial(step, forward), scale.device)}
        if scale.device == "cuda":
            found[name]["peak_gib"] = torch.cuda.max_memory_allocated() / 1024**3
    return found


def nf4(scale: Scale) -> dict[str, Any]:
    """Return milliseconds of a matrix in 4 bits: written out, and multiplied with many rows and with one."""
    rows, columns = (256, 128) if scale.toy else (scale.f, scale.d)
    weight = quantize_nf4(scale.randn(rows, columns) * 0.02)
    many, one = scale.randn(scale.rows, columns), scale.randn(1, columns)
    return {
        "dequantize_ms": median_ms(weight.dequantize, scale.device),
        "many_rows_ms": median_ms(lambda: nf4_linear(many, weight, None), scale.device),
        "one_row_ms": median_ms(lambda: nf4_linear(one, weight, None), scale.device),
    }


def optimizer(scale: Scale) -> dict[str, Any]:
    """Return nanoseconds a weight takes in a step of AdamW in bf16: rounded by chance (ours), and torch's fused one."""
    taken = {}
    for name, kind in {"tune": AdamW, "torch": torch.optim.AdamW}.items():
        weights = [scale.randn(scale.f, scale.d, grad=True) for _ in range(4)]
        for weight in weights:
            weight.grad = scale.randn(scale.f, scale.d)
        step = kind(weights, lr=1e-5, fused=True).step
        taken[name] = 1e6 * median_ms(step, scale.device) / sum(weight.numel() for weight in weights)
    return taken


PARTS: dict[str, Callable[[Scale], dict[str, Any]]] = {
    "products_tflop_per_s": products,
    "attention_ms": attention,
    "new_shapes": new_shapes,
    "decoding": decoding,
    "loss": loss,
    "nf4": nf4,
    "optimizer_ns_per_weight": optimizer,
}


def attempt(work: Callable[[], Any]) -> Any:
    """Return what work returns, or its error: a kernel may refuse a shape, and memory may run out."""
    try:
        return work()
    except (RuntimeError, NotImplementedError) as error:
        return {"error": str(error).splitlines()[0][:300]}


def run_gpu_tests() -> list[str]:
    """Return the last lines of the tests marked `gpu`."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[-30:]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="sizes that only show that all of it runs")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--output", help="also write the figures to this JSON file")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    scale = Scale(options.device, options.toy)
    figures = {
        "command": f"python -m benchmarks.h200.parts {' '.join(sys.argv[1:] if argv is None else argv)}",
        "machine": describe_machine(options.device),
        "gpu_tests": run_gpu_tests() if options.device == "cuda" else None,
        "results": {name: attempt(partial(PARTS[name], scale)) for name in options.only},
    }
    write_figures(figures, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
