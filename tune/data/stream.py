"""Rows that are read as they are needed, shuffled in a buffer and packed on the way, from any place on."""

from __future__ import annotations

import hashlib
import logging
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, NamedTuple

from tune.data.files import Row
from tune.data.packing import join_examples, pack_lengths
from tune.data.sources import Source
from tune.data.tokenize_rows import ConversationTokenizer, TextTokenizer, TokenizedRows
from tune.data.values import weigh
from tune.errors import DataError
from tune.utils.escape import escape_control

_log = logging.getLogger(__name__)
# A block ends with so many bytes of rows, too: it is held in memory.
_BLOCK_BYTES = 256 << 20
# Rows of a block where nothing is shuffled.
_PLAIN_ROWS = 1024
# Rows that are tokenized together.
_ROWS_AT_ONCE = 16
# Sequences that documents are packed into together: the last of them is half full on average.
_PACKED_AT_ONCE = 64


@dataclass(frozen=True)
class StreamPlace:
    """A place between two examples of a `RowStream`.

    Args:
        passes: times that the source has been read to its end.
        shard: of the source in the order of this pass, with which the block at hand begins.
        row: of that shard.
        done: rows of the block, in their order, that lie behind.
        given: examples that lie behind, of those that the rows after them give.
    """

    passes: int = 0
    shard: int = 0
    row: int = 0
    done: int = 0
    given: int = 0


class _Piece(NamedTuple):
    """Rows that are tokenized together, the place before them, and whether their block ends with them."""

    place: StreamPlace
    rows: list[Row]
    ends_block: bool


@dataclass
class RowStream:
    """Endless examples of a source, tokenized as they are asked for; what they are depends on the arguments alone.

    The rows of this process are read in blocks of `shuffle_buffer`. Each block is put into a random order, tokenized,
    and packed where a capacity is given, so that a place in the stream is a few numbers: from there, no more than one
    block is read again, and of its file no more than has to be passed over. At the end of the source the next pass
    begins, with the files and the blocks in another order.

    Args:
        source: of the rows.
        job: makes tokens of rows.
        drops_bad_rows: leave out the rows that cannot be used; otherwise they are an error, once they are reached.
        capacity: tokens of a sequence that examples are packed into; None packs nothing.
        shuffle_buffer: rows of a block; 0 leaves all in the order of the source.
        seed: of the order.
        rank, world_size: this process, of those that share the rows: each takes every `world_size`-th file, and so
            many-th row of the files that are left over.
        tokenize: makes tokens of lists of rows as `job` does of one, in order and perhaps ahead; None takes `job`.

    Attributes:
        num_dropped: rows left out so far.
    """

    source: Source
    job: ConversationTokenizer | TextTokenizer
    drops_bad_rows: bool = False
    capacity: int | None = None
    shuffle_buffer: int = 0
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    tokenize: Callable[[Iterator[list[Row]]], Iterator[TokenizedRows]] | None = None
    num_dropped: int = 0

    def examples(self, place: StreamPlace = StreamPlace()) -> Iterator[tuple[dict[str, Any], StreamPlace]]:
        """Yield one example after another, each with the place behind it.

        Raises:
            DataError: a row cannot be used, an example is too long, or there is nothing to learn in a whole pass.
        """
        held: list[dict[str, Any]] = []
        begin, given, last_pass = None, place.given, place.passes
        for piece, examples in self._tokenize(self._pieces(place)):
            if piece.place.passes > last_pass + 1:
                raise self._nothing()
            begin = begin or piece.place
            held += examples
            room = _PACKED_AT_ONCE * (self.capacity or 0)
            if not piece.ends_block and sum(len(example["tokens"]) for example in held) < room:
                continue
            for number, example in enumerate(self._pack(held, begin), 1):
                last_pass = begin.passes
                if number > given:
                    yield example, replace(begin, given=number)
            held, begin, given = [], None, 0

    def _pieces(self, place: StreamPlace) -> Iterator[_Piece]:
        """Yield the rows of this process from a place on without an end, in the order of their examples."""
        while True:
            is_empty = place == StreamPlace(place.passes)
            for start, rows in self._blocks(place):
                is_empty = False
                if self.shuffle_buffer:
                    self._random(start.passes, f"{start.shard} {start.row}").shuffle(rows)
                done = place.done if replace(place, done=0, given=0) == start else 0
                for first in range(done, len(rows), _ROWS_AT_ONCE):
                    end = first + _ROWS_AT_ONCE
                    yield _Piece(replace(start, done=first), rows[first:end], end >= len(rows))
            if is_empty:
                raise self._nothing()
            place = StreamPlace(place.passes + 1)

    def _nothing(self) -> DataError:
        return DataError(
            f"nothing to learn in {self.source}: none of its rows became an example for process "
            f"{self.rank + 1} of {self.world_size}"
        )

    def _blocks(self, place: StreamPlace) -> Iterator[tuple[StreamPlace, list[Row]]]:
        """Yield the rows of this process from a place to the end of its pass, in lists, each with where it begins."""
        shards = self.source.shards()
        order = list(range(len(shards)))
        if self.shuffle_buffer:
            self._random(place.passes, "files").shuffle(order)
        # As many files for each process; those left over are read by all, each of which makes its rows alone.
        num_shared = len(order) % self.world_size
        size = self.shuffle_buffer or _PLAIN_ROWS
        start, rows, num_bytes = None, list[Row](), 0
        for shard in range(place.shard, len(order)):
            is_own = shard < len(order) - num_shared
            if is_own and shard % self.world_size != self.rank:
                continue
            first = place.row if shard == place.shard else 0
            for number, make in enumerate(shards[order[shard]].unmade(first), first):
                if not is_own and (shard + number) % self.world_size != self.rank:
                    continue
                start = start or StreamPlace(place.passes, shard, number)
                row = make()
                rows.append(row)
                num_bytes += weigh(row.values)
                if len(rows) >= size or num_bytes >= _BLOCK_BYTES:
                    yield start, rows
                    start, rows, num_bytes = None, [], 0
        if start is not None:
            yield start, rows

    def _pack(self, examples: list[dict[str, Any]], place: StreamPlace) -> Iterator[dict[str, Any]]:
        if self.capacity is None:
            return iter(examples)
        packs = list(pack_lengths([len(example["tokens"]) for example in examples], self.capacity))
        if self.shuffle_buffer:  # the longest documents are packed first
            self._random(place.passes, f"{place.shard} {place.row} {place.done}").shuffle(packs)
        return (join_examples([examples[member] for member in pack]) for pack in packs)

    def _tokenize(self, pieces: Iterator[_Piece]) -> Iterator[tuple[_Piece, list[dict[str, Any]]]]:
        """Yield each piece with its examples; some may be made ahead."""
        ahead: deque[_Piece] = deque()

        def lists() -> Iterator[list[Row]]:
            for piece in pieces:
                ahead.append(piece)
                yield piece.rows

        examples: list[dict[str, Any]] = []
        num_rows = 0
        for tokenized in self.tokenize(lists()) if self.tokenize else map(self.job, lists()):
            examples += self._examples_of(tokenized)
            num_rows += tokenized.report.num_rows  # in parts where a row has taken its process with it
            if num_rows == len(ahead[0].rows):
                yield ahead.popleft(), examples
                examples, num_rows = [], 0

    def _examples_of(self, tokenized: TokenizedRows) -> list[dict[str, Any]]:
        if tokenized.too_long:
            place, length = tokenized.too_long[0]
            raise DataError(
                f"{place} has {length:,} tokens, more than max_seq_len={self.job.limit}, and dataset.on_too_long is "
                "error: set it to cut, drop or split, or raise dataset.max_seq_len"
            )
        for place, reason in tokenized.rejected:
            if not self.drops_bad_rows:
                raise DataError(
                    f"{place} cannot be learnt from: {reason}. Repair it, or leave such rows out with "
                    "dataset.on_bad_rows=drop"
                )
            self.num_dropped += 1
            if self.num_dropped == 10 ** (len(str(self.num_dropped)) - 1):
                row = f"{place}: {escape_control(reason, 300)}"
                _log.warning(f"warning: {self.num_dropped:,} rows left out so far, the last of them {row}")
        store = tokenized.examples.to_store()
        return [store.example(index) for index in range(len(store))]

    def _random(self, passes: int, what: str) -> random.Random:
        digest = hashlib.blake2b(f"{self.seed}/{passes}/{what}".encode(), digest_size=8).digest()
        return random.Random(int.from_bytes(digest, "little"))


@dataclass
class MixedStream:
    """Examples of several streams in given shares: the next is of the one that is the furthest behind its share.

    Args:
        streams: at least one.
        weights: of each, above 0; only their proportions matter.
    """

    streams: Sequence[RowStream]
    weights: Sequence[float]

    def start(self) -> MixedPlace:
        """Return the place before the first example."""
        return MixedPlace((0,) * len(self.streams), (StreamPlace(),) * len(self.streams))

    def examples(self, place: MixedPlace | None = None) -> Iterator[tuple[dict[str, Any], MixedPlace]]:
        """Yield one example after another, each with the place behind it; see `RowStream.examples`."""
        place = place or self.start()
        counts, places = list(place.counts), list(place.places)
        shares = [weight / sum(self.weights) for weight in self.weights]
        sources = [stream.examples(begin) for stream, begin in zip(self.streams, places, strict=True)]
        while True:
            behind = [(sum(counts) + 1) * share - count for share, count in zip(shares, counts, strict=True)]
            which = behind.index(max(behind))
            example, places[which] = next(sources[which])
            counts[which] += 1
            yield example, MixedPlace(tuple(counts), tuple(places))


@dataclass(frozen=True)
class MixedPlace:
    """A place between two examples of a `MixedStream`.

    Args:
        counts: examples of each stream that lie behind.
        places: in each.
    """

    counts: tuple[int, ...]
    places: tuple[StreamPlace, ...]

    def to_numbers(self) -> list[int]:
        """Return the place as plain numbers, equally many for each stream."""
        return [
            number
            for count, place in zip(self.counts, self.places, strict=True)
            for number in (count, *astuple(place))
        ]

    @classmethod
    def from_numbers(cls, numbers: Sequence[int]) -> MixedPlace:
        """Return the place that `to_numbers` wrote."""
        size = 1 + len(astuple(StreamPlace()))
        parts = [numbers[first : first + size] for first in range(0, len(numbers), size)]
        return cls(tuple(part[0] for part in parts), tuple(StreamPlace(*part[1:]) for part in parts))
