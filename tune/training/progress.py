"""What a person watching a run sees: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from tune.utils import get_logger

__all__ = ["Progress", "format_duration"]


# What is shown of the metrics, in this order; the files get all of them.
SHOWN: dict[str, Callable[[Any], str]] = {
    "loss": "loss {:.4f}".format,
    "val_loss": "val loss {:.4f}".format,
    "lr": "lr {:.2e}".format,
    "grad_norm": "grad norm {:.3f}".format,
    "tokens_per_second": "{:,.0f} tok/s".format,
    "trained_tokens_per_second": "{:,.0f} trained/s".format,
    "peak_memory_gib": "{:.2f} GiB".format,
    "fraction_of_limit": "{:.1%} of limit".format,
}


class Progress:
    """Shows the optimizer steps of a run.

    Args:
        num_steps: steps of the whole run.
        first_step: steps done before, by the run that is resumed.
    """

    def __init__(self, num_steps: int, first_step: int = 0) -> None:
        self._num_steps = num_steps
        self._first_step = first_step
        self._start = time.perf_counter()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=num_steps, initial=first_step, unit="step", dynamic_ncols=True, file=sys.stderr
            )

    def advance(self) -> None:
        """Count one more step."""
        if self._bar is not None:
            self._bar.update()

    def show(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show what was logged at `step`, as one line or beside the bar."""
        facts = " | ".join(write(metrics[name]) for name, write in SHOWN.items() if name in metrics)
        if self._bar is not None:
            self._bar.set_postfix_str(facts)
            return
        width = len(str(self._num_steps))
        get_logger().info(f"step {step:{width}d}/{self._num_steps} | {facts} | {self._time_left(step)} left")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _time_left(self, step: int) -> str:
        done = max(step - self._first_step, 1)
        per_step = (time.perf_counter() - self._start) / done
        return format_duration(per_step * (self._num_steps - step))


def format_duration(seconds: float) -> str:
    """Return a duration as people read it: 0:07, 3:05, 2:10:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
