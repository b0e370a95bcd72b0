"""Continue token sequences with a decoder: prefill the KV cache, then one token per forward pass.

Legend: b sequences in the batch, s positions, d embedding dimension, v vocabulary.

Prompts of different lengths are padded on the right. No mask is needed for that: a row's pads stand behind its last
real token, so causal attention never shows them to one, and each pad's slot in the cache is overwritten by the token
generated at its position before any query can reach it. Row i of a batch therefore computes what it would alone.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tune.errors import GenerationError
from tune.generation.sampling import Sampling, check_chosen, choose, make_generator
from tune.generation.token_stream import Batch, StopReason, TokenStream
from tune.modules import TransformerDecoder
from tune.utils.sharding import is_sharded, take_from_first_

__all__ = ["StopReason", "TokenStream", "generate", "generate_batch", "stream", "stream_batch"]


def generate(
    model: TransformerDecoder,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop_ids: Sequence[int] = (),
    use_cache: bool = True,
) -> list[int]:
    """Return the tokens that continue ``prompt_ids``: without the prompt and without the stop token.

    The model is left as it was: modes of all modules, no KV cache, gradients and global random state untouched. Of a
    sharded model all processes get what the first of them chooses; each must call this, with the same prompt.

    Args:
        model: The decoder; it is put into eval mode meanwhile.
        prompt_ids: The prompt with its beginning-of-sequence token, if the model expects one. At least one id.
        max_new_tokens: Upper bound. Generation also ends where prompt and continuation fill
            ``model.config.max_text_len``.
        temperature: 0 is greedy; see `Sampling` for this and the next two.
        top_k: Keep the likeliest ``top_k`` tokens.
        top_p: Keep the nucleus of mass ``top_p``.
        seed: Makes sampling repeatable on the same kind of device; None differs each time. Unused when greedy.
        stop_ids: Tokens that end the text, usually ``tokenizer.stop_ids``.
        use_cache: False recomputes the whole sequence for every token; slow, and the reference for tests.

    Raises:
        GenerationError: The prompt is empty, too long or holds ids outside the vocabulary, a setting is out of range,
            a generation is already running on this model, or the logits are not finite.
    """
    with stream(
        model,
        prompt_ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_ids=stop_ids,
        use_cache=use_cache,
    ) as tokens:
        return list(tokens)


def stream(
    model: TransformerDecoder,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop_ids: Sequence[int] = (),
    use_cache: bool = True,
) -> TokenStream:
    """Return an iterator over the tokens that `generate` would return, each as soon as it is chosen.

    Arguments are checked at the call, the model is taken at the first ``next()`` and given back when the iterator
    ends, is closed, or is dropped; between two tokens the caller's own grad mode is in force.
    """
    (tokens,) = stream_batch(
        model,
        [prompt_ids],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_ids=stop_ids,
        use_cache=use_cache,
    )
    return tokens


def stream_batch(
    model: TransformerDecoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop_ids: Sequence[int] = (),
    use_cache: bool = True,
) -> list[TokenStream]:
    """Return one stream of tokens per prompt; those of a batch are generated together, as far as any of them is read.

    Row i draws from its own generator, seeded with ``seed + i``: it gives what `stream` gives with that seed (up to
    rounding: a matrix product of another shape may round differently). Read the streams of one batch, or close them,
    before those of the next: the model generates one batch at a time. Else arguments and errors are those of `stream`.

    Args:
        prompts: They may differ in length, and each ends by itself.
        batch_size: How many are generated together, in their order; None: all.
    """
    sampling = Sampling(temperature, top_k, top_p)
    limits = _check_prompts(model, prompts, max_new_tokens)
    generators = [
        make_generator(None if seed is None else seed + row, _device(model)) for row in range(len(prompts))
    ]
    streams: list[TokenStream] = []
    size = batch_size or max(len(prompts), 1)
    for first in range(0, len(prompts), size):
        part = slice(first, first + size)
        batch = Batch(
            _steps(model, prompts[part], limits[part], sampling, generators[part], use_cache),
            len(prompts[part]),
        )
        streams += [
            TokenStream(
                batch, row, limit, stop_ids, "max_new_tokens" if limit == max_new_tokens else "max_seq_len"
            )
            for row, limit in enumerate(limits[part])
        ]
    return streams


def generate_batch(
    model: TransformerDecoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop_ids: Sequence[int] = (),
    use_cache: bool = True,
) -> list[list[int]]:
    """Return the continuation of each prompt, all generated together; see `stream_batch` for arguments and errors."""
    streams = stream_batch(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_ids=stop_ids,
        use_cache=use_cache,
    )
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
    use_cache: bool,
) -> Generator[list[int], None, None]:
    """Yield the next token of every row, until the longest limit; rows past their own limit yield filler."""
    if not prompts:
        return
    device = _device(model)
    longest = max(map(len, prompts))
    cache_len = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
    same_length = min(map(len, prompts)) == longest
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # [b]
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)  # [b, s], padded with id 0
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    tokens = tokens.to(device)
    # Those who hold one model together compute the same numbers, or nearly; a token that differs would part them for
    # good, each waiting for a gather that the other never comes to.
    sharded = next((weight for weight in model.parameters() if is_sharded(weight)), None)
    positions = None  # counted by the model: from 0, then onwards
    # A state does not go back over pads, as slots are overwritten: it is told of them.
    num_tokens = lengths if use_cache and not same_length else None  # [b], of each row in the next call
    last = lengths - 1  # [b], where each row's newest token stands within `tokens`

    with _borrowed(model, len(prompts), cache_len if use_cache else None):
        for step in range(max(limits)):
            # Not inference_mode: a tensor that the model makes lazily here must still serve training afterwards.
            # And not around the yield: the caller's code between two tokens keeps its own grad mode.
            with torch.no_grad(), _without_plans(device):
                hidden = model.hidden(tokens, input_pos=positions, num_tokens=num_tokens)  # [b, s, d]
                newest = hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1]))  # [b, 1, d]
                logits = model.unembed(newest)[:, 0]  # [b, v]
                chosen = choose(logits, sampling, generators)  # [b]
                if sharded is not None:
                    take_from_first_(chosen, sharded)
            ids = chosen.tolist()  # the one wait for the device in a step
            check_chosen(ids)
            yield ids
            if use_cache:
                tokens, last = chosen[:, None], torch.zeros_like(lengths)
                if not same_length:
                    # Rows past their own limit have nothing more to say, and no slots either.
                    positions = (lengths[:, None] + step).clamp(max=cache_len - 1)  # [b, 1]
                    num_tokens = (lengths + step < cache_len).long()  # [b]
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
def _borrowed(model: TransformerDecoder, batch_size: int, cache_len: int | None) -> Iterator[None]:
    """Put the model into eval mode, with KV caches of ``cache_len`` unless None; undo exactly that at the end."""
    if model.caches_are_enabled():
        raise GenerationError(
            "the model holds KV caches already: another generation is running on it. Finish or close() that stream, or "
            "call model.delete_caches()."
        )
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        if cache_len is not None:
            device = _device(model)
            # Under autocast keys and values arrive in the autocast dtype, not in that of the weights.
            dtype = (
                torch.get_autocast_dtype(device.type)
                if torch.is_autocast_enabled(device.type)
                else next(model.parameters()).dtype
            )
            model.setup_caches(batch_size, cache_len, dtype, device)
        yield
    finally:
        model.delete_caches()
        # Module by module: a trainer may keep parts of the model in eval mode on purpose.
        for module, training in modes:
            module.training = training


def _device(model: TransformerDecoder) -> torch.device:
    return next(model.parameters()).device
