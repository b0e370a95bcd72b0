"""What numbers a value may be; of the arguments of components, since no signature says so, and a run late or never."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Bounds", "find_bounds"]

# The packages whose arguments mean what is written here; elsewhere a name may mean anything.
_PACKAGES = ("tune", "torch", "bitsandbytes")


@dataclass(frozen=True)
class Bounds:
    """The range of a value, or of each number of one that is a list.

    Args:
        minimum, maximum: the least and the greatest value.
        above, below: what a value is greater and less than.
    """

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None

    def find_fault(self, value: Any) -> str | None:
        """Return why `value` cannot be: "must be at least 0, not -1"; None where it can, or is no number."""
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(number, (int, float)) and not isinstance(number, bool) and not self._has(number):
                return f"must be {self.describe()}, not {number}"
        return None

    def _has(self, number: float) -> bool:
        return (
            (self.minimum is None or number >= self.minimum)
            and (self.maximum is None or number <= self.maximum)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def describe(self) -> str:
        """Return the range in words: "at least 0 and below 1"; "" where all is allowed."""
        if self.minimum is not None and self.maximum is not None:
            return f"between {_number(self.minimum)} and {_number(self.maximum)}"
        words = (
            ("at least", self.minimum),
            ("above", self.above),
            ("at most", self.maximum),
            ("below", self.below),
        )
        return " and ".join(f"{word} {_number(limit)}" for word, limit in words if limit is not None)


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


def find_bounds(kind: str, path: str, argument: str) -> Bounds | None:
    """Return the range of an argument, where one is known.

    Args:
        kind: what the component is, as its slot calls it.
        path: the component's dotted path.
        argument: the argument's name.
    """
    if path.partition(".")[0] not in _PACKAGES:
        return None
    ranges = _RANGES.get(kind, {})
    return next((bounds for bounds, names in ranges.items() if argument in names.split()), None)


_COUNT = Bounds(minimum=1)
_NOT_NEGATIVE = Bounds(minimum=0)
_POSITIVE = Bounds(above=0)
_SHARE = Bounds(minimum=0, maximum=1)
_BELOW_ONE = Bounds(minimum=0, below=1)
_ROW = Bounds(minimum=2)  # one token to read, one to learn

# For each kind of component the names of arguments below what they can be.
_RANGES: Mapping[str, Mapping[Bounds, str]] = {
    "model": {
        _COUNT: "vocab_size num_layers num_heads num_kv_heads embed_dim head_dim intermediate_dim max_seq_len "
        "sliding_window lora_rank",
        _BELOW_ONE: "attn_dropout lora_dropout norm_eps",
        _POSITIVE: "lora_alpha rope_base",
    },
    "tokenizer": {_ROW: "max_seq_len"},
    "dataset": {_ROW: "max_seq_len", _COUNT: "limit"},
    "optimizer": {
        _NOT_NEGATIVE: "lr weight_decay eps momentum momentum_decay alpha lr_decay initial_accumulator_value",
        _BELOW_ONE: "betas",
        _SHARE: "rho",
        Bounds(maximum=0): "beta2_decay",
        _COUNT: "ns_steps d",
    },
    "lr_scheduler": {
        _NOT_NEGATIVE: "num_warmup_steps num_cycles eta_min power total_iters milestones base_lr",
        _COUNT: "num_training_steps step_size step_size_up step_size_down T_max T_0 T_mult total_steps epochs "
        "steps_per_epoch",
        _POSITIVE: "gamma max_lr div_factor final_div_factor",
        Bounds(above=0, maximum=1): "factor start_factor",  # torch divides by them
        _SHARE: "end_factor pct_start",
    },
    "loss": {_COUNT: "num_output_chunks", _SHARE: "label_smoothing"},
    "profiler": {_NOT_NEGATIVE: "wait_steps warmup_steps num_cycles", _COUNT: "active_steps"},
    "collate_fn": {_NOT_NEGATIVE: "padding_idx"},
}
