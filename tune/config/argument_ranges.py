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


# What no run has more of: the greater number is a slip of the keyboard, and 1e300 is infinite in fp32.
_MANY = 10**9
_COUNT = Bounds(minimum=1, maximum=_MANY)
_COUNT_OR_NONE = Bounds(minimum=0, maximum=_MANY)
_SIZE = Bounds(minimum=1, maximum=2**24)
_FEW = Bounds(minimum=1, maximum=2**12)
_RATE = Bounds(minimum=0, maximum=1e3)
_POSITIVE_RATE = Bounds(above=0, maximum=1e3)
_SHARE = Bounds(minimum=0, maximum=1)
_BELOW_ONE = Bounds(minimum=0, below=1)
_RATIO = Bounds(minimum=1e-6, maximum=1e6)
_ROW = Bounds(minimum=2, maximum=2**24)  # one token to read, one to learn

# For each kind of component the names of arguments below what they can be.
_RANGES: Mapping[str, Mapping[Bounds, str]] = {
    "model": {
        _SIZE: "vocab_size embed_dim intermediate_dim max_seq_len sliding_window "
        "sliding_window_size query_pre_attn_scalar moe_intermediate_size",
        _FEW: "num_layers num_heads num_kv_heads head_dim num_experts num_experts_per_tok conv_width num_state_heads "
        "num_state_key_heads state_head_dim",
        Bounds(minimum=1, maximum=2**16): "lora_rank",
        _BELOW_ONE: "attn_dropout lora_dropout norm_eps",
        _RATIO: "lora_alpha hidden_capping_value final_capping_value scale_factor rope_factor",
        Bounds(minimum=1, maximum=1e12): "rope_base local_rope_base",
    },
    "tokenizer": {_ROW: "max_seq_len"},
    "dataset": {_ROW: "max_seq_len", _COUNT: "limit"},
    "optimizer": {
        _RATE: "lr weight_decay eps alpha momentum_decay lr_decay initial_accumulator_value dampening",
        _SHARE: "rho momentum lambd",
        Bounds(minimum=0, maximum=_MANY): "t0",
        _BELOW_ONE: "betas",
        Bounds(minimum=-1e3, maximum=0): "beta2_decay",
        Bounds(minimum=1, maximum=100): "ns_steps",  # each is three products of matrices
        Bounds(minimum=1, maximum=1e6): "d",
    },
    "lr_scheduler": {
        _COUNT_OR_NONE: "num_warmup_steps total_iters milestones",
        _COUNT: "num_training_steps step_size step_size_up step_size_down T_max T_0 T_mult total_steps epochs "
        "steps_per_epoch",
        _RATE: "num_cycles eta_min power base_lr",
        _POSITIVE_RATE: "gamma max_lr",
        Bounds(minimum=1e-6, maximum=1e9): "div_factor final_div_factor",
        Bounds(minimum=1e-12, maximum=1): "factor start_factor",  # torch divides by them
        _SHARE: "end_factor pct_start warmup_ratio min_lr_rate base_momentum max_momentum",
    },
    "loss": {_COUNT: "num_output_chunks", _SHARE: "label_smoothing"},
    "distillation loss": {_COUNT: "num_output_chunks", _SHARE: "beta sym_kd_ratio", _RATIO: "temperature"},
    "preference loss": {
        _POSITIVE_RATE: "beta",
        _RATE: "gamma sft_weight desirable_weight undesirable_weight",
        Bounds(minimum=0, maximum=0.5): "label_smoothing",
    },
    "reward loss": {_RATE: "center_rewards_coefficient"},
    "profiler": {_COUNT_OR_NONE: "wait_steps warmup_steps num_cycles", _COUNT: "active_steps"},
    "collate_fn": {_COUNT_OR_NONE: "padding_idx max_seq_len", _SIZE: "pad_to_multiple_of"},
}
