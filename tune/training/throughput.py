"""How fast a run is, and how much of what the hardware can do that is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial

import torch

from tune.modules import TransformerDecoder, flops_per_token
from tune.modules.peft import adapter_parameters
from tune.modules.products import multiply
from tune.training.batches import TokenCounts
from tune.training.precision import Precision

__all__ = ["Speed", "SpeedMeter", "build_speed_meter", "measure_matmul_rate"]


@dataclass(frozen=True)
class Speed:
    """Rates over some steps, padding not counted.

    Args:
        tokens_per_second: tokens that went through the model.
        trained_tokens_per_second: those of them whose prediction was trained on.
        fraction_of_limit: FLOPs the tokens need (recomputation not counted), over what matrix products alone would
            reach in the same time on this device, as measured at the start.
    """

    tokens_per_second: float
    trained_tokens_per_second: float
    fraction_of_limit: float


def build_speed_meter(
    model: TransformerDecoder, device: torch.device, precision: Precision, num_devices: int = 1
) -> SpeedMeter:
    """Return a meter for training a model, having measured what this device can do.

    Args:
        model: work is counted for what of it is trained: everything, or adapters.
        device: of this process.
        precision: products run in its compute type.
        num_devices: how many the work is spread over.
    """
    adapters = 0.0
    for name, weight in adapter_parameters(model).items():
        moe = model.config.moe if ".experts." in name else None
        adapters += (
            weight.numel() if moe is None else weight.numel() * moe.experts_per_token / moe.num_experts
        )
    return SpeedMeter(
        device,
        partial(
            flops_per_token,
            model.config,
            num_adapter_parameters=adapters or None,
            has_logits=model.score is None,
        ),
        _known_rate(device, precision.compute_dtype),
        partial(measure_matmul_rate, device, precision.compute_dtype),
        num_devices,
    )


class SpeedMeter:
    """Counts tokens and the time spent on them; validation, saving and generation are not part of it.

    Args:
        device: waited for when a rate is read.
        flops_per_token: work per token as a function of the documents' mean length.
        limit: FLOP/s of matrix products on one device.
        measure_limit: returns them anew, as `measure_matmul_rate` does. Called whenever training outruns the limit:
            the machine was busy with something else while it was measured.
        num_devices: how many of them the counted tokens are spread over.

    Attributes:
        limit: FLOP/s of all devices, the best measured so far.
        total_seconds, total_tokens: over all readings so far.
    """

    def __init__(
        self,
        device: torch.device,
        flops_per_token: Callable[[float], float],
        limit: float,
        measure_limit: Callable[[], float],
        num_devices: int = 1,
    ) -> None:
        self._flops_per_token = flops_per_token
        self._measure_limit = measure_limit
        self._num_devices = num_devices
        self.limit = num_devices * limit
        self.device = device
        self.total_seconds = 0.0
        self.total_tokens = 0
        self.start()

    def start(self) -> None:
        """Start the clock and the counts anew."""
        self._start = time.perf_counter()
        self._excluded = 0.0
        self._num_tokens = self._num_targets = self._sum_of_squares = 0

    def count(self, tokens: TokenCounts) -> None:
        """Add the tokens of one optimizer step."""
        self._num_tokens += tokens.num_tokens
        self.total_tokens += tokens.num_tokens
        self._num_targets += tokens.num_targets
        self._sum_of_squares += tokens.sum_of_squares

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the body's time out."""
        self._wait()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            self._excluded += time.perf_counter() - start

    def read(self) -> Speed:
        """Return the rates since the last reading, having waited for the device, and start anew."""
        self._wait()
        seconds = max(time.perf_counter() - self._start - self._excluded, 1e-9)
        self.total_seconds += seconds
        rate = self._num_tokens / seconds
        # A token attends to the tokens of its own document: weighted by tokens, their number is sum l^2 / sum l.
        mean_length = self._sum_of_squares / max(self._num_tokens, 1)
        flops_per_second = rate * self._flops_per_token(mean_length)
        if flops_per_second > self.limit:
            self.limit = max(self.limit, self._num_devices * self._measure_limit())
        speed = Speed(rate, self._num_targets / seconds, flops_per_second / self.limit)
        self.start()
        return speed

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure_matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.1) -> float:
    """Return the FLOP/s of a large square matrix product here and now, the best of some.

    A measured limit is one this machine does reach, with its clock, its threads and its neighbours; a
    datasheet's is not.

    Args:
        device: where to measure.
        dtype: type of the factors.
        seconds: time to spend, after one product to warm up.
    """
    n = 8192 if device.type == "cuda" else 1024
    # Zeros would run faster than the truth on hardware that throttles by switching activity.
    left = torch.randn(n, n, device=device).to(dtype)
    right = torch.randn(n, n, device=device).to(dtype)
    fastest = float("inf")
    _time_matmul(left, right)
    deadline = time.perf_counter() + seconds
    while True:
        fastest = min(fastest, _time_matmul(left, right))
        if time.perf_counter() > deadline:
            return 2.0 * n**3 / fastest


@lru_cache(maxsize=4)  # once for all runs of a process
def _known_rate(device: torch.device, dtype: torch.dtype) -> float:
    return measure_matmul_rate(device, dtype)


def _time_matmul(left: torch.Tensor, right: torch.Tensor) -> float:
    if left.device.type != "cuda":
        start = time.perf_counter()
        multiply(left, right)
        return time.perf_counter() - start
    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    begin.record()
    torch.mm(left, right)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000.0
