"""Continue token sequences with a decoder: prefill the KV cache, then one token per forward pass.

Legend: b sequences in the batch, s positions, d embedding dimension, v vocabulary.

Prompts of different lengths are padded on the right. No mask is needed for that: a row's pads stand behind its last
real token, so causal attention never shows them to one, and each pad's slot in the cache is overwritten by the token
generated at its position before any query can reach it. Row i of a batch therefore computes what it would alone.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Unpack

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tune.errors import GenerationError
from tune.generation.fixed_step import BatchCaches
from tune.generation.sampling import (
    DecodingSettings,
    Sampling,
    check_chosen,
    choose,
    make_generator,
    penalise_seen,
)
from tune.generation.token_stream import Batch, StopReason, TokenStream
from tune.modules import TransformerDecoder
from tune.utils.settings import takes_settings
from tune.utils.sharding import is_sharded, take_from_first_

__all__ = ["StopReason", "TokenStream", "generate", "generate_batch", "stream", "stream_batch"]


@takes_settings(DecodingSettings)
def generate(
    model: TransformerDecoder,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    **settings: Unpack[DecodingSettings],
) -> list[int]:
    """Return the tokens that continue ``prompt_ids``: without the prompt and without the stop token.

    The model is left as it was: modes of all modules, no KV cache, gradients and global random state untouched. Of a
    sharded model all processes get what the first of them chooses; each must call this, with the same prompt.

    Args:
        model: The decoder; it is put into eval mode meanwhile.
        prompt_ids: The prompt with its beginning-of-sequence token, if the model expects one. At least one id.
        max_new_tokens: Upper bound. Generation also ends where prompt and continuation fill
            ``model.config.max_text_len``.

    Raises:
        GenerationError: The prompt is empty, too long or holds ids outside the vocabulary, a setting is out of range,
            a generation is already running on this model, or the logits are not finite.
    """
    with stream(model, prompt_ids, max_new_tokens=max_new_tokens, **settings) as tokens:
        return list(tokens)


@takes_settings(DecodingSettings)
def stream(
    model: TransformerDecoder,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    **settings: Unpack[DecodingSettings],
) -> TokenStream:
    """Return an iterator over the tokens that `generate` would return, each as soon as it is chosen.

    Arguments are checked at the call, the model is taken at the first ``next()`` and given back when the iterator
    ends, is closed, or is dropped; between two tokens the caller's own grad mode is in force.
    """
    (tokens,) = stream_batch(model, [prompt_ids], max_new_tokens=max_new_tokens, **settings)
    return tokens


@takes_settings(DecodingSettings)
def stream_batch(
    model: TransformerDecoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int | None = None,
    **settings: Unpack[DecodingSettings],
) -> list[TokenStream]:
    """Return one stream of tokens per prompt; those of a batch are generated together, as far as any of them is read.

    Row i draws from its own generator, seeded with ``seed + i``: it gives what `stream` gives with that seed (up to
    rounding: a matrix product of another shape may round differently). Read the streams of one batch, or close them,
    before those of the next: the model generates one batch at a time. Else arguments and errors are those of `stream`.

    Args:
        prompts: They may differ in length, and each ends by itself.
        batch_size: How many are generated together, in their order; None: all.
    """
    sampling = Sampling(
        settings["temperature"], settings["top_k"], settings["top_p"], settings["repetition_penalty"]
    )
    seed, stop_ids, use_cache = settings["seed"], settings["stop_ids"], settings["use_cache"]
    limits = _check_prompts(model, prompts, max_new_tokens)
    caches = BatchCaches(model, compiles=settings["compile"]) if use_cache else None
    if seed is None or isinstance(seed, int):
        seeds = [None if seed is None else seed + row for row in range(len(prompts))]
    else:
        seeds = list(seed)
    generators = [make_generator(row_seed, _device(model)) for row_seed in seeds]
    streams: list[TokenStream] = []
    size = batch_size or max(len(prompts), 1)
    for first in range(0, len(prompts), size):
        part = slice(first, first + size)
        batch = Batch(
            _steps(model, prompts[part], limits[part], sampling, generators[part], caches),
            len(prompts[part]),
        )
        streams += [
            TokenStream(
                batch, row, limit, stop_ids, "max_new_tokens" if limit == max_new_tokens else "max_seq_len"
            )
            for row, limit in enumerate(limits[part])
        ]
    return streams


@takes_settings(DecodingSettings)
def generate_batch(
    model: TransformerDecoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    **settings: Unpack[DecodingSettings],
) -> list[list[int]]:
    """Return the continuation of each prompt, all generated together; see `stream_batch` for arguments and errors."""
    streams = stream_batch(model, prompts, max_new_tokens=max_new_tokens, **settings)
    with ExitStack() as stack:
        for tokens in streams:
            stack.push(tokens)
        return [list(tokens) for tokens in streams]


def _check_prompts(
    model: TransformerDecoder, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[int]:
    """Return how many tokens each prompt may grow by, or raise: an id out of range would abort a GPU process."""
    if max_new_tokens < 1:
        raise GenerationError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
    max_seq_len, vocab_size = model.config.max_text_len, model.config.vocab_size
    for row, prompt in enumerate(prompts):
        which = f"prompt {row + 1} of {len(prompts)}" if len(prompts) > 1 else "the prompt"
        if not prompt:
            raise GenerationError(
                f"{which} has no tokens: there is nothing to continue. Begin it with the BOS token."
            )
        if len(prompt) >= max_seq_len:
            raise GenerationError(
                f"{which} has {len(prompt)} tokens, but the model's max_seq_len is {max_seq_len}, of which at least "
                "one must be left for the answer. Shorten the prompt."
            )
        if min(prompt) < 0 or max(prompt) >= vocab_size:
            wrong = next(token for token in prompt if not 0 <= token < vocab_size)
            raise GenerationError(
                f"{which} holds token id {wrong}, but the model's vocabulary has {vocab_size} entries (0 to "
                f"{vocab_size - 1}). Is this the tokenizer the model was trained with?"
            )
    return [min(max_new_tokens, max_seq_len - len(prompt)) for prompt in prompts]


def _steps(
    model: TransformerDecoder,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    caches: BatchCaches | None,
) -> Generator[list[int], None, None]:
    """Yield the next token of every row, until the longest limit; rows past their own limit yield filler."""
    if not prompts:
        return
    device = _device(model)
    longest = max(map(len, prompts))
    num_slots = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
    same_length = min(map(len, prompts)) == longest
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # [b]
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)  # [b, s], padded with id 0
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    tokens = tokens.to(device)
    # Those who hold one model together compute the same numbers, or nearly; a token that differs would part them for
    # good, each waiting for a gather that the other never comes to.
    sharded = next((weight for weight in model.parameters() if is_sharded(weight)), None)
    seen = None  # [b, v]
    if sampling.repetition_penalty != 1.0:
        seen = torch.zeros(len(prompts), model.config.vocab_size, dtype=torch.bool, device=device)
        for row, prompt in zip(seen, prompts, strict=True):
            row[torch.tensor(prompt, device=device)] = True
    positions = None  # counted by the model: from 0, then onwards
    # A state does not go back over pads, as slots are overwritten: it is told of them.
    num_tokens = None if caches is None or same_length else lengths  # [b], of each row in the next call
    last = lengths - 1  # [b], where each row's newest token stands within `tokens`

    lent = nullcontext() if caches is None else caches.lent(len(prompts), longest, num_slots)
    with _borrowed(model), lent as one_token:
        for step in range(max(limits)):
            # Not inference_mode: a tensor that the model makes lazily here must still serve training afterwards.
            # And not around the yield: the caller's code between two tokens keeps its own grad mode.
            with torch.no_grad(), _without_plans(device):
                if one_token is not None and positions is not None:
                    logits = one_token(tokens, positions)  # [b, v]
                else:
                    hidden = model.hidden(tokens, input_pos=positions, num_tokens=num_tokens)  # [b, s, d]
                    newest = hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1]))
                    logits = model.unembed(newest)[:, 0]  # [b, v]
                if seen is not None:
                    logits = penalise_seen(logits, seen, sampling.repetition_penalty)
                chosen = choose(logits, sampling, generators)  # [b]
                if sharded is not None:
                    take_from_first_(chosen, sharded)
            ids = chosen.tolist()  # the one wait for the device in a step
            if seen is not None:
                seen.scatter_(1, chosen.clamp(min=0)[:, None], True)
            check_chosen(ids)
            yield ids
            if caches is not None:
                tokens, last = chosen[:, None], torch.zeros_like(lengths)
                if one_token is not None or not same_length:
                    # Rows past their own limit have nothing more to say, and no slots either.
                    positions = (lengths[:, None] + step).clamp(max=num_slots - 1)  # [b, 1]
                    num_tokens = (lengths + step < num_slots).long()  # [b]
            else:
                last = lengths + step
                tokens = torch.nn.functional.pad(tokens, (0, longest + step + 1 - tokens.shape[1]))
                tokens.scatter_(1, last[:, None], chosen[:, None])


def _without_plans(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which attention is not cuDNN's, which plans for each new length: 0.4 s on an H200."""
    if device.type != "cuda":
        return nullcontext()
    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)


@contextmanager
def _borrowed(model: TransformerDecoder) -> Iterator[None]:
    """Put the model into eval mode; undo exactly that at the end."""
    if model.caches_are_enabled():
        raise GenerationError(
            "the model holds KV caches already: another generation is running on it. Finish or close() that stream, or "
            "call model.delete_caches()."
        )
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # Module by module: a trainer may keep parts of the model in eval mode on purpose.
        for module, training in modes:
            module.training = training


def _device(model: TransformerDecoder) -> torch.device:
    return next(model.parameters()).device
