"""Micro-batches of data that is streamed, and the place in it that is saved with a step."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from tune.data.stream import MixedPlace, MixedStream
from tune.errors import DataError
from tune.utils.mesh import Mesh

__all__ = ["StreamLoader", "StreamSampler", "Streamed"]

# Examples of a pass over data that has no known end; a run ends by `max_steps`.
ENDLESS = 10**15
_NUM_AHEAD = 4  # micro-batches
_WAIT_S = 0.1


@runtime_checkable
class Streamed(Protocol):
    """A dataset that is not taken by number."""

    def stream(self, shuffle: bool, seed: int, rank: int, world_size: int) -> MixedStream: ...

    def describe_sources(self) -> str: ...


class StreamSampler:
    """The place in a stream: what `ResumableSampler` is for data that has numbers.

    Args:
        stream: of this process.
        sources: what must be the same for a place to be the same, in words.
        shuffle, seed: of its order.
        mesh: processes that share the data; each has a place of its own.

    Attributes:
        num_examples: more than any run takes.
        world_size: processes that share the data.
        ahead: the place behind each example that was handed out and not trained on yet.
    """

    def __init__(self, stream: MixedStream, sources: str, shuffle: bool, seed: int, mesh: Mesh) -> None:
        self.num_examples = ENDLESS
        self.world_size = mesh.data_parallel_size
        self.place = stream.start()
        self.ahead: deque[MixedPlace] = deque()
        self._position = 0
        self._fixed = {"seed": seed, "shuffle": shuffle, "mixture": sources}
        self._mesh = mesh

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of the examples that come, counted over all processes."""
        return count(self._position + self._mesh.data_parallel_rank, self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: there is one epoch, without an end."""

    def advance(self, num_examples: int) -> None:
        """Record that every process has trained on `num_examples` further examples."""
        for _ in range(num_examples):
            self.place = self.ahead.popleft()
        self._position += num_examples * self.world_size

    def state_dict(self) -> dict[str, Any]:
        """Return the places of all processes, to be saved with a step. Every process must call this."""
        own = self.place.to_numbers()
        places = [0] * (len(own) * self.world_size)
        start = len(own) * self._mesh.data_parallel_rank
        places[start : start + len(own)] = own
        return {
            "epoch": 0,
            "position": self._position,
            "num_examples": ENDLESS,
            **self._fixed,
            "places": self._mesh.sums(places) if self.world_size > 1 else places,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a saved place.

        Raises:
            DataError: the data, its order or the number of processes is not what it was saved with.
        """
        self._position = self.find_position(state)
        own = len(self.place.to_numbers())
        start = own * self._mesh.data_parallel_rank
        self.place = MixedPlace.from_numbers(state["places"][start : start + own])

    def find_position(self, state: dict[str, Any]) -> int:
        """Return how many examples a saved place has behind it, over all processes.

        Raises:
            DataError: as `load_state_dict`.
        """
        places = state.get("places")
        if places is None:
            raise DataError(
                "cannot resume: the data was not streamed when the step was saved. Set dataset.streaming=false, or "
                "start a new run from the saved weights"
            )
        size = len(self.place.to_numbers())
        now: dict[str, Any] = {**self._fixed, "processes": self.world_size}
        was = {**state, "processes": len(places) // size if len(places) % size == 0 else "others"}
        for name, value in now.items():
            if was[name] != value:
                raise DataError(
                    f"cannot resume in the middle of streamed data: {'sources' if name == 'mixture' else name} was "
                    f"{was[name]} when the step was saved and is {value} now, so other examples would follow. Set it "
                    "back, or start a new run from the saved weights"
                )
        return int(state["position"])


class StreamLoader:
    """Micro-batches of this process, one after another without an end.

    Args:
        stream: of this process.
        sampler: knows how far it has been trained on.
        collate: makes a batch of a list of examples.
        batch_size: sequences in a micro-batch.
        pin_memory: whether batches lie where a GPU can copy them from by itself.
        reads_ahead: prepare some micro-batches in a thread while others are trained on.
    """

    def __init__(
        self,
        stream: MixedStream,
        sampler: StreamSampler,
        collate: Callable[[list[Any]], Any],
        batch_size: int,
        pin_memory: bool = False,
        reads_ahead: bool = False,
    ) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self._stream = stream
        self._collate = collate
        self._pin_memory = pin_memory
        self._reads_ahead = reads_ahead

    def __iter__(self) -> Iterator[Any]:
        self.sampler.ahead.clear()
        batches = self._batches(self.sampler.place)
        if not self._reads_ahead:
            for places, batch in batches:
                self.sampler.ahead.extend(places)
                yield batch
        done = threading.Event()
        ready: queue.Queue[Any] = queue.Queue(_NUM_AHEAD)
        thread = threading.Thread(target=_fill, args=(batches, ready, done), name="stream", daemon=True)
        thread.start()
        try:
            while True:
                found = ready.get()
                if isinstance(found, Exception):
                    raise found
                places, batch = found
                self.sampler.ahead.extend(places)
                yield batch
        finally:
            done.set()
            thread.join()

    def _batches(self, place: MixedPlace) -> Iterator[tuple[list[MixedPlace], Any]]:
        examples = self._stream.examples(place)
        while True:
            taken, places = zip(*islice(examples, self.batch_size), strict=True)
            batch = self._collate(list(taken))
            if self._pin_memory:
                batch = {
                    name: value.pin_memory() if isinstance(value, Tensor) else value
                    for name, value in batch.items()
                }
            yield list(places), batch


def _fill(batches: Iterator[Any], ready: queue.Queue[Any], done: threading.Event) -> None:
    """Put batches into a queue until told that they are done with, or the exception that ended them."""
    found: Any = None
    while not done.is_set() and not isinstance(found, Exception):
        try:
            found = next(batches)
        except Exception as error:  # noqa: BLE001 - raised again where batches are waited for
            found = error
        while not done.is_set():
            try:
                ready.put(found, timeout=_WAIT_S)
                break
            except queue.Full:
                continue
