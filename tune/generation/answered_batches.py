"""Batches whose answers the model writes itself, when they are asked for, to the prompts of the data."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from tune.data import answered_examples, find_prompts, padded_collate_sft
from tune.data.collate import GPU_MULTIPLE
from tune.generation.answers import write_answers
from tune.modules import TransformerDecoder
from tune.tokenizers import Tokenizer
from tune.utils import get_logger
from tune.utils.mesh import Mesh
from tune.utils.sharding import is_sharded

__all__ = ["AnsweredBatches"]


class AnsweredBatches:
    """Goes through a loader; of each batch it keeps the prompts, and the model writes the answers, all together.

    What is drawn for an answer follows from the seed, the step, the prompt, and how often that came before in the step:
    not from how the step is cut into processes and micro-batches, nor from what happened before it.

    Args:
        loader: of this process; all processes' give equally many batches.
        step: tells the steps taken so far, when a batch is asked for.
        model: writes. Processes that hold one together each write all answers.
        tokenizer: its stop ids end an answer, and are part of it.
        mesh: the processes of the run.
        seed: of the run.
        autocast: gives the context in which the model runs.
        settings: `max_new_tokens` and `temperature`, as in `write_answers`; and `share`, of the steps in which it
            writes: in the others batches are as they are. What is no step (-1) is written in any case.
    """

    def __init__(
        self,
        loader: Any,
        step: Callable[[], int],
        model: TransformerDecoder,
        tokenizer: Tokenizer,
        mesh: Mesh,
        seed: int,
        autocast: Callable[[], AbstractContextManager[object]],
        settings: Mapping[str, Any],
    ) -> None:
        self.loader = loader
        self._step = step
        self._model = model
        self._tokenizer = tokenizer
        self._mesh = mesh
        self._seed = seed
        self._autocast = autocast
        self._settings = dict(settings)
        self._share: float = self._settings.pop("share", 1.0)
        self._has_warned = False
        self._counted_step: int | None = None
        self._counts: Counter[tuple[int, ...]] = Counter()

    @property
    def sampler(self) -> Any:
        """The loader's, which knows the place in the data."""
        return self.loader.sampler

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self.loader:
            yield self._answered(batch) if self._writes() else batch

    def _writes(self) -> bool:
        """Tell whether the model writes in this step, which is drawn by the seed, alike for all batches of it."""
        if self._share == 1.0 or (step := self._step()) < 0:
            return True
        digest = hashlib.blake2b(f"{self._seed}/{step}/share".encode(), digest_size=8).digest()
        drawn = int.from_bytes(digest, "little")
        return bool(drawn < self._share * 2**64)  # arXiv:2306.13649, algorithm 1

    def _answered(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if "weights" in batch and not self._has_warned:
            self._has_warned = True
            get_logger().warning(
                "on_policy: weights of tokens are of the data's answers, which are not learnt."
            )
        per_rank = self._mesh.gather_to_all(find_prompts(batch))
        # As one process would take them: every process has every so-many-th row.
        longest = max(map(len, per_rank))
        places = [
            (rank, row) for row in range(longest) for rank, own in enumerate(per_rank) if row < len(own)
        ]
        seeds = {place: self._seed_of(per_rank[place[0]][place[1]]) for place in places}
        if not any(is_sharded(weight) for weight in self._model.parameters()):
            places = [place for place in places if place[0] == self._mesh.rank]
        prompts = [per_rank[rank][row] for rank, row in places]
        answers = self._write(prompts, [seeds[place] for place in places]) if prompts else []
        examples = answered_examples(
            (prompt, answer)
            for place, prompt, answer in zip(places, prompts, answers, strict=True)
            if place[0] == self._mesh.rank
        )
        pad_id = self._tokenizer.pad_id
        # A process without a prompt takes part with a row that has nothing to learn.
        examples = examples or [{"tokens": [pad_id], "labels": [-100]}]
        multiple = GPU_MULTIPLE if self._mesh.device.type == "cuda" else 1
        return padded_collate_sft(examples, pad_id, pad_to_multiple_of=multiple)

    def _write(self, prompts: list[list[int]], seeds: list[int]) -> list[list[int]]:
        with self._autocast():
            return write_answers(
                self._model, prompts, seeds, stop_ids=self._tokenizer.stop_ids, **self._settings
            )

    def _seed_of(self, prompt: list[int]) -> int:
        step = self._step()
        if step != self._counted_step:
            self._counted_step = step
            self._counts.clear()
        key = tuple(prompt)
        self._counts[key] += 1
        digest = hashlib.blake2b(f"{self._seed}/{step}/{self._counts[key]}/".encode(), digest_size=8)
        digest.update(array("q", prompt).tobytes())
        return int.from_bytes(digest.digest(), "little") >> 1  # what a generator takes has 63 bits
