"""What the fields of a saved step's `run.pt` may be: it may come from a stranger, who can write a manifest, too."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch.amp import GradScaler
from torch.optim.lr_scheduler import LRScheduler

from tune.data import ResumableSampler
from tune.errors import CheckpointError
from tune.training.spikes import SpikeWatch
from tune.training.streaming import StreamSampler
from tune.utils.seed import MAX_SEED

__all__ = ["check_content", "check_group", "check_part", "check_run"]

_MAX_STEP = 2**31 - 1
_MAX_COUNT = 2**63 - 1


class _Field(NamedTuple):
    """What a value has to be, in code and in words; `is_needed` unless older versions left it out."""

    fits: Callable[[Any], bool]
    expected: str
    is_needed: bool = True


def _whole(low: int, high: int, *, or_none: bool = False) -> _Field:
    def fits(value: Any) -> bool:
        return (value is None and or_none) or (type(value) is int and low <= value <= high)

    return _Field(fits, f"a whole number from {low} to {high}" + " or None" * or_none)


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) <= _MAX_COUNT)


def _is_mapping(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and fits(each) for key, each in value.items()
    )


def _is_list(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and all(fits(each) for each in value)


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping)


_FLAG = _Field(lambda value: type(value) is bool, "True or False")
_TEXT = _Field(lambda value: isinstance(value, str), "text")
_NUMBER = _Field(_is_number, "a number")
_NUMBERS = _Field(lambda value: _is_list(value, _is_number), "a list of numbers")
_TEXTS = _Field(lambda value: _is_list(value, _TEXT.fits), "a list of texts")
_TEXT_BY_NAME = _Field(lambda value: _is_mapping(value, _TEXT.fits), "texts by name")
_NAMED = _Field(lambda value: _is_mapping(value, lambda _: True), "values by name")
_STATES = _Field(lambda value: _is_mapping(value, _is_state), "states by name")
_GROUPS = _Field(lambda value: _is_list(value, _NAMED.fits), "a list of settings by name")
_STEP, _COUNT = _whole(0, _MAX_STEP), _whole(0, _MAX_COUNT)
_COUNTS = _Field(lambda value: _is_list(value, _COUNT.fits), "a list of counts")

_CONTENT = {
    "run": _NAMED,
    "parts": _STATES,
    "groups": _GROUPS,
    "kind": _TEXT,
    "plain": _STATES,
    "on_host": _TEXTS,
    "has_tensors": _FLAG,
}
_RUN = {
    "seed": _whole(0, MAX_SEED),
    "step": _STEP,
    "epoch": _STEP,
    "step_in_epoch": _STEP,
    "num_tokens": _COUNT,
    "num_targets": _COUNT,
    "loss": _NUMBER,
    "val_loss": _Field(lambda value: value is None or _is_number(value), "a number or None"),
    "val_step": _whole(-1, _MAX_STEP),
    "best_val_loss": _NUMBER,
    "lowest_score": _NUMBER._replace(is_needed=False),
    "num_stale": _COUNT._replace(is_needed=False),
    "best_step": _whole(0, _MAX_STEP, or_none=True),
    "fingerprint": _TEXT_BY_NAME,
    "weights": _Field(
        lambda value: _is_mapping(value, _is_sum), "a dtype and a sum by name", is_needed=False
    ),
}
_SAMPLER = {
    "epoch": _STEP,
    "position": _COUNT,
    "num_examples": _COUNT,
    "seed": _whole(0, _MAX_COUNT),
    "shuffle": _FLAG,
    "mixture": _TEXT._replace(is_needed=False),
}
_PARTS: tuple[tuple[type, dict[str, _Field]], ...] = (
    (ResumableSampler, _SAMPLER),
    (StreamSampler, {**_SAMPLER, "places": _COUNTS._replace(is_needed=False)}),
    (SpikeWatch, {"recent": _NUMBERS, "is_high": _FLAG}),
    (
        GradScaler,
        {
            **dict.fromkeys(("scale", "growth_factor", "backoff_factor"), _NUMBER),
            **dict.fromkeys(("growth_interval", "_growth_tracker"), _COUNT),
        },
    ),
    (
        LRScheduler,
        {
            "last_epoch": _STEP,
            "base_lrs": _NUMBERS,
            "_last_lr": _NUMBERS._replace(is_needed=False),
            "_step_count": _COUNT._replace(is_needed=False),
        },
    ),
)


def _is_sum(value: Any) -> bool:
    return isinstance(value, str) and len(value.split()) == 2


def check_content(content: Mapping[str, Any], file: Path) -> None:
    """Check the parts that `run.pt` has: raise CheckpointError with the name of the file and of the field."""
    _check(content, _CONTENT, file, "")


def check_run(run: Mapping[str, Any], file: Path, step: int) -> None:
    """Check where the saved run stood, which is at `step`.

    Raises:
        CheckpointError: a field is missing or is none that a run could have saved.
    """
    _check(run, _RUN, file, "run.")
    if run["step"] != step:
        raise _error(file, "run.step", run["step"], f"{step}, as the folder's name says")
    for name in ("epoch", "step_in_epoch", "val_step", "best_step"):
        if (run[name] or 0) > step:
            raise _error(file, f"run.{name}", run[name], f"no more than the step, {step}")
    if run.get("sampler"):
        _check(run["sampler"], _SAMPLER, file, "parts.sampler.")


def check_part(name: str, part: Any, state: Mapping[str, Any], file: Path) -> None:
    """Check the saved state of a part of a kind that is known here; of one's own its own code has to.

    Raises:
        CheckpointError: a field is missing or is of another kind.
    """
    current = part.state_dict() if isinstance(part, LRScheduler) else {}
    for kind, declared in _PARTS:
        if isinstance(part, kind) and state:
            # Schedules that chain others have fewer fields.
            needed = {key: field for key, field in declared.items() if not current or key in current}
            _check(state, needed, file, f"parts.{name}.")
    if current:
        _check_like(state, current, file, f"parts.{name}.")
        for key in state.keys() - current.keys():
            if callable(getattr(part, str(key), None)):
                raise CheckpointError(
                    f"{file}: parts.{name} has a field {str(key)[:50]!r}, which no schedule saves."
                )


def check_group(number: int, saved: Mapping[str, Any], current: Mapping[str, Any], file: Path) -> None:
    """Check an optimizer's saved settings against those it has now.

    Raises:
        CheckpointError: one is of another kind, or it names weights.
    """
    if "params" in saved:
        raise CheckpointError(f"{file}: groups.{number} has a field 'params', which is not saved.")
    _check_like(saved, current, file, f"groups.{number}.")


def _check(content: Any, declared: Mapping[str, _Field], file: Path, prefix: str) -> None:
    if not isinstance(content, Mapping):
        raise _error(file, prefix.rstrip("."), content, "values by name")
    for name, field in declared.items():
        if name not in content:
            if field.is_needed:
                raise CheckpointError(f"{file}: {prefix}{name} is missing.")
        elif not field.fits(content[name]):
            raise _error(file, prefix + name, content[name], field.expected)


def _check_like(saved: Mapping[str, Any], current: Mapping[str, Any], file: Path, prefix: str) -> None:
    """Check that values are of the kind they have now: what was saved is from the same settings."""
    for name, now in current.items():
        if name in saved and not _is_like(saved[name], now):
            raise _error(file, prefix + name, saved[name], f"a value like {str(now)[:50]}")


def _is_like(saved: Any, now: Any) -> bool:
    if now is None or isinstance(now, bool):
        return saved is None or isinstance(saved, bool) or (now is None and type(saved) in (int, float, str))
    if _is_number(now):
        return _is_number(saved) and (math.isfinite(saved) or saved == now)
    if isinstance(now, (list, tuple)):
        return (
            isinstance(saved, (list, tuple))
            and len(saved) == len(now)
            and all(_is_like(each, other) for each, other in zip(saved, now, strict=True))
        )
    if isinstance(now, Mapping):
        return isinstance(saved, Mapping)
    return isinstance(saved, type(now))


def _error(file: Path, name: str, value: Any, expected: str) -> CheckpointError:
    # Of a number with a million digits Python makes no text.
    text = (
        f"a whole number of {value.bit_length()} bits"
        if type(value) is int and abs(value) > 2**64
        else repr(value)
    )
    return CheckpointError(
        f"{file}: {name} is {text[:60]}, expected {expected}. It is not what tune has saved."
    )
