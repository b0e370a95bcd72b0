"""From logits to the next token: greedy, temperature, top-k and nucleus sampling.

Legend: b sequences in the batch, v entries in the vocabulary.

Order of the filters: temperature, then top-k, then top-p on what top-k left (renormalised), then the draw. It is
the order of transformers' logits processors, so the same settings mean the same distribution in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypedDict

import torch
from torch import Tensor

from tune.errors import GenerationError
from tune.utils.settings import Setting

__all__ = ["Sampling", "make_generator", "sample_token", "token_probabilities"]

_MAX_SEED = 2**63 - 1  # what torch.Generator.manual_seed takes without wrapping around


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; checked when built.

    Args:
        temperature: 0 takes the likeliest token, 1 samples from the model's own distribution.
        top_k: Keep only the ``top_k`` likeliest tokens; None keeps all. More than the vocabulary keeps all.
        top_p: Keep the smallest set of likeliest tokens whose probabilities add up to ``top_p`` or more (nucleus
            sampling, arXiv:1904.09751, 3.1); None and 1.0 keep all.
        repetition_penalty: Logits of tokens that stand in the text already are divided by it where they are positive,
            and multiplied where not (arXiv:1909.05858, 4.1); 1 changes nothing.

    Raises:
        GenerationError: A value is outside its range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0.0):
            raise GenerationError(
                f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number."
            )
        if self.top_k is not None and self.top_k < 1:
            raise GenerationError(
                f"top_k is {self.top_k}; it must be at least 1, or null to keep every token."
            )
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise GenerationError(
                f"top_p is {self.top_p}; it must be above 0 and at most 1 (1 keeps every token)."
            )
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0.0):
            raise GenerationError(
                f"repetition_penalty is {self.repetition_penalty}; it must be above 0 (1 changes nothing)."
            )


def penalise_seen(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Return logits [b, v] with those of tokens that are `seen` [b, v] made less likely; see `Sampling`."""
    scores = logits.float()
    return torch.where(seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)


class DecodingSettings(TypedDict, total=False):
    """How a prompt is continued, as all functions that do so take it; see `Sampling` for the first four."""

    temperature: Annotated[float, Setting(0.0, "0 is greedy, 1 samples from the model's own distribution.")]
    top_k: Annotated[int | None, Setting(None, "Keep the likeliest ``top_k`` tokens.")]
    top_p: Annotated[float | None, Setting(None, "Keep the nucleus of mass ``top_p``.")]
    repetition_penalty: Annotated[
        float, Setting(1.0, "Makes tokens that stand in the text already less likely, above 1.")
    ]
    seed: Annotated[
        int | Sequence[int] | None,
        Setting(
            None,
            "Makes sampling repeatable on the same kind of device, one for all prompts or one for each; None differs "
            "each time. Unused when greedy.",
        ),
    ]
    stop_ids: Annotated[
        Sequence[int],
        Setting((), "Tokens that end the text; where a tokenizer is given, beside its own."),
    ]
    use_cache: Annotated[
        bool,
        Setting(
            True,
            "False recomputes the whole sequence for every token; slow, and the reference for tests.",
        ),
    ]
    compile: Annotated[
        bool,
        Setting(
            False,
            "Compile the blocks for the step of one token: pays for long texts, or many of a batch size.",
        ),
    ]


def make_generator(seed: int | None, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a random generator of its own on ``device``; the global generators are never touched.

    Args:
        seed: The seed; None draws one from the operating system.
        device: Where the logits live: a generator only serves tensors of its own device.
    """
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
        return generator
    if not 0 <= seed <= _MAX_SEED:
        raise GenerationError(f"seed is {seed}; it must lie between 0 and {_MAX_SEED}.")
    return generator.manual_seed(seed)


def token_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the distribution [b, v] (fp32) that ``sampling`` draws from; greedy is a one-hot row.

    Among equal logits the lower token id counts as the likelier one, so exactly ``top_k`` tokens survive top-k, and
    ``top_k=1`` is greedy decoding even where the maximum is not unique.

    Args:
        logits: Scores of the next token [b, v], in any floating dtype.
        sampling: The filters and their settings.
    """
    probabilities, ids = _candidates(logits, sampling)
    if ids is None:
        return probabilities
    return torch.zeros(logits.shape, device=logits.device).scatter(-1, ids, probabilities)


def _candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Return the tokens that may be drawn: probabilities [b, c] (fp32) and ids [b, c], None for all in order."""
    scores = logits.float()
    vocab_size = scores.shape[-1]
    ids: Tensor | None = None
    if sampling.temperature < torch.finfo(scores.dtype).tiny:  # 0, or what fp32 rounds to it
        ids = scores.argmax(dim=-1, keepdim=True)  # [b, 1], the first of several equal maxima
        return torch.ones_like(ids, dtype=torch.float32), ids
    # The maximum goes first: dividing raw logits by a tiny temperature overflows to inf, and inf - inf is NaN.
    scores = (scores - scores.amax(dim=-1, keepdim=True)) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < vocab_size:
        ids = _top_k_ids(scores, sampling.top_k)  # [b, k]
        scores = scores.gather(-1, ids)
    # At 1.0 nothing may go: the rounded cumulative sum reaches 1 before the last tokens of a large vocabulary.
    if sampling.top_p is None or sampling.top_p == 1.0:
        return scores.softmax(dim=-1), ids
    scores, order = scores.sort(dim=-1, descending=True, stable=True)  # [b, c], [b, c]
    probabilities = scores.softmax(dim=-1)
    mass_before = probabilities.cumsum(dim=-1) - probabilities  # of all likelier tokens; 0 for the likeliest
    # The token that crosses top_p stays, so at least one always does (whatever the rounding: rank 0 is kept).
    dropped = mass_before >= sampling.top_p
    dropped[..., 0] = False
    ids = order if ids is None else ids.gather(-1, order)
    return scores.masked_fill(dropped, -math.inf).softmax(dim=-1), ids


def _top_k_ids(scores: Tensor, k: int) -> Tensor:
    """Return the ids [b, k] of the highest scores [b, v], ascending; among equals the lower ids come in.

    A stable sort would say the same, at many times the cost in a large vocabulary; topk alone takes equals as it likes.
    """
    vocab_size = scores.shape[-1]
    smallest = scores.topk(k, dim=-1).values[..., -1:]  # [b, 1]
    above, equal = scores > smallest, scores == smallest
    num_missing = k - above.sum(dim=-1, keepdim=True)
    kept = above | (
        equal & (equal.cumsum(dim=-1, dtype=torch.int32) <= num_missing)
    )  # [b, v], k true in each row
    falling = torch.arange(vocab_size, 0, -1, device=scores.device, dtype=torch.int32)
    return torch.where(kept, falling, 0).topk(k, dim=-1).indices


def sample_token(
    logits: Tensor,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Choose one token per row of ``logits`` and return their ids [b].

    Args:
        logits: Scores of the next token [b, v] (or [v], for one token and a result without dimensions).
        temperature: See `Sampling`, as for the next two.
        top_k: Keep the likeliest ``top_k`` tokens.
        top_p: Keep the nucleus of mass ``top_p``.
        generator: Randomness on the device of ``logits``; one per row makes a row's draw independent of its
            neighbours. None uses torch's global generator of that device. Unused at temperature 0.

    Raises:
        GenerationError: A setting is out of range, or a row of logits holds NaN or no finite value.
    """
    if logits.dim() == 1:
        return sample_token(
            logits[None], temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
        )[0]
    chosen = choose(logits, Sampling(temperature, top_k, top_p), generator)
    check_chosen(chosen.tolist())
    return chosen


def choose(
    logits: Tensor, sampling: Sampling, generator: torch.Generator | Sequence[torch.Generator] | None
) -> Tensor:
    """Do the work of `sample_token` on [b, v] without waiting for the device: broken logits give the id -1."""
    if sampling.temperature == 0.0:
        highest, winner = logits.max(dim=-1, keepdim=True)  # the first of several equal maxima
        return _mark_broken(winner, highest)
    probabilities, ids = _candidates(logits, sampling)  # [b, c]
    # argmax(p / e) with e ~ Exp(1) draws from p: the exponential race, which is also how torch.multinomial draws.
    # Unlike multinomial it never trips a device-side assert, and one generator per row is possible.
    noise = torch.empty_like(probabilities)
    if isinstance(generator, Sequence):
        if len(generator) != len(noise):
            raise GenerationError(f"{len(generator)} generators were given for {len(noise)} rows of logits.")
        for row, row_generator in zip(noise, generator, strict=True):
            row.exponential_(generator=row_generator)
    else:
        noise.exponential_(generator=generator)
    # 0 / 0 would be NaN, and NaN wins every argmax.
    winner = (probabilities / noise.clamp_min(torch.finfo(noise.dtype).tiny)).argmax(dim=-1, keepdim=True)
    return _mark_broken(winner if ids is None else ids.gather(-1, winner), probabilities[:, :1])


def _mark_broken(winner: Tensor, witness: Tensor) -> Tensor:
    """Return ids [b]; -1 where the witness is not finite: NaN spreads through max and softmax, so one entry tells."""
    return torch.where(witness.isfinite(), winner, -1)[:, 0]


def check_chosen(ids: Sequence[int]) -> None:
    """Raise GenerationError where `choose` met broken logits."""
    if min(ids, default=0) < 0:
        raise GenerationError(
            "the model's logits are not finite (NaN, or nothing but -inf): its weights are probably broken, or they "
            "overflow in this dtype. Try dtype=fp32, or look at the checkpoint the weights came from."
        )
