"""From a dataset to its micro-batches, and how many optimizer steps they make."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from tune.config.component import Component
from tune.config.instantiate import import_component
from tune.data import CROSS_ENTROPY_IGNORE_IDX, FilledDataset, ResumableSampler
from tune.data.collate import gpu_lengths, padded_collate_sft
from tune.data.collate_preference import padded_collate_dpo
from tune.training.batches import collate_with_lengths
from tune.training.data_workers import WorkerLoader
from tune.training.streaming import Streamed, StreamLoader, StreamSampler
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
) -> DataLoader[Any] | StreamLoader:
    """Return a loader of this process's micro-batches; its `sampler` knows the place in the data.

    What there is to learn from the data is said in the log.

    The last batch of an epoch may be smaller and is not dropped: each token weighs the same whatever batch it is in.
    All processes get equally many batches, the last one filled up with padding where the data does not come out even.

    Args:
        dataset: examples with `tokens` and `labels`; its `mixture`, if it has one, says which of them make an epoch.
        collate_fn: the function, and its arguments, that makes a padded batch of a list of examples. For a GPU
            `padded_collate_sft` pads to few lengths, see `gpu_lengths`, unless the arguments say how.
        batch_size: sequences in a micro-batch.
        padding_idx: token to pad with, where `collate_fn` does not say.
        shuffle: a new order each epoch.
        seed: of the order.
        mesh: the processes that share the examples; for a GPU batches are pinned, so that nobody waits for copies.
        num_workers: processes that prepare batches ahead; 0 prepares them in between. Streamed data is prepared by one
            thread, whatever their number.
    """
    if hasattr(dataset, "report"):
        get_logger().info(f"Data: {dataset.report()}")
    function = import_component(collate_fn.path)
    arguments: dict[str, Any] = {"padding_idx": padding_idx}
    pads_to_few = function in (padded_collate_sft, padded_collate_dpo)
    if pads_to_few and mesh.device.type == "cuda" and hasattr(dataset, "report"):
        multiple, max_seq_len = gpu_lengths(dataset.report())
        arguments |= {"pad_to_multiple_of": multiple, "max_seq_len": max_seq_len}
    collate = partial(
        collate_with_lengths, partial(function, **{**arguments, **collate_fn.kwargs}), padding_idx
    )
    pin_memory = mesh.device.type == "cuda"
    if isinstance(dataset, Streamed):
        stream = dataset.stream(shuffle, seed, mesh.data_parallel_rank, mesh.data_parallel_size)
        place = StreamSampler(stream, dataset.describe_sources(), shuffle, seed, mesh)
        return StreamLoader(stream, place, collate, batch_size, pin_memory, reads_ahead=num_workers > 0)
    sampler = ResumableSampler(
        len(dataset),
        shuffle,
        seed,
        mesh.data_parallel_rank,
        mesh.data_parallel_size,
        getattr(dataset, "mixture", None),
    )
    filled = FilledDataset(dataset, padding_idx, CROSS_ENTROPY_IGNORE_IDX)
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "sampler": sampler,
        "pin_memory": pin_memory,
        # Its own generator, so that beginning an epoch draws nothing from the global one.
        "generator": torch.Generator(),
    }
    made: Any
    if num_workers:
        made = WorkerLoader(filled, collate, num_workers, **settings)
    else:
        made = DataLoader(filled, collate_fn=collate, **settings)
    made.examples, made.collate = filled, collate  # as they are, also where workers are handed copies
    loader: DataLoader[Any] = made
    return loader
