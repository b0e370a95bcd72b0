"""How Meta's consolidated files cut matrices for model parallelism."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tune.errors import CheckpointError

# Cut by output rows and by input columns: ColumnParallelLinear and RowParallelLinear of fairscale.
_ROW_CUT = ("wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight", "output.weight")
_COLUMN_CUT = ("wo.weight", "w2.weight")


def cut_dim(name: str, shape: Sequence[int], width: int | None) -> int | None:
    """Return the dimension along which a tensor is cut; None: each file holds a whole copy.

    Args:
        name: the tensor's name.
        shape: of one file's piece.
        width: the model's width d.
    """
    if name == "tok_embeddings.weight":
        # Llama 2 cuts the embedding by columns, Llama 3 by rows: a piece of full width was cut by rows.
        return 0 if shape[-1] == width else 1
    if name.endswith(_ROW_CUT):
        return 0
    return 1 if name.endswith(_COLUMN_CUT) else None


def merged_shape(name: str, shapes: Sequence[tuple[int, ...]], width: int | None) -> tuple[int, ...]:
    """Return the shape of the whole tensor whose pieces have these shapes."""
    first = shapes[0]
    dim = cut_dim(name, first, width) if len(first) == 2 and len(shapes) > 1 else None
    if any(_without(shape, dim) != _without(first, dim) for shape in shapes):
        raise CheckpointError(
            f"the pieces of {name} do not fit together: {', '.join(map(str, map(list, shapes)))}"
        )
    if dim is None:
        return first
    total = sum(shape[dim] for shape in shapes)
    return tuple(total if place == dim else size for place, size in enumerate(first))


def merged_tensor(name: str, pieces: Sequence[Tensor], width: int | None) -> Tensor:
    """Return the whole tensor from one piece per file."""
    dim = cut_dim(name, pieces[0].shape, width) if pieces[0].dim() == 2 and len(pieces) > 1 else None
    return pieces[0] if dim is None else torch.cat(tuple(pieces), dim)


def _without(shape: Sequence[int], dim: int | None) -> list[int]:
    return [size for place, size in enumerate(shape) if place != dim]
