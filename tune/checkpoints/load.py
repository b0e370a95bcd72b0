"""From a weight source into a model: everything is compared first, then filled tensor by tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tune.checkpoints.compare import match_weights
from tune.checkpoints.mapping import parameters_by_name
from tune.checkpoints.weights import WeightSource
from tune.errors import CheckpointError
from tune.modules import Family, TransformerDecoder


def load_into(
    model: TransformerDecoder,
    source: WeightSource,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Fill every parameter of a model from a checkpoint, converting to the parameters' dtype.

    Names, shapes and dtypes are all compared before the first value is read. Parameters on the meta device get
    their memory one at a time, so the peak is one copy of the weights and one tensor.

    Args:
        model: of the family and sizes the checkpoint was made for; parameters may be on the meta device.
        source: from `open_weights`.
        dtype: what parameters on the meta device become; None: what they were built as.
        device: where parameters on the meta device go; None: the CPU. Others stay where and what they are.

    Raises:
        CheckpointError: tensors are missing, unknown, misshapen or of an unsupported type (all are listed), the
            checkpoint is of another family, or a file cannot be read to its end.
    """
    parameters = parameters_by_name(model)
    shapes = {name: tuple(parameter.shape) for name, (_, parameter) in parameters.items()}
    layout, stored = match_weights(source, require_family(model), model.config, shapes)
    target = torch.device("cpu" if device is None else device)
    for rules in layout.expand(model.config, list(shapes)):  # in the order of the files, more or less
        for rule in rules:
            _fill(model, parameters[rule.ours], stored.read(rule.ours), target, dtype)


def require_family(model: TransformerDecoder) -> Family:
    """Return the model's family, or raise CheckpointError where it has none."""
    if model.family is None:
        raise CheckpointError(
            "this model was built without a family, so the names of its weights in files are not known; "
            "build it with one (tune.models.llama2.llama2, ...)"
        )
    return model.family


def _fill(
    model: nn.Module,
    place: tuple[str, nn.Parameter],
    tensor: Tensor,
    device: torch.device,
    dtype: torch.dtype | None,
) -> None:
    path, parameter = place
    if tensor.shape != parameter.shape:
        raise CheckpointError(f"{path} became {list(tensor.shape)} where {list(parameter.shape)} is needed")
    with torch.no_grad():
        if not parameter.is_meta:
            parameter.copy_(tensor)
            return
        # A copy in every case: a view of the mapped file would change or vanish with the file.
        filled = torch.empty(parameter.shape, dtype=dtype or parameter.dtype, device=device).copy_(tensor)
    owner, _, leaf = path.rpartition(".")
    fresh = nn.Parameter(filled, requires_grad=parameter.requires_grad)
    setattr(model.get_submodule(owner), leaf, fresh)
