"""A checkpoint with fewer rows than the model that it is read into: a vocabulary that has grown since."""

from __future__ import annotations

from tune.checkpoints.compare import find_layout
from tune.checkpoints.mapping import Shapes
from tune.checkpoints.weights import WeightSource
from tune.modules import Family, TransformerDecoder
from tune.modules.new_rows import ROWS_OF_TOKENS, TABLE_OF_TOKENS

__all__ = ["stored_shapes"]


def stored_shapes(model: TransformerDecoder, family: Family, source: WeightSource, shapes: Shapes) -> Shapes:
    """Return the shapes that a checkpoint should have: those of the model, or of the model before it got more rows.

    Args:
        model: perhaps one whose vocabulary was resized.
        family: the model's.
        source: the checkpoint.
        shapes: of the model's parameters.
    """
    if model.num_stored_rows is None:
        return shapes
    names = {rule.theirs for rule in find_layout(family, source).rules if rule.ours == ROWS_OF_TOKENS[0]}
    if not any(source.infos[name].shape[:1] == (model.num_stored_rows,) for name in names if name in source):
        return shapes
    num_rows = dict.fromkeys(ROWS_OF_TOKENS, model.num_stored_rows)
    if model.num_stored_table_rows is not None:
        num_rows[TABLE_OF_TOKENS] = model.num_stored_table_rows
    return {
        name: (num_rows[name], *shape[1:]) if name in num_rows else shape for name, shape in shapes.items()
    }
