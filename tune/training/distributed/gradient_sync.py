"""The gradients of all processes, added up once per optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tune.training.distributed.sharded_model import is_sharded_model
from tune.utils.mesh import Mesh

__all__ = ["GradientSync", "mark_last"]

T = TypeVar("T")
# Gradients that are added up in one message: large enough to use the wire, small enough to start early.
BUCKET_BYTES = 25 * 2**20


def mark_last(items: Sequence[T]) -> Iterator[tuple[T, bool]]:
    """Yield each item with whether it is the last."""
    for number, item in enumerate(items, start=1):
        yield item, number == len(items)


class GradientSync:
    """Adds up the gradients of all processes in the last micro-step of each optimizer step.

    Sharded weights do it themselves, block by block, during that backward pass. Of weights that every process holds
    whole, the gradients are sent in buckets as soon as these are complete, while the backward pass goes on; the sum is
    fp32 whatever the gradients are.

    Args:
        model: sharded already, if it is to be.
        mesh: the processes of the run.
    """

    def __init__(self, model: nn.Module, mesh: Mesh) -> None:
        self._sharded: Any = model if is_sharded_model(model) else None
        self._buckets: list[_Bucket] = []
        self._is_last = False
        if mesh.world_size > 1 and self._sharded is None:
            trained = [weight for weight in model.parameters() if weight.requires_grad]
            self._buckets = _make_buckets(trained, mesh)
            for bucket in self._buckets:
                for weight in bucket.weights:
                    weight.register_post_accumulate_grad_hook(self._make_hook(bucket))  # type: ignore[no-untyped-call]

    @contextmanager
    def micro_step(self, is_last: bool) -> Iterator[None]:
        """Run one forward and backward pass; leaving the last one, every gradient is that of all processes."""
        self._is_last = is_last
        if self._sharded is not None:
            self._sharded.set_requires_gradient_sync(is_last)
            self._sharded.set_is_last_backward(is_last)
        for bucket in self._buckets:
            bucket.begin()
        yield
        if is_last:
            # Those with a weight that had no part in this backward pass have not been sent yet.
            for bucket in self._buckets:
                bucket.send()
            for bucket in self._buckets:
                bucket.receive()

    def _make_hook(self, bucket: _Bucket) -> Any:
        def note(weight: Tensor) -> None:
            if self._is_last:
                bucket.num_missing -= 1
                # In the order of the buckets, whatever the order in which they fill: the same on every process.
                for each in self._buckets:
                    if each.num_missing > 0:
                        break
                    each.send()

        return note


class _Bucket:
    """Some weights whose gradients travel together."""

    def __init__(self, weights: list[nn.Parameter], mesh: Mesh) -> None:
        self.weights = weights
        self._mesh = mesh
        self._flat: Tensor | None = None
        self._work: Any = None
        self.begin()

    def begin(self) -> None:
        """Wait for the gradients of a new backward pass."""
        self.num_missing = len(self.weights)

    def send(self) -> None:
        """Send what there is, once; a weight without a gradient counts as one of zeros."""
        if self._work is not None:
            return
        gradients = [
            torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self.weights
        ]
        wide = torch.promote_types(gradients[0].dtype, torch.float32)
        self._flat = torch.cat([gradient.reshape(-1).to(wide) for gradient in gradients])
        self._work = self._mesh.start_sum_(self._flat)

    def receive(self) -> None:
        """Put the sums where the gradients were."""
        assert self._flat is not None
        self._work.wait()
        parts = torch.split(self._flat, [weight.numel() for weight in self.weights])
        for weight, part in zip(self.weights, parts, strict=True):
            if weight.grad is None:
                weight.grad = torch.empty_like(weight)
            weight.grad.copy_(part.view_as(weight))
        self._flat = self._work = None


def _make_buckets(weights: Sequence[nn.Parameter], mesh: Mesh) -> list[_Bucket]:
    """Cut the weights, last first as the backward pass meets them, into buckets of one dtype each."""
    groups: list[list[nn.Parameter]] = []
    used = 0
    for weight in reversed(weights):
        if not groups or used >= BUCKET_BYTES or groups[-1][0].dtype != weight.dtype:
            groups.append([])
            used = 0
        groups[-1].append(weight)
        used += weight.numel() * 4
    return [_Bucket(group, mesh) for group in groups]
