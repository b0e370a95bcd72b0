"""From a weight source into a model: everything is compared first, then filled tensor by tensor."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tune.checkpoints.carried import find_carried
from tune.checkpoints.compare import match_weights
from tune.checkpoints.finite import count_nonfinite, describe_nonfinite
from tune.checkpoints.mapping import Place, places_by_name
from tune.checkpoints.new_rows import stored_shapes
from tune.checkpoints.weights import WeightSource
from tune.errors import CheckpointError
from tune.modules import Family, TransformerDecoder
from tune.modules.new_rows import with_mean_rows
from tune.modules.peft import FrozenExperts
from tune.modules.score import SCORE
from tune.utils.sharding import copy_into_, copy_into_place_, init_sharded_, is_sharded, local_part

_SCORE_STD = 0.02  # transformers' initializer_range


def load_into(
    model: TransformerDecoder,
    source: WeightSource,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Fill every parameter of a model from a checkpoint, converting to the parameters' dtype. Adapters are left alone.

    What else the checkpoint holds (a vision tower, say) is noted in `model.carried`, and goes into what is saved.

    Names, shapes and dtypes are all compared before the first value is read. Parameters on the meta device get
    their memory one at a time, so the peak is one copy of the weights and one tensor.

    Args:
        model: of the family and sizes the checkpoint was made for; parameters may be on the meta device.
        source: from `open_weights`.
        dtype: what parameters on the meta device become; None: what they were built as.
        device: where parameters on the meta device go; None: the CPU. Others stay where and what they are.

    Raises:
        CheckpointError: tensors are missing, unknown, misshapen or of an unsupported type (all are listed), the
            checkpoint is of another family, a weight holds NaN or infinity, or a file cannot be read to its end.
    """
    places = places_by_name(model)
    family = require_family(model)
    shapes = stored_shapes(model, family, source, {name: place.shape for name, place in places.items()})
    target = torch.device("cpu" if device is None else device)
    if model.score_is_new and SCORE not in source:  # a language model's, which has no score yet
        del places[SCORE]
        shapes = {name: shape for name, shape in shapes.items() if name != SCORE}
        _begin_score(model, target, dtype)
    layout, stored = match_weights(source, family, model.config, shapes)
    model.carried = find_carried(source, layout, model.config)
    nonfinite = []
    for rules in layout.expand(model.config, list(shapes)):  # in the order of the files, more or less
        for rule in rules:
            tensor, place = stored.read(rule.ours), places[rule.ours]
            if shapes[rule.ours] != place.shape:
                tensor = with_mean_rows(tensor, place.shape[0])
            filled = _fill(rule.ours, place, tensor, target, dtype)
            if count := count_nonfinite(filled):
                nonfinite.append((rule.theirs, count, filled.numel()))
    if nonfinite:
        raise CheckpointError(
            f"the weights in {source.path} hold {describe_nonfinite(nonfinite)}. A model computes nothing with them: "
            "the file is damaged, its training diverged, or a larger type was cast to fp16; take an earlier checkpoint"
        )


def _begin_score(model: TransformerDecoder, device: torch.device, dtype: torch.dtype | None) -> None:
    """Give a score new values: the same on every process, whose random generators stand at the same place."""
    assert model.score is not None
    held = model.score.weight
    if held.is_meta:
        fresh = torch.empty(held.shape, dtype=dtype or held.dtype, device=device)
        model.score.weight = nn.Parameter(fresh, requires_grad=held.requires_grad)
    init_sharded_(model.score.weight, partial(nn.init.normal_, std=_SCORE_STD))


def require_family(model: TransformerDecoder) -> Family:
    """Return the model's family, or raise CheckpointError where it has none."""
    if model.family is None:
        raise CheckpointError(
            "this model was built without a family, so the names of its weights in files are not known; "
            "build it with one (tune.models.llama2.llama2, ...)"
        )
    return model.family


def _fill(name: str, place: Place, tensor: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    """Give a weight its values, and return what this process holds of them."""
    if tensor.shape != place.shape:
        raise CheckpointError(f"{name} became {list(tensor.shape)} where {list(place.shape)} is needed")
    is_new = place.device.type == "meta"
    held: Tensor | None = getattr(place.owner, place.leaf)
    if place.expert is not None:
        return _fill_expert(place, place.expert, tensor, device, (dtype or place.dtype) if is_new else None)
    with torch.no_grad():
        if is_sharded(held) or (held is not None and not is_new and place.frozen is None):
            copy_into_(held, tensor)  # type: ignore[arg-type]  # a sharded weight is there
            return local_part(held)  # type: ignore[arg-type]
        # A copy in every case: a view of the mapped file would change or vanish with the file.
        wanted = (dtype or place.dtype) if is_new else place.dtype
        where = device if is_new else place.device
        filled = torch.empty(place.shape, dtype=wanted, device=where).copy_(tensor)
    if place.frozen is not None:
        place.frozen.fill_weight(filled)
    elif place.leaf in place.owner._buffers:
        setattr(place.owner, place.leaf, filled)
    else:
        fresh = nn.Parameter(filled, requires_grad=held is not None and held.requires_grad)
        setattr(place.owner, place.leaf, fresh)
    return filled


@torch.no_grad()
def _fill_expert(
    place: Place, expert: int, tensor: Tensor, device: torch.device, new_dtype: torch.dtype | None
) -> Tensor:
    """Give one expert of a stack its values; a stack without memory gets it with its first expert."""
    owner: Any = place.owner
    if isinstance(owner, FrozenExperts) and owner.quantize_base and place.leaf == "weight":
        where = place.device if new_dtype is None else device
        filled = tensor.to(where, new_dtype or place.dtype)
        owner.fill_expert(expert, filled)
        return filled
    stack: nn.Parameter = getattr(owner, place.leaf)
    if stack.is_meta:
        room = torch.empty(stack.shape, dtype=new_dtype, device=device)
        stack = nn.Parameter(room, requires_grad=stack.requires_grad)
        setattr(owner, place.leaf, stack)
    copy_into_place_(stack, expert, tensor)
    return tensor.to(stack.dtype)
