"""What a frozen matrix in NF4 takes: bytes, error, and the time to quantise, dequantise and multiply.

    python -m benchmarks.nf4 --rows 4096 --columns 4096 --rounds 5 --output nf4.json

Contestants take turns within each round: tune, the textbook way in plain torch (unpack, look up, multiply) and
bitsandbytes where it is installed. All quantise the same random matrix to the same codes, or the script ends without
figures. Beside them stands a copy of the dequantised matrix, the least that writing it can take.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.setting import describe_machine, timed, write_figures
from tune.modules.peft import NF4Weight, nf4_linear, quantize_nf4
from tune.modules.peft.nf4_codes import NF4_CODES, dequantize_scales

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    dtype = _DTYPES[options.dtype]
    torch.manual_seed(0)
    matrix = (torch.randn(options.rows, options.columns) * 0.02).to(options.device, dtype)
    ours = quantize_nf4(matrix)
    contestants = {"tune": tune_work(matrix, ours), "plain torch": plain_work(ours, dtype)}
    if importlib.util.find_spec("bitsandbytes") is not None:
        contestants["bitsandbytes"] = bitsandbytes_work(matrix)
    for name, work in contestants.items():
        # A scale between two codes may fall to either, so a block may differ by its rounding.
        if (work["dequantize"]() - ours.dequantize()).abs().max() > 0.01 * matrix.abs().max():
            raise SystemExit(f"{name} dequantises to another matrix")
    contestants["copy"] = {"dequantize": ours.dequantize().clone}
    contestants["tune"] |= linear_work(options.tokens, matrix, ours)
    clock = time.process_time if options.cpu_time else time.perf_counter
    seconds = measure(contestants, options.rounds, options.device, clock)
    dequantized = ours.dequantize()
    write_figures(
        {
            **describe_machine(options.device),
            "clock": "processor" if options.cpu_time else "wall",
            "shape": [options.rows, options.columns],
            "dtype": options.dtype,
            "tokens": options.tokens,
            "bytes_per_parameter": ours.nbytes / matrix.numel(),
            "relative_error": ((dequantized - matrix).float().norm() / matrix.float().norm()).item(),
            "results": {name: report(matrix, times) for name, times in seconds.items()},
        },
        options.output,
    )
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nf4", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=512, help="rows of the input that is multiplied")
    parser.add_argument("--dtype", choices=_DTYPES, default="bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="processor time in place of wall time")
    parser.add_argument("--output", help="file for the figures, beside standard output")
    return parser.parse_args(arguments)


def tune_work(matrix: Tensor, weight: NF4Weight) -> dict[str, Callable[[], Any]]:
    return {"quantize": lambda: quantize_nf4(matrix), "dequantize": weight.dequantize}


def plain_work(weight: NF4Weight, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    table = torch.tensor(NF4_CODES, device=weight.device)

    def dequantize() -> Tensor:
        codes = torch.stack([weight.codes >> 4, weight.codes & 15], -1)
        scales = dequantize_scales(
            weight.scale_codes, weight.range_bits, weight.mean_bits, weight.double_block_size
        )
        values = table[codes.int()].view(-1, weight.block_size) * scales[:, None]
        return values.view(-1)[: weight.shape.numel()].view(weight.shape).to(dtype)

    return {"dequantize": dequantize}


def bitsandbytes_work(matrix: Tensor) -> dict[str, Callable[[], Any]]:
    from bitsandbytes import functional

    def quantize() -> Any:
        return functional.quantize_4bit(matrix, blocksize=64, compress_statistics=True, quant_type="nf4")

    packed, state = quantize()
    return {"quantize": quantize, "dequantize": lambda: functional.dequantize_4bit(packed, state)}


def linear_work(num_tokens: int, matrix: Tensor, weight: NF4Weight) -> dict[str, Callable[[], Any]]:
    """Forward and backward pass of one product, beside the same with the dense matrix."""
    x = torch.randn(num_tokens, matrix.shape[1]).to(matrix).requires_grad_()
    return {
        "linear": lambda: torch.autograd.grad(nf4_linear(x, weight).sum(), x),
        "linear_dense": lambda: torch.autograd.grad(F.linear(x, matrix).sum(), x),
    }


def measure(
    contestants: dict[str, dict[str, Callable[[], Any]]],
    rounds: int,
    device: str,
    clock: Callable[[], float],
) -> dict[str, dict[str, float]]:
    """Return the median seconds of each contestant's works, all of them run in turn in every round."""

    def finished(work: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            work()
            if device != "cpu":
                torch.cuda.synchronize()

        return run

    seconds: dict[str, dict[str, list[float]]] = {
        name: {kind: [] for kind in works} for name, works in contestants.items()
    }
    for works in contestants.values():
        for work in works.values():
            finished(work)()
    names = list(contestants)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            for kind, work in contestants[name].items():
                seconds[name][kind].append(timed(finished(work), device, clock))
    return {
        name: {kind: statistics.median(values) for kind, values in kinds.items()}
        for name, kinds in seconds.items()
    }


def report(matrix: Tensor, seconds: dict[str, float]) -> dict[str, float]:
    """Return milliseconds, and GB/s of the dequantised matrix written."""
    figures = {f"{kind}_ms": 1e3 * value for kind, value in seconds.items()}
    if "dequantize" in seconds:
        figures["dequantize_gb_per_s"] = matrix.nbytes / seconds["dequantize"] / 1e9
    return figures


if __name__ == "__main__":
    raise SystemExit(main())
