"""Trained rows for some tokens of a frozen embedding or output matrix: what peft calls trainable tokens.

Shapes: v vocabulary, d width, k tokens with a trained row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune.utils.sharding import copy_into_, full_tensor

__all__ = ["TokenRowsEmbedding", "TokenRowsLinear", "with_token_rows"]


class _TokenRows(nn.Module):
    """A frozen matrix [v, d], and the rows [k, d] that stand in place of its own for some tokens."""

    weight: Tensor
    token_ids: tuple[int, ...]
    token_rows: nn.Parameter

    def _add_rows(self, weight: Tensor, token_ids: Sequence[int]) -> None:
        self.weight = weight
        self.token_ids = tuple(sorted(set(token_ids)))
        rows = torch.empty(len(self.token_ids), weight.shape[1], dtype=weight.dtype, device="meta")
        self.token_rows = nn.Parameter(rows)
        self._index: Tensor | None = None
        self.reset_token_rows()

    def _ids(self, device: torch.device) -> Tensor:
        """Return the tokens as a tensor; it is kept, so that nothing waits for a copy."""
        if self._index is None or self._index.device != device:
            with torch.inference_mode(False):  # backward passes use it, too
                self._index = torch.tensor(self.token_ids, device=device)
        return self._index

    def merged_weight(self) -> Tensor:
        """Return the matrix [v, d] with the trained rows in it, in the frozen one's dtype; gradients reach the rows."""
        return self.weight.index_copy(0, self._ids(self.weight.device), self.token_rows.to(self.weight.dtype))

    @torch.no_grad()
    def reset_token_rows(self, dtype: torch.dtype | None = None) -> None:
        """Begin with the frozen matrix's own rows; nothing is done where that has no memory.

        Args:
            dtype: what the rows become; None: what they are, or the matrix's where they were on the meta device.
        """
        if self.weight.is_meta:
            return
        old = self.token_rows
        wanted = dtype or (self.weight.dtype if old.is_meta else old.dtype)
        if old.is_meta or old.dtype != wanted:
            fresh = torch.empty(old.shape, dtype=wanted, device=self.weight.device)
            self.token_rows = nn.Parameter(fresh, requires_grad=old.requires_grad)
        rows = full_tensor(self.weight.detach())[list(self.token_ids)]
        copy_into_(self.token_rows, rows)


class TokenRowsEmbedding(_TokenRows, nn.Embedding):
    """An embedding with trained rows for some tokens.

    Args:
        weight: of all tokens, frozen.
        token_ids: of those with a trained row.
    """

    def __init__(self, weight: Tensor, token_ids: Sequence[int]) -> None:
        nn.Embedding.__init__(self, weight.shape[0], weight.shape[1], device="meta", _weight=weight.detach())
        self._add_rows(weight, token_ids)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [..., d] for token ids [...]."""
        frozen = F.embedding(tokens, self.weight)
        ids = self._ids(tokens.device)
        slots = torch.searchsorted(ids, tokens).clamp(max=len(self.token_ids) - 1)
        # Looked up in the rows' own dtype: their gradients are added up in it.
        trained = F.embedding(slots, self.token_rows).to(frozen.dtype)
        return torch.where((ids[slots] == tokens)[..., None], trained, frozen)


class TokenRowsLinear(_TokenRows, nn.Linear):
    """An output matrix with trained rows for some tokens.

    Args:
        weight: of all tokens, frozen.
        token_ids: of those with a trained row.
    """

    def __init__(self, weight: Tensor, token_ids: Sequence[int]) -> None:
        nn.Linear.__init__(self, weight.shape[1], weight.shape[0], bias=False, device="meta")
        self._add_rows(weight, token_ids)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., v] for x [..., d]."""
        return F.linear(x, self.merged_weight())


def with_token_rows(
    module: nn.Embedding | nn.Linear, token_ids: Sequence[int]
) -> TokenRowsEmbedding | TokenRowsLinear:
    """Return a module with the same matrix, frozen, and trained rows for these tokens and those that had some."""
    if isinstance(module, TokenRowsEmbedding | TokenRowsLinear):
        token_ids = (*module.token_ids, *token_ids)
    weight = module.weight.requires_grad_(False)
    if isinstance(module, nn.Embedding):
        return TokenRowsEmbedding(weight, token_ids).train(module.training)
    return TokenRowsLinear(weight, token_ids).train(module.training)


@torch.no_grad()
def without_token_rows(module: TokenRowsEmbedding | TokenRowsLinear) -> nn.Embedding | nn.Linear:
    """Return a plain module with the trained rows in its matrix."""
    weight = module.merged_weight()
    plain: nn.Embedding | nn.Linear
    if isinstance(module, nn.Embedding):
        plain = nn.Embedding(weight.shape[0], weight.shape[1], _weight=weight, _freeze=True)
    else:
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
    return plain.train(module.training)
