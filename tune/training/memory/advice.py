"""Which settings would make a run need less memory, each with what it saves by the same prediction."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from typing import Any

import torch

from tune.config.component import Component
from tune.config.lookup import find_module
from tune.modules import TransformerDecoder
from tune.modules.loss import LinearCrossEntropyLoss
from tune.modules.loss.linear_cross_entropy import LossFromHidden
from tune.modules.peft import LoRAConfig, adapter_parameters, apply_lora
from tune.modules.peft.apply import quantize_frozen
from tune.modules.peft.nf4 import NF4Weight
from tune.training.memory.optimizer_sizes import OptimizerSizes
from tune.training.memory.prediction import PlannedRun, predict
from tune.training.precision import Precision

__all__ = ["Advice", "advise"]

_MIN_SHARE = 0.01  # of the peak: less is not worth a line


@dataclass(frozen=True)
class Advice:
    """A change to the configuration.

    Args:
        setting: as it is typed.
        changes: what it makes of the run.
        remark: what else there is to know.
        is_free: the results stay the same.
        saved: bytes at the peak.
    """

    setting: str
    changes: dict[str, Any]
    remark: str = ""
    is_free: bool = False
    saved: float = 0.0


def advise(run: PlannedRun, usable: float) -> tuple[Advice, ...]:
    """Return what would lower a run's peak, the largest saving first.

    Where no one of them brings it within `usable`, the last piece of advice is some that do so together; those that
    change no result are tried first.
    """
    peak = predict(run).peak
    tried = [replace(advice, saved=peak - _peak_with(run, [advice])) for advice in _changes(run)]
    found = [advice for advice in tried if advice.saved > _MIN_SHARE * peak]
    found.sort(key=lambda advice: -advice.saved)
    if all(peak - advice.saved > usable for advice in found):
        found += _together(run, usable, found)
    return tuple(found)


def _together(run: PlannedRun, usable: float, changes: list[Advice]) -> Iterator[Advice]:
    """Yield the first settings that together fit; nothing where all of them do not."""
    peak = predict(run).peak
    taken: list[Advice] = []
    for change in sorted(changes, key=lambda change: not change.is_free):  # stable: the largest saving first
        if any(change.changes.keys() & other.changes.keys() for other in taken):
            continue
        taken.append(change)
        if (after := _peak_with(run, taken)) <= usable:
            yield Advice(" and ".join(change.setting for change in taken), {}, saved=peak - after)
            return


def _peak_with(run: PlannedRun, changes: list[Advice]) -> float:
    for change in changes:
        run = replace(run, **change.changes)
    prediction = predict(run)
    return inf if prediction.unknown else prediction.peak


def _changes(run: PlannedRun) -> Iterator[Advice]:
    if run.num_recomputed < len(run.model.layers):
        setting = "enable_activation_checkpointing=true"
        every: dict[str, Any] = {"num_recomputed": len(run.model.layers)}
        yield Advice(setting, every, "; about a third more work", True)
    if not run.activation_offloading and run.is_cuda:
        setting = "enable_activation_offloading=true"
        yield Advice(setting, {"activation_offloading": True}, "; moves them to the host and back", True)
    for size in dict.fromkeys((1, run.batch_size // 2)):
        if 0 < size < run.batch_size:
            yield _smaller_batch(run, size)
    if not isinstance(run.loss_fn, LossFromHidden):
        changes = {"loss_fn": LinearCrossEntropyLoss()}
        yield Advice("loss=LinearCrossEntropyLoss", changes, "; the same loss without all logits", True)
    if not run.optimizer_in_backward and not run.accumulates:
        yield Advice("optimizer_in_bwd=true", {"optimizer_in_backward": True}, "; without clip_grad_norm")
    name = OptimizerSizes(run.optimizer, run.precision.device_type).name
    if run.is_cuda and name in ("Adam", "AdamW"):
        path = f"bitsandbytes.optim.{name}8bit"
        remark = "" if find_module("bitsandbytes") else "; needs pip install bitsandbytes"
        yield Advice(f"optimizer={path}", {"optimizer": Component(path)}, remark)
    ranks = 2 * run.shard_dim
    yield Advice(f"data_parallel_shard_dim={ranks}", {"shard_dim": ranks}, f"; on {ranks} devices")
    if run.seq_len >= 64:
        half = run.seq_len // 2
        yield Advice(f"tokenizer.max_seq_len={half}", {"seq_len": half}, "; cuts longer texts")
    yield from _changes_of_weights(run)


def _smaller_batch(run: PlannedRun, size: int) -> Advice:
    changes: dict[str, Any] = {"batch_size": size}
    setting, remark = f"batch_size={size}", ""
    if not run.optimizer_in_backward:
        changes["accumulates"] = True
        times = -(-run.batch_size // size)
        remark = f"; with {times} times the gradient_accumulation_steps it learns the same"
    return Advice(setting, changes, remark, not run.optimizer_in_backward)


def _changes_of_weights(run: PlannedRun) -> Iterator[Advice]:
    given = {"dtype": run.precision.compute_dtype, "param_dtype": run.precision.param_dtype}
    if torch.float32 in given.values():
        setting = " ".join(f"{name}=bf16" for name, dtype in given.items() if dtype != torch.bfloat16)
        half = Precision(torch.bfloat16, torch.bfloat16, run.precision.device_type)
        yield Advice(setting, {"precision": half}, "; rounds weights to three digits")
    if adapter_parameters(run.model):
        if not any(isinstance(module, NF4Weight) for module in run.model.modules()):
            changes = {"model": _with_adapters(run.model, quantize_base=True)}
            yield Advice("quantize_base=true", changes, "; keeps the frozen matrices in 4 bits")
        return
    # Recipes with a second model train adapters by themselves.
    setting = "lora_rank=8" if run.frozen_model is not None else "tune run lora_finetune"
    yield Advice(setting, {"model": _with_adapters(run.model)}, "; trains adapters alone")
    changes = {"model": _with_adapters(run.model, quantize_base=True)}
    yield Advice(f"{setting} quantize_base=true", changes, "; on a 4-bit base")


@lru_cache(maxsize=8)  # the same ones are measured once: advice is asked for again when memory has run out
def _with_adapters(model: TransformerDecoder, quantize_base: bool = False) -> TransformerDecoder:
    """Return a copy with the adapters it has, or new ones, and its frozen matrices in 4 bits if so."""
    model = copy.deepcopy(model)
    if not adapter_parameters(model):
        apply_lora(model, LoRAConfig(quantize_base=quantize_base))
    elif quantize_base:
        quantize_frozen(model)
    return model
