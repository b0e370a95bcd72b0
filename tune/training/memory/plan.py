"""How much memory a run will need, said before it starts; and afterwards, how near that was."""

from __future__ import annotations

import logging
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from tune.data import DataReport
from tune.data.collate import gpu_lengths, padded_length
from tune.modules.loss import LinearCrossEntropyLoss, PreferenceLoss, RewardLoss
from tune.training.memory.advice import Advice, advise
from tune.training.memory.available import GIB, available_memory, get_peak_memory_gib, held_memory
from tune.training.memory.measure import without_memory
from tune.training.memory.prediction import PlannedRun, Prediction, predict
from tune.utils import get_logger
from tune.utils.mesh import Mesh

__all__ = ["LongestRow", "MemoryPlan", "longest_row", "plan_memory"]

GENERAL_ADVICE = (
    "What helps, in this order: a smaller batch_size with more gradient_accumulation_steps; "
    "enable_activation_checkpointing=true; a smaller tokenizer.max_seq_len; dtype=bf16; optimizer_in_bwd=true; "
    "on a GPU, enable_activation_offloading=true."
)
# What may be filled by tensors. Allocators give memory out in pieces and lose what lies between them; the C library's,
# on a host, also keeps much of what was freed: up to 40% more than the tensors was measured there, 10% as a rule.
_USABLE = {"cuda": 0.9, "cpu": 0.75}
# Between what was measured and expected: a larger one is explained.
_LARGE_DIFFERENCE = 0.25


@dataclass(frozen=True)
class MemoryPlan:
    """What one rank will need, what its device has, and what could be changed.

    Attributes:
        prediction: bytes of each part at each moment of a step.
        available: bytes the device has for this process; None where that is not known.
        held_before: bytes in use when the plan was made, which is no part of it on a host.
        reason: why so many blocks are recomputed, where that was left open; "" where it was not.
    """

    run: PlannedRun
    prediction: Prediction
    device: torch.device
    available: int | None
    held_before: int
    reason: str = ""

    @property
    def num_recomputed(self) -> int:
        """How many blocks are recomputed: the first ones, for whose backward pass most memory is free again."""
        return self.run.num_recomputed

    @property
    def peak(self) -> float:
        """Bytes at the fullest moment."""
        return self.prediction.peak

    @property
    def fits(self) -> bool | None:
        """Whether the device has as much; None where that, or all that is needed, is not known."""
        if self.available is None:
            return None
        fits = self.peak <= self.available
        return None if fits and self.prediction.unknown else fits

    @property
    def is_tight(self) -> bool:
        """Whether it needs more of the device than tensors can be expected to fill."""
        return self.available is not None and self.peak > self._usable

    @property
    def _usable(self) -> float:
        return (self.available or 0) * _USABLE.get(self.device.type, 0.75)

    def with_fewest_recomputed(self, mesh: Mesh) -> MemoryPlan:
        """Return the plan with as few blocks recomputed as fit on every process; each of them must call this."""
        blocks = range(len(self.run.model.layers))

        def fits(num: int) -> bool:
            return predict(replace(self.run, num_recomputed=num)).peak <= self._usable

        is_known = self.available is not None and not self.prediction.unknown
        num = int(mesh.max(bisect_left(blocks, True, key=fits) if is_known else len(blocks)))
        reason = (
            "all would fit"
            if num == 0
            else "the fewest that fit"
            if num < len(blocks)
            else "none can be left out"
        )
        run = replace(self.run, num_recomputed=num)
        return replace(self, run=run, prediction=predict(run), reason=f" (auto: {reason})")

    def table(self) -> list[str]:
        """Return the parts in GiB, a line each."""
        head = "GiB on each rank, predicted"
        rows = {**self.prediction.parts, "together": self.prediction.moments}
        width = max(len(name) for name in (head, *rows))
        lines = [f"{head:{width}}{'at the loss':>13}{'in backward':>13}{'at the step':>13}"]
        for name, sizes in rows.items():
            lines.append(f"{name:{width}}" + "".join(f"{_gib(size) if size else '-':>13}" for size in sizes))
        if self.prediction.on_host:
            there = available_memory(torch.device("cpu"))
            of = "" if there is None else f" of {_gib(there)} GiB available there"
            lines.append(f"and on the host, for what is moved there: {_gib(self.prediction.on_host)} GiB{of}")
        return lines

    def verdict(self) -> str:
        """Return whether it fits, in a sentence."""
        text = f"memory: {_gib(self.peak)} GiB predicted at the fullest, {self.prediction.fullest}"
        if self.num_recomputed or self.reason:
            text += f", {self.num_recomputed} of {len(self.run.model.layers)} blocks recomputed{self.reason}"
        if self.prediction.unknown:
            text += f", without activations and loss, which cannot be measured ({self.prediction.unknown})"
        if self.available is None:
            return f"{text}; what {self.device} has is not known"
        text += f"; {_gib(self.available)} GiB available on {self.device}"
        if self.fits is None:
            return text
        if not self.fits:
            return f"{text}: it will probably run out of memory"
        return f"{text}: {'tight' if self.is_tight else 'fits'}"

    def advice(self, usable: float | None = None) -> tuple[Advice, ...]:
        """Return settings that would need less, the ones that help most first; some together to be within `usable`."""
        return advise(self.run, self._usable if usable is None else usable)

    def advice_lines(self, usable: float | None = None) -> list[str]:
        """Return what would need less, a line each; [] where nothing is known to."""
        lines = []
        usable = self._usable if usable is None else usable
        for advice in self.advice(usable):
            after = self.peak - advice.saved
            fits = ", which fits" if after <= usable else ""
            lines.append(
                f"  {advice.setting}: {_gib(-advice.saved)} GiB, {_gib(after)} left{fits}{advice.remark}"
            )
        return ["What would need less:", *lines] if lines else []

    def explanation(self, in_use: int) -> list[str]:
        """Return what there is to say after memory has run out with `in_use` bytes taken, a line each."""
        verdict = self.verdict()
        if self.fits:
            verdict += ". It was expected to: a limit may be set (ulimit -v), or other processes take memory."
        if self.device.type != "cuda":
            in_use = max(in_use - self.held_before, 0)
        usable = min(self._usable, in_use) if self.available is not None else in_use
        try:
            advice = self.advice_lines(usable)
        except (RuntimeError, MemoryError):  # there is no memory left to measure other settings
            advice = [GENERAL_ADVICE]
        return ["This was predicted:", *self.table(), verdict, *advice]

    def measure(self) -> float:
        """Return the bytes at the peak so far: allocated on a GPU, on a host resident since the plan was made."""
        measured = get_peak_memory_gib(self.device) * GIB
        return measured if self.device.type == "cuda" else max(measured - self.held_before, 0.0)

    def predict_for(self, seen: tuple[int, int]) -> float:
        """Return the bytes at the fullest moment of a run whose micro-batches have so many rows and tokens."""
        return predict(replace(self.run, batch_size=seen[0], seq_len=seen[1])).peak

    def compare(self, measured: float, seen: tuple[int, int]) -> str:
        """Return a line with what was predicted beside what was measured.

        The prediction in it is that of the verdict; what smaller micro-batches let expect stands behind it.

        Args:
            measured: bytes at the peak so far, of two optimizer steps or more.
            seen: rows and tokens of the largest micro-batch so far, which need not be the largest of all.
        """
        expected = self.predict_for(seen)
        text = f"memory: {_gib(self.peak)} GiB predicted"
        if _gib(expected) != _gib(self.peak):
            text += f", {_gib(expected)} GiB for batches as so far ({seen[0]} x {seen[1]} tokens)"
        share = measured / expected - 1
        text += f", {_gib(measured)} GiB measured ({100 * share:+.0f}%)"
        return f"{text}: {self._explain(share)}" if abs(share) > _LARGE_DIFFERENCE else text

    def _explain(self, share: float) -> str:
        """Return why the measured memory is so far from what was expected."""
        if self.prediction.unknown:
            return "activations and loss are not in the prediction"
        if self.device.type == "cuda":
            return (
                "compiled blocks keep less than is predicted"
                if share < 0
                else "kernels take room for themselves"
            )
        if share < 0:
            return "on a CPU only growth is seen; memory taken and freed before (by imports and data) was used again"
        return "on a CPU the allocator keeps what was freed, and reading data and weights counts too"

    def log(self) -> None:
        """Say it: a line where there is room, the whole table and what would help where there is not."""
        lines = [*self.table(), self.verdict(), *self.advice_lines()] if self.is_tight else [self.verdict()]
        get_logger().log(logging.WARNING if self.fits is False else logging.INFO, "\n".join(lines))


class LongestRow(NamedTuple):
    """The longest row of a micro-batch: its tokens, and whether rows hold several documents."""

    num_tokens: int
    is_packed: bool = False


def plan_memory(run: PlannedRun, row: LongestRow | DataReport, mesh: Mesh | torch.device) -> MemoryPlan:
    """Return what a run will need on one rank.

    Best asked before the weights are read: on a host, what is in use by then counts as taken.

    Args:
        run: what is trained, and how.
        row: of the data, or a report of them.
        mesh: the processes of the run, who choose alike: each must call this; or the device of one.
    """
    loss_fn, frozen, frozen_shard_dim = run.loss_fn, run.frozen_model, run.frozen_shard_dim
    if isinstance(loss_fn, PreferenceLoss | RewardLoss):
        if run.keeps_copy and isinstance(loss_fn, PreferenceLoss) and loss_fn.needs_reference:
            frozen, frozen_shard_dim = run.model, run.shard_dim
        loss_fn = LinearCrossEntropyLoss()  # which applies the output matrix in the same pieces
    mesh = mesh if isinstance(mesh, Mesh) else Mesh(mesh)
    if isinstance(row, DataReport):
        row = longest_row(row, mesh.device.type, run.num_written)
    run = replace(
        run,
        model=without_memory(run.model, None),
        loss_fn=loss_fn,
        frozen_model=None if frozen is None else without_memory(frozen, None),
        frozen_shard_dim=frozen_shard_dim,
        seq_len=row.num_tokens,
        is_packed=row.is_packed,
        num_recomputed=0 if run.activation_checkpointing is False else len(run.model.layers),
    )
    plan = MemoryPlan(run, predict(run), mesh.device, available_memory(mesh.device), held_memory(mesh.device))
    return plan.with_fewest_recomputed(mesh) if run.activation_checkpointing == "auto" else plan


def longest_row(report: DataReport, device_type: str = "cpu", num_written: int = 0) -> LongestRow:
    """Return the longest row that a dataset gives: all of its room where documents are packed.

    Args:
        report: of the dataset.
        device_type: what rows are padded for.
        num_written: tokens that the model writes after each prompt, in place of the data's answers.
    """
    if num_written:
        return LongestRow(report.longest_kept + num_written)
    if report.num_packs and report.max_seq_len is not None:
        return LongestRow(report.max_seq_len, is_packed=True)
    if device_type != "cuda":
        return LongestRow(report.longest_kept)
    return LongestRow(padded_length(report.longest_kept, *gpu_lengths(report)))


def _gib(num_bytes: float) -> str:
    gib = num_bytes / GIB
    return f"{gib:.2f}" if abs(gib) >= 0.1 else f"{gib:.3f}"
