"""Log-probabilities of the reference, computed once for all examples, and kept beside the tokens for the next run."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tune.data import DataReport, TokenWriter
from tune.data.cache import DataCache
from tune.utils import get_logger
from tune.utils.mesh import Mesh

__all__ = ["cached_log_probs"]

# Numbers of 32 bits are kept as tokens of as many.
_NUM_IDS = 1 << 31
Values = list[list[float]]


def cached_log_probs(
    loader: Any,
    facts: str,
    compute: Callable[[Any], Tensor],
    prepare: Callable[[], object],
    cache: DataCache | None,
    mesh: Mesh,
) -> Values:
    """Return for each example of a loader the log-probabilities of its answers: chosen, rejected, chosen, ...

    They are taken from the cache where they have been computed before. Every process must call this.

    Args:
        loader: its `examples`, in their order, and its `collate` and `batch_size` make the batches.
        facts: all that decides about them: the weights, the data, the precision.
        compute: returns those of a batch [2 n], all chosen ones first.
        prepare: called before anything is computed.
        cache: where they are kept; None: nowhere.
        mesh: the processes, which share the work.
    """
    key = hashlib.sha256(f"reference|{facts}".encode()).hexdigest()[:40]
    found = mesh.from_rank_zero(lambda: None if cache is None else _read(cache, key))
    if found is not None:
        return found
    get_logger().info(f"Computing the reference's log-probabilities of {len(loader.examples):,} examples")
    prepare()
    values = _compute(loader, compute, mesh)

    def fill(writer: TokenWriter) -> DataReport:
        from tune.data import Examples

        examples = Examples(_NUM_IDS)
        for each in values:
            examples.append(array("i", array("f", each).tobytes()), [1.0] * len(each))
        writer.extend(examples)
        return DataReport(source="log-probabilities of a reference", num_examples=len(values))

    if cache is not None and mesh.is_rank_zero:
        cache.load(key, "log-probabilities of a reference", _NUM_IDS, fill)
    return values


def _read(cache: DataCache, key: str) -> Values | None:
    found = cache.find(key)
    if found is None:
        return None
    store, _ = found
    return [
        array("f", array("i", store.example(index)["tokens"]).tobytes()).tolist()
        for index in range(len(store))
    ]


@torch.no_grad()
def _compute(loader: Any, compute: Callable[[Any], Tensor], mesh: Mesh) -> Values:
    examples, size = loader.examples, loader.batch_size
    starts = list(range(0, len(examples), size))
    own: dict[int, list[list[float]]] = {}
    # Sharded weights are gathered by all processes together: each makes as many batches.
    for turn in range(-(-len(starts) // mesh.data_parallel_size)):
        number = min(turn * mesh.data_parallel_size + mesh.data_parallel_rank, len(starts) - 1)
        items = [
            examples[index] for index in range(starts[number], min(starts[number] + size, len(examples)))
        ]
        own[number] = _by_item(items, compute(loader.collate(items)).tolist())
    together: dict[int, list[list[float]]] = {}
    for part in mesh.gather_to_all(own):
        together |= part
    return [values for number in sorted(together) for values in together[number]]


def _by_item(items: Sequence[Any], values: list[float]) -> Values:
    """Return the values of each item in the order of its answers; they come with all chosen ones first."""
    num_pairs, place, found = len(values) // 2, 0, []
    for item in items:
        number = sum(position == 0 for position in item["input_pos"]) // 2
        own: list[float] = []
        for pair in range(place, place + number):
            own += [values[pair], values[num_pairs + pair]]
        found.append(own)
        place += number
    return found
