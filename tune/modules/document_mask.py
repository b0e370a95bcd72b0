"""What each token may attend to, made once per batch and read by every layer.

Shapes: b batch, s sequence, s_kv keys attended to, n blocks of queries or of keys in a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from tune.errors import TrainingError
from tune.modules.config import DecoderConfig

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# Of FlexAttention's blocks of queries and keys: those within the mask are skipped or left unchecked as a whole.
_BLOCK = 128


class DocumentMask(NamedTuple):
    """Each token sees itself and the earlier ones of its document, no further back than a window.

    Attributes:
        document_starts: where in its row each token's document begins, [b, s] int32.
        window: keys a query sees, itself among them; None: all up to itself.
        block_mask: the same for FlexAttention, on a GPU.
    """

    document_starts: Tensor
    window: int | None = None
    block_mask: BlockMask | None = None

    @classmethod
    def build(cls, document_starts: Tensor, window: int | None = None) -> DocumentMask:
        """Return the mask, with what the device's kernels need beside it."""
        # A tensor without memory is measured by the operator whose shapes are known; it keeps what FlexAttention does.
        needs_blocks = document_starts.is_cuda and not isinstance(document_starts, FakeTensor)
        block_mask = _block_mask(_first_keys(document_starts, window)) if needs_blocks else None
        return cls(document_starts, window, block_mask)


class DocumentRuns(NamedTuple):
    """Where documents begin that share rows, for layers that keep a state.

    Attributes:
        starts: where in these rows each token's document begins, [b, s] int32; negative: before them.
        ends: where each one ends, and before them a 0, with all rows laid end to end, [documents + 1] int64; for a
            kernel that asks for them.
    """

    starts: Tensor
    ends: Tensor | None = None


# What a layer is given: bool [b, 1, s, s_kv] or a bias of that shape, documents, or None for plain causality.
AttentionMask = Tensor | DocumentMask | None


def find_document_starts(input_pos: Tensor) -> Tensor:
    """Return where in its row each token's document begins [b, s] int32; a document begins at each position 0.

    Args:
        input_pos: position of each token in its document, [b, s].
    """
    places = torch.arange(input_pos.shape[1], dtype=torch.int32, device=input_pos.device)  # [s]
    return torch.where(input_pos == 0, places, 0).cummax(dim=-1).values.to(torch.int32)


def dense_mask(document_starts: Tensor, window: int | None = None) -> Tensor:
    """Return where a query may see a key of its document, bool [b, s, s].

    Args:
        document_starts: where in its row each token's document begins, [b, s].
        window: keys a query sees, itself among them; None: all up to itself.
    """
    places = torch.arange(document_starts.shape[1], dtype=torch.int32, device=document_starts.device)  # [s]
    return (places <= places[:, None]) & (places >= _first_keys(document_starts, window)[..., None])


def layer_masks(
    config: DecoderConfig,
    mask: Tensor | None,
    input_pos: Tensor | None,
    slots: Tensor,
    num_keys: int,
    *,
    has_cache: bool,
    has_dropout: bool,
    dtype: torch.dtype,
) -> tuple[AttentionMask, AttentionMask]:
    """Return the masks of full and of sliding layers.

    Args:
        config: of the decoder.
        mask: bool [b, s, s_kv], which then decides alone; or None.
        input_pos: positions [b, s], without caches, in which each 0 begins a document; None: a row is one.
        slots: where in their rows the queries stand, [b, s], or with caches [1, s] where all rows are alike.
        num_keys: s_kv.
        has_cache: keys are those of earlier calls as well.
        has_dropout: weights are dropped, which kernels for documents do not do.
        dtype: that scores are computed in.
    """
    window = config.sliding_window if config.sliding_layers else None
    needs_scores = (
        config.attn_softcap is not None or config.attn_sinks
    )  # which torch's kernels keep to themselves
    if window is not None and num_keys <= window:
        window = None
    full = mask
    if mask is None:
        needs_full = input_pos is not None or (needs_scores and num_keys > 1)
        if not needs_full and window is None:
            return None, None
        if has_cache:
            mask = slots[..., None] >= torch.arange(num_keys, device=slots.device)  # [b or 1, s, s_kv]
        else:
            starts = torch.zeros_like(slots, dtype=torch.int32)
            starts = starts if input_pos is None else find_document_starts(input_pos)
            if slots.device.type in ("cpu", "cuda") and not has_dropout:
                documents = DocumentMask.build(starts) if needs_full else None
                return documents, documents if window is None else DocumentMask.build(starts, window)
            mask = dense_mask(starts)
        full = mask if needs_full else None
    sliding = full
    if window is not None:
        # No table of distances: of whole numbers it would take eight times the mask's memory.
        sliding = mask & (torch.arange(num_keys, device=slots.device) > slots[..., None] - window)
    keep_bool = needs_scores or not slots.is_cuda
    full, sliding = (
        other if other is None or keep_bool else _aligned_bias(other, dtype) for other in (full, sliding)
    )
    return (None if full is None else full[:, None]), (None if sliding is None else sliding[:, None])


def document_runs(
    mask: Tensor | None, input_pos: Tensor | None, firsts: Tensor | None, *, wants_ends: bool
) -> DocumentRuns | None:
    """Return what layers with a state need to know of the documents; None: each row is one, and begins here.

    Args:
        mask: bool [b, s, s_kv], which then decides alone; or None.
        input_pos: positions [b, s], without caches, in which each 0 begins a document; None: a row is one.
        firsts: with caches, where a text begins at position 0: that of each row's first token [b, s]; None: no caches.
        wants_ends: a kernel asks for the ends as well. Costs one wait for the device.

    Raises:
        TrainingError: the mask is not one of documents: a state cannot leave out single tokens.
    """
    if mask is not None:
        return DocumentRuns(_starts_of_mask(mask, firsts))
    if firsts is not None:
        return DocumentRuns(-firsts.to(torch.int32))
    if input_pos is None:
        return None
    starts = find_document_starts(input_pos)
    if not wants_ends or isinstance(starts, FakeTensor):
        return DocumentRuns(starts)
    places = torch.arange(starts.shape[1], device=starts.device)
    is_first = ((starts == places) | (places == 0)).flatten()
    ends = torch.cat(
        (is_first.nonzero().flatten(), is_first.new_full((1,), is_first.numel(), dtype=torch.int64))
    )
    return DocumentRuns(starts, ends)


def _starts_of_mask(mask: Tensor, firsts: Tensor | None) -> Tensor:
    """Return where each token's document begins, [b, s] int32, counted from the first token.

    A token that sees nothing (a pad that was masked out) is a document of its own.
    """
    b, s, num_keys = mask.shape
    offset = torch.zeros(b, s, dtype=torch.int64, device=mask.device) if firsts is None else firsts
    places = torch.arange(s, device=mask.device) + offset  # [b, s]
    starts = torch.where(mask.any(-1), mask.to(torch.uint8).argmax(-1), places)  # [b, s]
    keys = torch.arange(num_keys, device=mask.device)  # [s_kv]
    expected = (keys <= places[..., None]) & (keys >= starts[..., None])
    # Whoever sees a token sees all that it saw: otherwise what it wrote would be read by one who must not.
    is_joined = (starts[:, 1:] == starts[:, :-1]) | (starts[:, 1:] == places[:, 1:])
    if not ((mask == expected) | ~mask.any(-1, keepdim=True)).all() or not is_joined.all():
        raise TrainingError(
            "layers of this model keep a state, which holds all earlier tokens of a document or none: a mask for it "
            "lets each token see its document's tokens from the first to itself"
        )
    return (starts - offset).to(torch.int32)


def check_mask(mask: Tensor, num_queries: int, num_keys: int) -> None:
    """Raise a `TrainingError` unless the mask is bool, [b, s, s_kv]."""
    if mask.dtype != torch.bool:
        raise TrainingError(
            f"an attention mask is bool, True where a key may be seen; this one is {mask.dtype}"
        )
    if mask.dim() != 3 or mask.shape[1:] != (num_queries, num_keys):
        raise TrainingError(
            f"the attention mask is {list(mask.shape)}; {num_queries} queries over {num_keys} keys need "
            f"[batch, {num_queries}, {num_keys}]"
        )


def _first_keys(document_starts: Tensor, window: int | None) -> Tensor:
    """Return the first key that each query sees, [b, s] int32; it never decreases along a row."""
    if window is None:
        return document_starts
    places = torch.arange(document_starts.shape[1], dtype=torch.int32, device=document_starts.device)  # [s]
    return torch.maximum(document_starts, places - (window - 1))


def _block_mask(first_keys: Tensor) -> BlockMask:
    """Return FlexAttention's mask for queries that see the keys from `first_keys` [b, s] up to themselves.

    What a block of queries sees is one run of blocks of keys, so the lists are counted, never searched for in a mask
    [b, s, s]; and nobody waits for the device.
    """
    from torch.nn.attention.flex_attention import BlockMask

    s = first_keys.shape[1]
    own = torch.arange(-(-s // _BLOCK), dtype=torch.int32, device=first_keys.device)  # [n]
    # The run begins with the block of the first query's first key. All queries see all of a block that begins with or
    # after the last one's first key; where the row ends within a block of queries, none counts as seen by all of it.
    begins = first_keys[:, ::_BLOCK] // _BLOCK  # [b, n]
    lasts = torch.nn.functional.pad(
        first_keys[:, _BLOCK - 1 :: _BLOCK], (0, int(s % _BLOCK > 0)), value=s
    )  # [b, n]
    full_begins = torch.minimum((lasts + (_BLOCK - 1)) // _BLOCK, own)
    num_before = full_begins - begins
    nth = own[None, None]  # [1, 1, n]
    partial = torch.where(nth < num_before[..., None], begins[..., None] + nth, own[:, None])  # [b, n, n]
    full = torch.minimum(full_begins[..., None] + nth, own[-1])

    def sees(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return (kv_idx <= q_idx) & (kv_idx >= first_keys[b, q_idx])

    num_partial, partial, num_full, full = (
        part[:, None].to(torch.int32).contiguous()
        for part in (num_before + 1, partial, own - full_begins, full)
    )
    block_mask: BlockMask = BlockMask.from_kv_blocks(
        num_partial, partial, num_full, full, BLOCK_SIZE=_BLOCK, mask_mod=sees, seq_lengths=(s, s)
    )
    return block_mask


def _aligned_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where a query may see a key and -inf elsewhere, [b, s, s_kv].

    Once for all layers, each of which would do so for a bool; and its rows begin at multiples of 16 bytes, as torch's
    memory-efficient kernel needs them: of others, each layer would make an aligned copy.
    """
    b, s, num_keys = mask.shape
    bias = torch.zeros(b, s, -(-num_keys // 8) * 8, dtype=dtype, device=mask.device)[..., :num_keys]
    return bias.masked_fill_(~mask, -torch.inf)
