"""From a dataset to its micro-batches, and how many optimizer steps they make."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from tune.config.component import Component
from tune.config.instantiate import import_component
from tune.data import CROSS_ENTROPY_IGNORE_IDX, FilledDataset, ResumableSampler
from tune.training.batches import collate_with_lengths
from tune.training.signals import StopRequest
from tune.utils import get_logger
from tune.utils.mesh import Mesh

__all__ = ["build_loader"]


class MapDataset(Protocol):
    """Examples by their number, each with `tokens` and `labels`. A `report()` of them, if there is one, is logged."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def build_loader(
    dataset: MapDataset,
    collate_fn: Component,
    *,
    batch_size: int,
    padding_idx: int,
    shuffle: bool,
    seed: int,
    mesh: Mesh,
    num_workers: int = 0,
) -> DataLoader[Any]:
    """Return a loader of this process's micro-batches; its `sampler` knows the place in the data.

    What there is to learn from the data is said in the log.

    The last batch of an epoch may be smaller and is not dropped: each token weighs the same whatever batch it is in.
    All processes get equally many batches, the last one filled up with padding where the data does not come out even.

    Args:
        dataset: examples with `tokens` and `labels`.
        collate_fn: the function, and its arguments, that makes a padded batch of a list of examples.
        batch_size: sequences in a micro-batch.
        padding_idx: token to pad with, where `collate_fn` does not say.
        shuffle: a new order each epoch.
        seed: of the order.
        mesh: the processes that share the examples; for a GPU batches are pinned, so that nobody waits for copies.
        num_workers: processes that prepare batches ahead; 0 prepares them in between.
    """
    if hasattr(dataset, "report"):
        get_logger().info(f"Data: {dataset.report()}")
    sampler = ResumableSampler(len(dataset), shuffle, seed, mesh.data_parallel_rank, mesh.data_parallel_size)
    arguments = {"padding_idx": padding_idx, **collate_fn.kwargs}
    return DataLoader(
        FilledDataset(dataset, padding_idx, CROSS_ENTROPY_IGNORE_IDX),
        batch_size,
        sampler=sampler,
        collate_fn=partial(
            collate_with_lengths, partial(import_component(collate_fn.path), **arguments), padding_idx
        ),
        num_workers=num_workers,
        worker_init_fn=_leave_signals_to_the_run,
        pin_memory=mesh.device.type == "cuda",
        # Its own generator, so that beginning an epoch draws nothing from the global one.
        generator=torch.Generator(),
    )


def _leave_signals_to_the_run(worker: int) -> None:
    """Terminals and schedulers signal every process; the step that is being finished still needs its batches."""
    for signum in StopRequest.SIGNALS:
        if signum != signal.SIGTERM:
            signal.signal(signum, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # Not ignored: with this signal the run itself ends workers that it has no more use for.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_run_says_so, daemon=True).start()


def _end_when_the_run_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
