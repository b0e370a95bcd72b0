"""What a person watching a run sees: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tune.training.memory.available import get_peak_memory_gib
from tune.training.throughput import SpeedMeter
from tune.training.train_state import TrainState
from tune.utils import get_logger

__all__ = ["Progress", "describe_result", "format_duration", "format_summary"]


# What is shown of the metrics, in this order; the files get all of them.
SHOWN: dict[str, Callable[[Any], str]] = {
    "loss": "loss {:.4f}".format,
    "kd_loss": "kd {:.4f}".format,
    "ce_loss": "ce {:.4f}".format,
    "val_loss": "val loss {:.4f}".format,
    "val_perplexity": "perplexity {:.4g}".format,
    "margin": "margin {:.3f}".format,
    "accuracy": "accuracy {:.1%}".format,
    "val_accuracy": "val accuracy {:.1%}".format,
    "lr": "lr {:.2e}".format,
    "grad_norm": "grad norm {:.3f}".format,
    "tokens_per_second": "{:,.0f} tok/s".format,
    "trained_tokens_per_second": "{:,.0f} trained/s".format,
    "trained_pairs_per_second": "{:,.1f} pairs/s".format,
    "peak_memory_gib": "{:.2f} GiB".format,
    "fraction_of_limit": "{:.1%} of limit".format,
}


# What is fixed takes 45 columns or so, which leaves the bar 30 of 80.
_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class _Redraw(logging.Handler):
    """Draws the bar again once a message has been written, by the handlers before this one."""

    def __init__(self, bar: Any) -> None:
        super().__init__()
        self._bar = bar

    def emit(self, record: logging.LogRecord) -> None:
        self._bar.refresh()


class Progress:
    """Shows the optimizer steps of a run.

    Args:
        num_steps: steps of the whole run.
        first_step: steps done before, by the run that is resumed.
        shown: of several processes one shows the bar.
    """

    def __init__(self, num_steps: int, first_step: int = 0, *, shown: bool = True) -> None:
        self._num_steps = num_steps
        self._first_step = first_step
        self._start = time.perf_counter()
        self._bar: Any = None
        if shown and (_has_terminal() or _is_notebook()):
            from tqdm.auto import tqdm

            self._bar = tqdm(
                total=num_steps,
                initial=first_step,
                unit="step",
                dynamic_ncols=True,
                file=sys.stderr,
                bar_format=_BAR,
            )
            self._redraw = _Redraw(self._bar)

    def advance(self) -> None:
        """Count one more step."""
        if self._bar is not None:
            self._bar.update()

    def show(self, step: int, metrics: Mapping[str, Any], num_steps: int = 1) -> None:
        """Show what was logged at `step` as one line, above the bar where there is one.

        Args:
            step: it is of.
            metrics: by name.
            num_steps: that the loss is the mean of.
        """
        shown = {name: write(metrics[name]) for name, write in SHOWN.items() if name in metrics}
        if num_steps > 1 and "loss" in shown:
            shown["loss"] += f" (mean of {num_steps})"
        facts = " | ".join(shown.values())
        if self._bar is not None and "loss" in metrics:
            self._bar.set_postfix_str(f"loss {metrics['loss']:.4g}", refresh=False)
        width = len(str(self._num_steps))
        get_logger().info(f"step {step:{width}d}/{self._num_steps} | {facts} | {self._time_left(step)} left")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            get_logger().addFilter(self._make_room)
            get_logger().addHandler(self._redraw)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            get_logger().removeHandler(self._redraw)
            get_logger().removeFilter(self._make_room)
            self._bar.close()

    def _make_room(self, record: logging.LogRecord) -> bool:
        """Take the bar away before a message is written; it is drawn again below."""
        self._bar.clear()
        return True

    def _time_left(self, step: int) -> str:
        done = max(step - self._first_step, 1)
        per_step = (time.perf_counter() - self._start) / done
        return format_duration(per_step * (self._num_steps - step))


def _has_terminal() -> bool:
    """Whether stderr is a terminal that a bar fits on; some pretend to be one of no size, and would show nothing."""
    try:
        return sys.stderr.isatty() and min(os.get_terminal_size(sys.stderr.fileno())) > 0
    except (OSError, ValueError):
        return False


def _is_notebook() -> bool:
    """Tell whether what is written to stderr is shown below a cell of a notebook."""
    return type(sys.stderr).__module__.startswith("ipykernel")


def format_duration(seconds: float) -> str:
    """Return a duration as people read it: 0:07, 3:05, 2:10:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def describe_result(
    output_dir: Path, state: TrainState, speed: SpeedMeter, targets: str = "tokens"
) -> dict[str, Any]:
    """Return how a run ended as plain values: what it reached, in what time, and where its model is.

    Args:
        output_dir, state, speed: as `format_summary` takes them.
        targets: what the loss is divided by the number of.
    """
    return {
        "step": state.step,
        "num_steps": state.num_steps,
        "epoch": state.epoch,
        "loss": state.loss,
        "val_loss": state.val_loss,
        "best_val_loss": state.best_val_loss if state.best_step is not None else None,
        "best_step": state.best_step,
        "num_tokens": state.num_tokens,
        f"num_trained_{targets}": state.num_targets,
        "seconds_in_steps": round(speed.total_seconds, 3),
        "tokens_in_session": speed.total_tokens,
        "peak_memory_gib": round(get_peak_memory_gib(speed.device), 4),
        "folder": str(output_dir / "latest"),
    }


def format_summary(
    output_dir: Path,
    state: TrainState,
    speed: SpeedMeter,
    adapted_base: str = "",
    gives_scores: bool = False,
) -> str:
    """Return what a run says at its end: what it reached, where things are, what to type next.

    Args:
        output_dir: where steps and metrics were written.
        state: where it stands, of how many steps (fewer taken means it was stopped), and the losses last measured.
        speed: has counted this process's part of the run.
        adapted_base: the model that adapters were trained beside, where they alone were saved.
        gives_scores: it is a reward model, which writes nothing.
    """
    losses = {"loss": state.loss} | ({} if state.val_loss is None else {"val_loss": state.val_loss})
    rate = speed.total_tokens / max(speed.total_seconds, 1e-9)
    result = output_dir / "latest" / ("adapter" if adapted_base else "model")
    # The folder says the rest: the base of an adapter, the template and the system prompt.
    folder = shlex.quote(str(output_dir))
    lines = [
        f"{'Finished' if state.step >= state.num_steps else 'Stopped after'} {state.step} of {state.num_steps} steps: "
        + ", ".join(SHOWN[name](loss) for name, loss in losses.items()),
        *(
            f"  time     {format_duration(speed.total_seconds)} in steps, for {speed.total_tokens:,} tokens: "
            f"{rate:,.0f} per second"
            for _ in range(speed.total_tokens > 0)  # a finished run that is asked to go on takes no step
        ),
        f"  memory   {get_peak_memory_gib(speed.device):.2f} GiB at its peak",
        f"  {result.name:7}  {result}",
        f"  metrics  {output_dir / 'metrics.jsonl'}",
        f"  report   {output_dir / 'report.html'}",
    ]
    if gives_scores:
        loader = f"{'peft.AutoPeft' if adapted_base else 'transformers.Auto'}ModelForSequenceClassification"
        lines.append(f"Load it:   {loader}.from_pretrained({str(result)!r}, num_labels=1)")
    else:
        lines += [f"Try it:    tune run generate {folder} prompt='...'", f"Talk to it: tune chat {folder}"]
    if state.step < state.num_steps:
        lines.append("Go on:     the same command with resume_from_checkpoint=true")
    return "\n".join(lines)
