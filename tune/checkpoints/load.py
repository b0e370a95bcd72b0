"""From a weight source into a model: everything is compared first, then filled tensor by tensor."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from tune.checkpoints.weights import WeightSource
from tune.errors import CheckpointError
from tune.modules import Family, Layout, TransformerDecoder, WeightRule


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
    layout = find_layout(require_family(model), source)
    parameters = parameters_by_name(model)
    tensors = list(layout.expand(model.config, parameters))
    _compare(parameters, tensors, source, layout, tied=model.config.tie_word_embeddings)
    if model.config.tie_word_embeddings and layout.tied_output in source:
        _check_tied(tensors, source, layout)
    target = torch.device("cpu" if device is None else device)
    for rules in tensors:
        whole = source.read(rules[0].theirs)
        rows = [parameters[rule.ours][1].shape[0] for rule in rules]
        for rule, tensor in zip(rules, torch.split(whole, rows)):
            if rule.to_ours is not None:
                tensor = rule.to_ours(tensor, model.config)
            _fill(model, parameters[rule.ours], tensor, target, dtype)


def require_family(model: TransformerDecoder) -> Family:
    """Return the model's family, or raise CheckpointError where it has none."""
    if model.family is None:
        raise CheckpointError(
            "this model was built without a family, so the names of its weights in files are not known; "
            "build it with one (tune.models.llama2.llama2, ...)"
        )
    return model.family


def parameters_by_name(model: nn.Module) -> dict[str, tuple[str, nn.Parameter]]:
    """Return each parameter with its path in the module, by its name without the marks of wrappers."""
    return {
        path.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", ""): (path, parameter)
        for path, parameter in model.named_parameters()
    }


def shared_shape(
    rules: tuple[WeightRule, ...], parameters: dict[str, tuple[str, nn.Parameter]]
) -> tuple[int, ...]:
    """Return the shape of the tensor that these rules share: their parameters one under the other."""
    shapes = [parameters[rule.ours][1].shape for rule in rules]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def find_layout(family: Family, source: WeightSource) -> Layout:
    """Return the family's layout that a checkpoint is in, or raise CheckpointError."""
    # The embedding and the final norm stand in every checkpoint, and are named differently in every layout.
    for layout in family.layouts:
        if any("{}" not in rule.theirs and rule.theirs in source for rule in _telling(layout, family)):
            return layout
    for layout in family.layouts:
        if any(rule.theirs.replace("{}", "0") in source for rule in layout.rules):
            return layout
    seen = ", ".join(sorted(source)[:4])
    wanted = " or ".join(f"{layout.rules[0].theirs} ({layout.name})" for layout in family.layouts)
    raise CheckpointError(
        f"{source.path} holds no weights of the {family.name} family: its tensors are named {seen or 'nothing'}, ..., "
        f"where {wanted} is expected"
    )


def _telling(layout: Layout, family: Family) -> list[WeightRule]:
    others = {rule.theirs for other in family.layouts if other is not layout for rule in other.rules}
    return [rule for rule in layout.rules if rule.theirs not in others]


def _compare(
    parameters: dict[str, tuple[str, nn.Parameter]],
    tensors: list[tuple[WeightRule, ...]],
    source: WeightSource,
    layout: Layout,
    *,
    tied: bool,
) -> None:
    missing, misshapen, untyped = [], [], []
    for rules in tensors:
        name = rules[0].theirs
        shape = list(shared_shape(rules, parameters))
        info = source.infos.get(name)
        if info is None:
            missing.append((name, f"the model needs {shape}"))
            continue
        if list(info.shape) != shape:
            misshapen.append((name, f"{list(info.shape)} in the file, {shape} in the model"))
        if isinstance(info.dtype, str):
            untyped.append((name, f"stored as {info.dtype}; only fp64, fp32, fp16 and bf16 are read"))
    expected = {rules[0].theirs for rules in tensors} | ({layout.tied_output} if tied else set())
    unknown = [
        (name, f"{list(source.infos[name].shape)} in the file")
        for name in source
        if name not in expected and not any(fnmatchcase(name, pattern) for pattern in layout.ignored)
    ]
    unmapped = [(name, "a parameter that checkpoints of this family do not hold") for name in parameters]
    mapped = {rule.ours for rules in tensors for rule in rules}
    unmapped = [entry for entry in unmapped if entry[0] not in mapped]
    sections = [
        ("missing from the checkpoint", missing),
        ("of another shape", misshapen),
        ("unknown to the model", unknown),
        ("of an unsupported type", untyped),
        ("in the model alone", unmapped),
    ]
    if not any(entries for _, entries in sections):
        return
    lines = [f"the weights in {source.path} ({layout.name} layout) do not fit the model; nothing was loaded."]
    for title, entries in sections:
        if entries:
            lines.append(f"  {title} ({len(entries)}):")
            lines.extend(f"    {line}" for line in _fold_layers(entries))
    if [name for name, _ in missing] == [layout.tied_output]:
        lines.append("  The checkpoint may tie its output matrix to the embedding: set tie_word_embeddings.")
    raise CheckpointError("\n".join(lines))


def _fold_layers(entries: Iterable[tuple[str, str]]) -> list[str]:
    """Return one line per (name, fact), where names that differ in one layer number share a line."""
    groups: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for name, fact in entries:
        match = re.search(r"\.(\d+)\.", name)
        pattern = name if match is None else f"{name[: match.start()]}.{{}}.{name[match.end() :]}"
        groups[pattern, fact].append((-1 if match is None else int(match[1]), name))
    lines = []
    for (pattern, fact), members in groups.items():
        if len(members) == 1:
            lines.append(f"{members[0][1]}: {fact}")
        else:
            lines.append(f"{pattern.replace('{}', _ranges([number for number, _ in members]))}: {fact}")
    return lines


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "{" + ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) + "}"


def _check_tied(tensors: list[tuple[WeightRule, ...]], source: WeightSource, layout: Layout) -> None:
    embedding = next(rules[0].theirs for rules in tensors if rules[0].ours == "tok_embeddings.weight")
    if not torch.equal(source.read(embedding), source.read(layout.tied_output)):
        raise CheckpointError(
            f"{source.path} holds {layout.tied_output} with other values than {embedding}, and the model ties the "
            "two: set tie_word_embeddings to false, in config.json or in the model"
        )


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
