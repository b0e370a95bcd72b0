"""Packing: which short documents share a sequence."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING, Any, overload

from tune.data.labels import CROSS_ENTROPY_IGNORE_IDX
from tune.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Packs(Sequence[list[int]]):
    """For each sequence the indices of its documents, ascending, in two flat arrays.

    Args:
        pack_of: the sequence of each document.
        num_packs: sequences there are.
    """

    def __init__(self, pack_of: NDArray[np.int32], num_packs: int) -> None:
        import numpy as np

        self._members = np.argsort(pack_of, kind="stable").astype(np.int32)
        self._ends = np.zeros(num_packs + 1, dtype=np.int64)
        np.cumsum(np.bincount(pack_of, minlength=num_packs), out=self._ends[1:])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside of the {len(self)} sequences")
        index %= len(self)
        members: list[int] = self._members[self._ends[index] : self._ends[index + 1]].tolist()
        return members

    def __iter__(self) -> Iterator[list[int]]:
        return (self[index] for index in range(len(self)))


def pack_lengths(lengths: Sequence[int] | NDArray[np.int32], capacity: int) -> Packs:
    """Return groups of documents, none longer than `capacity` together, by best fit from the longest down.

    The result depends on the lengths alone. Best-fit decreasing needs at most 11/9 of the fewest possible
    sequences, plus one (Johnson, 1974); arXiv:2404.10830 uses it for language models.

    Args:
        lengths: tokens of each document.
        capacity: tokens of a sequence.

    Raises:
        DataError: a document is longer than a sequence.
    """
    import numpy as np

    sizes = np.asarray(lengths, dtype=np.int32)
    if sizes.size and sizes.max() > capacity:
        too_long = int(sizes.max())
        raise DataError(f"a document of {too_long} tokens does not fit into a packed sequence of {capacity}")
    pack_of = np.zeros(len(sizes), dtype=np.int32)
    num_packs = 0
    # The sequences that have so many tokens left, the first one foremost; and which numbers there are, as bits.
    with_room: dict[int, list[int]] = {}
    rooms = 0
    for index in array("i", np.argsort(-sizes, kind="stable").astype(np.int32).tobytes()):
        length = int(sizes[index])
        if fitting := rooms >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            pack = heappop(with_room[room])
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, pack = capacity, num_packs
            num_packs += 1
        pack_of[index] = pack
        if left := room - length:
            heappush(with_room.setdefault(left, []), pack)
            rooms |= 1 << left
    return Packs(pack_of, num_packs)


def join_examples(examples: Sequence[Mapping[str, list[Any]]]) -> dict[str, list[Any]]:
    """Return one sequence of some examples: `tokens`, `labels`, and positions (`input_pos`) that begin anew with each.

    The first token of an example is never a target. There are `weights` where one of the examples has them, and so are
    `margins` of pairs.
    """
    packed: dict[str, list[Any]] = {"tokens": [], "labels": [], "input_pos": []}
    if any("weights" in example for example in examples):
        packed["weights"] = []
    if any("margins" in example for example in examples):
        packed["margins"] = [margin for example in examples for margin in example["margins"]]
    for example in examples:
        packed["tokens"] += example["tokens"]
        packed["labels"] += [CROSS_ENTROPY_IGNORE_IDX, *example["labels"][1:]]
        packed["input_pos"] += example.get("input_pos") or range(len(example["tokens"]))
        if "weights" in packed:
            packed["weights"] += example.get("weights") or [1.0] * len(example["tokens"])
    return packed


def split_example(example: Mapping[str, Any]) -> Iterator[dict[str, list[Any]]]:
    """Yield the documents of a sequence, one where it is not packed: `tokens`, `labels`, `weights` if there are any."""
    keys = [key for key in ("tokens", "labels", "weights") if key in example]
    positions = example.get("input_pos", ())
    starts = [0, *(place for place in range(1, len(positions)) if positions[place] == 0)]
    for start, end in pairwise([*starts, len(example["tokens"])]):
        yield {key: list(example[key][start:end]) for key in keys}
