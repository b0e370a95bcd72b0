"""The tokens of continuations that are generated together, each read by itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Literal, NoReturn, Self

__all__ = ["Batch", "StopReason", "TokenStream"]

StopReason = Literal["stop_id", "stop_string", "max_new_tokens", "max_seq_len"]


class Batch:
    """The tokens of rows that are generated together: what one row is ahead of another waits for its reader."""

    def __init__(self, steps: Generator[list[int], None, None], num_rows: int) -> None:
        self._steps = steps
        self._waiting: dict[int, deque[int]] = {row: deque() for row in range(num_rows)}

    def read(self, row: int) -> int:
        """Return the next token of a row, having let the model take a step where none waits."""
        if not self._waiting[row]:
            tokens = next(self._steps)
            for other, waiting in self._waiting.items():
                waiting.append(tokens[other])
        return self._waiting[row].popleft()

    def close(self, row: int) -> None:
        """Keep nothing more for a row; the last one gives the model back."""
        self._waiting.pop(row, None)
        if not self._waiting:
            self._steps.close()


class TokenStream(Iterator[int]):
    """The tokens of one continuation, and, once it has ended, why it did.

    Attributes:
        stop_reason: None until the end; then ``stop_id``, ``max_new_tokens`` or ``max_seq_len``.
        stop_token: The one that ended it, where one did; it is not handed out.
        num_tokens: Tokens handed out so far.
    """

    def __init__(
        self, batch: Batch, row: int, limit: int, stop_ids: Sequence[int], reason_at_limit: StopReason
    ) -> None:
        self.stop_reason: StopReason | None = None
        self.stop_token: int | None = None
        self.num_tokens = 0
        self._batch = batch
        self._row = row
        self._limit = limit
        self._closed = False
        self._stop_ids = frozenset(stop_ids)
        self._reason_at_limit: StopReason = reason_at_limit

    def __next__(self) -> int:
        if self._closed:
            raise StopIteration
        if self.num_tokens == self._limit:
            self._end(self._reason_at_limit)
        token = self._batch.read(self._row)
        if token in self._stop_ids:
            self.stop_token = token
            self._end("stop_id")
        self.num_tokens += 1
        return token

    def _end(self, reason: StopReason) -> NoReturn:
        self.stop_reason = reason
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Give the model back now, unless others of the batch go on; the stream ends here. Harmless at its end."""
        self._closed = True
        self._batch.close(self._row)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
