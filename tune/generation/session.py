"""Texts that grow turn by turn: what the last one began with alike is not read again."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch

from tune.errors import GenerationError
from tune.generation.decode import _without_plans
from tune.generation.fixed_step import FixedStep, can_fix_shapes, can_record
from tune.generation.sampling import Sampling, check_chosen, choose, make_generator, penalise_seen
from tune.modules import TransformerDecoder

__all__ = ["Session"]

# Slots of the cache are made in pieces of so many: a conversation that grows is seldom read anew for it.
_SLOTS = 1024


class Session:
    """Continues one text after another with one model, whose keys and values are kept in between.

    The model is the session's until `close`.

    Args:
        model: in eval mode.

    Attributes:
        num_read: tokens that the last continuation had to read, before it chose its first one.
    """

    def __init__(self, model: TransformerDecoder) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._held: list[int] = []  # tokens whose keys and values are in the cache, from its first slot on
        self._num_slots = 0
        self._one_token: FixedStep | None = None
        self.num_read = 0

    def stream(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling,
        seed: int | None = None,
        stop_ids: Sequence[int] = (),
    ) -> Generator[int, None, None]:
        """Yield the tokens that continue a text, until one of `stop_ids`, which is left out, or the limit.

        It may be left at any token, also by an exception: the next one finds everything as it should be.

        Raises:
            GenerationError: the prompt is empty or leaves no room in the model's `max_seq_len`.
        """
        ids = list(prompt_ids)
        longest = self._model.config.max_seq_len
        if not 0 < len(ids) < longest:
            raise GenerationError(
                f"the prompt has {len(ids)} tokens; it must have at least 1 and fewer than the model's max_seq_len, "
                f"{longest}."
            )
        limit = min(max_new_tokens, longest - len(ids))
        self._make_room(len(ids) + limit)
        generator = [make_generator(seed, self._device)]
        seen = torch.zeros(1, self._model.config.vocab_size, dtype=torch.bool, device=self._device)
        seen[0, torch.tensor(ids, device=self._device)] = True
        # The last token is always read: what it says is what comes next.
        start = _count_alike(self._held, ids[:-1])
        self.num_read = len(ids) - start
        for _ in range(limit):
            with torch.no_grad(), _without_plans(self._device):
                logits = self._read(ids, start)
                if sampling.repetition_penalty != 1.0:
                    logits = penalise_seen(logits, seen, sampling.repetition_penalty)
                chosen = choose(logits, sampling, generator)  # [1]
            start = len(ids)
            check_chosen(chosen.tolist())
            token = int(chosen)
            if token in stop_ids:
                return
            ids.append(token)
            seen[0, token] = True
            yield token

    def close(self) -> None:
        """Give the model back without a cache."""
        self._model.delete_caches()
        self._held, self._num_slots, self._one_token = [], 0, None

    def _read(self, ids: list[int], start: int) -> torch.Tensor:
        """Let the model read the tokens from `start` on; return the logits [1, v] of what follows the last one."""
        # Slots from here on are about to be written over; an exception in between leaves them unknown.
        self._held = ids[:start]
        tokens = torch.tensor([ids[start:]], device=self._device)  # [1, s]
        positions = torch.arange(start, len(ids), device=self._device)[None]  # [1, s]
        if self._one_token is not None and len(ids) - start == 1:
            logits = self._one_token(tokens, positions)
            self._held = list(ids)
            return logits
        hidden = self._model.hidden(tokens, input_pos=positions)  # [1, s, d]
        self._held = list(ids)
        return self._model.unembed(hidden[:, -1:])[:, 0]  # [1, v]

    def _make_room(self, num_tokens: int) -> None:
        if num_tokens <= self._num_slots and self._model.caches_are_enabled():
            return
        self.close()
        self._num_slots = min(-(-num_tokens // _SLOTS) * _SLOTS, self._model.config.max_seq_len)
        self._model.setup_caches(1, self._num_slots)
        if can_fix_shapes(self._model, 1, self._num_slots) and can_record(self._model):
            with torch.no_grad():
                self._one_token = FixedStep(self._model, 1, records=True)


def _count_alike(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two texts begin with alike."""
    for place, (one, other) in enumerate(zip(first, second)):
        if one != other:
            return place
    return min(len(first), len(second))
