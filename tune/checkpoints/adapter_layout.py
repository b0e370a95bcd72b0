"""Between a model's adapted matrices and the modules that peft would adapt: names, and projections that are fused.

Where a file's tensor holds several of our matrices one under the other, one adapter stands for theirs: their A's one
under the other, and their B's along the diagonal of one B. Its rank is the sum of theirs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tune.checkpoints.adapter_config import AdapterSettings
from tune.checkpoints.finite import count_nonfinite, describe_nonfinite
from tune.checkpoints.mapping import Shapes, places_by_name, rows_of
from tune.checkpoints.weights import WeightSource
from tune.errors import CheckpointError
from tune.modules import DecoderConfig, Layout, TransformerDecoder
from tune.utils.json_errors import describe_json_error

PREFIX = "base_model.model."
PARTS = "parts"  # the file's metadata: ranks of our matrices inside a fused adapter
_KINDS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",  # peft before 0.12
}
_WORDS = {"a": "lora_A", "b": "lora_B", "magnitude": "lora_magnitude_vector"}
_MATRICES = re.compile(
    r"(layers\.\d+\.(attn\.(\w+_proj|in_proj_\w+)|mlp\.(shared\.)?w[123]|per_layer\.(gate|projection))"
    r"|per_layer_input\.projection|output)\.weight"
)


@dataclass(frozen=True)
class TheirModule:
    """A module of the other tools' model that may have an adapter.

    Args:
        name: theirs.
        paths: of our modules whose matrices it holds.
        places: which of its rows are each one's.
        height: of all.
        width: of all.
    """

    name: str
    paths: tuple[str, ...]
    places: tuple[slice | Tensor, ...]
    height: int
    width: int

    def rows_of(self, path: str) -> slice | Tensor:
        """Return the rows of one of ours."""
        return self.places[self.paths.index(path)]


@dataclass(frozen=True)
class Piece:
    """One of our adapters, as a part of an adapter in a file.

    Args:
        path: of our module.
        rank, alpha: of our adapter.
        names: of the tensors in the file, by "a", "b" and "magnitude".
        rows: of B and of the magnitudes.
        ranks: rows of A and columns of B.
    """

    path: str
    rank: int
    alpha: float
    names: Mapping[str, str]
    rows: slice | Tensor
    ranks: slice


def their_modules(layout: Layout, config: DecoderConfig, shapes: Shapes) -> dict[str, TheirModule]:
    """Return the modules that may have adapters, by name."""
    modules = {}
    for rules in layout.expand(config, list(shapes)):
        ours = [rule.ours for rule in rules]
        # As `apply_lora` does.
        is_of_layer = ".mlp." in ours[0] and ".mlp.shared." not in ours[0]
        is_refused = config.moe is not None and not config.moe.is_beside and is_of_layer
        if all(_MATRICES.fullmatch(name) for name in ours) and not is_refused:
            name = rules[0].theirs.removesuffix(".weight")
            heights = [shapes[path][0] for path in ours]
            modules[name] = TheirModule(
                name,
                tuple(path.removesuffix(".weight") for path in ours),
                tuple(rows_of(rules, config, heights)),
                sum(heights),
                shapes[ours[0]][1],
            )
    return modules


def possible_copies(layout: Layout, model: TransformerDecoder) -> dict[str, Tensor]:
    """Return embedding and output matrix by the names that peft may write them under, beside an adapter."""
    places = places_by_name(model)
    copies = {}
    for rules in layout.expand(model.config, list(places)):
        if rules[0].ours in ("tok_embeddings.weight", "output.weight"):
            place = places[rules[0].ours]
            for theirs in (rules[0].theirs, layout.tied_output if model.output is None else rules[0].theirs):
                module = f"{PREFIX}{theirs.removesuffix('.weight')}"
                for name in (f"{module}.weight", f"{module}.base_layer.weight"):
                    copies[name] = getattr(place.owner, place.leaf)
    return copies


def plan_pieces(
    source: WeightSource,
    settings: AdapterSettings,
    parts: Mapping[str, Mapping[str, int]],
    modules: Mapping[str, TheirModule],
    copies: Mapping[str, Tensor],
    others: Collection[str] = (),
    beside: Collection[object] = (),
    problems_beside: Sequence[str] = (),
) -> list[Piece]:
    """Return our adapters as parts of a file's tensors, all of which are accounted for.

    Args:
        source: the file's tensors.
        settings: what adapter_config.json says of them.
        parts: what the file's metadata say of fused adapters, from `read_parts`.
        modules: that may have adapters.
        copies: tensors of the base by the names under which peft may write them, changed or not, beside an adapter.
        others: names of tensors that belong to no linear adapter, and have been dealt with.
        beside: adapters that these are of, if any.
        problems_beside: with those.

    Raises:
        CheckpointError: tensors are missing, unknown or misshapen; all are listed.
    """
    tensors, problems = _sort_tensors(source, copies, others)
    problems += problems_beside
    pieces = []
    missing_targets = [
        name
        for name in modules
        if settings.targets is not None and settings.is_target(name) and name not in tensors
    ]
    problems += [
        f"{PREFIX}{name}: `target_modules` names it, and it has no weights" for name in missing_targets
    ]
    for name, names in tensors.items():
        if name not in modules:
            problems.append(
                f"{next(iter(names.values()))}: the model has no matrix of this name that takes adapters"
            )
        elif settings.targets is not None and not settings.is_target(name):
            problems.append(f"{next(iter(names.values()))}: `target_modules` does not name it")
        elif misfits := _misfits(modules[name], names, source, settings):
            problems += misfits
        else:
            ranks = parts.get(name)
            if ranks is not None and not _is_in_blocks(source.read(names["b"]), modules[name], ranks):
                ranks = None  # another tool has trained it since
            pieces += _split(modules[name], names, settings, ranks)
    if not tensors and not beside and not problems_beside:
        problems.append(f"no tensor is named {PREFIX}....lora_A.weight")
    refuse_misfit(source, "does not fit the model", problems)
    return pieces


def refuse_misfit(source: WeightSource, what: str, problems: list[str]) -> None:
    """Raise CheckpointError that an adapter is of no use here, with the problems there are; if there are any."""
    if problems:
        more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
        lines = (f"the adapter in {source.path} {what}; nothing was loaded.", *problems[:20], *more)
        raise CheckpointError("\n  ".join(lines))


def _sort_tensors(
    source: WeightSource, copies: Mapping[str, Tensor], others: Collection[str]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return the tensors' names by module and kind, and a problem for each that belongs to no adapter."""
    tensors: dict[str, dict[str, str]] = {}
    problems = []
    for name in sorted(source):
        kind = next((kind for kind in _KINDS if name.endswith(f".{kind}")), None)
        if name in others:
            continue
        if name in copies:
            if not _is_copy(source.read(name), copies[name]):
                problems.append(f"{name}: not the base's own, where an adapter is beside it")
        elif kind is None or not name.startswith(PREFIX):
            problems.append(f"{name}: no part of a linear adapter, nor the embedding or output matrix")
        elif isinstance(source.infos[name].dtype, str):
            problems.append(
                f"{name}: stored as {source.infos[name].dtype}; only fp64, fp32, fp16 and bf16 are read"
            )
        else:
            module = name.removeprefix(PREFIX).removesuffix(f".{kind}")
            tensors.setdefault(module, {})[_KINDS[kind]] = name
    return tensors, problems


def _is_copy(stored: Tensor, own: Tensor) -> bool:
    if own.is_meta:  # nothing to compare with yet
        return stored.shape == own.shape
    return torch.equal(stored.to(own.dtype), own.detach().cpu())


def _misfits(
    module: TheirModule, names: Mapping[str, str], source: WeightSource, settings: AdapterSettings
) -> list[str]:
    rank, height = settings.rank_of(module.name), module.height
    wanted: dict[str, tuple[int, ...]] = {"a": (rank, module.width), "b": (height, rank)}
    if settings.use_dora:
        wanted["magnitude"] = (height,)
    problems = []
    for kind, word in _WORDS.items():
        if kind not in names:
            if kind in wanted:
                problems.append(f"{PREFIX}{module.name}: its {word} is missing")
        elif kind not in wanted:
            problems.append(f"{names[kind]}: a magnitude, where `use_dora` is false")
        elif source.infos[names[kind]].shape != wanted[kind]:
            problems.append(
                f"{names[kind]}: {list(source.infos[names[kind]].shape)} in the file, where the model and "
                f"adapter_config.json need {list(wanted[kind])}"
            )
    return problems


def _split(
    module: TheirModule,
    names: Mapping[str, str],
    settings: AdapterSettings,
    ranks: Mapping[str, int] | None,
) -> list[Piece]:
    """Return our adapters inside one of theirs.

    Written here, a fused adapter is a block for each of ours. One made elsewhere has one A for all: each of ours then
    gets a copy of it and its own rows of B, which is the same function.
    """
    rank = settings.rank_of(module.name)
    scaling = scaling_of(settings.alpha_of(module.name), rank, settings.use_rslora)
    if ranks is None:
        whole = slice(0, rank)
        alpha = settings.alpha_of(module.name)
        return [Piece(path, rank, alpha, names, module.rows_of(path), whole) for path in module.paths]
    pieces, start = [], 0
    for path, own in ranks.items():
        alpha = alpha_for(scaling, own, settings.use_rslora)
        pieces.append(Piece(path, own, alpha, names, module.rows_of(path), slice(start, start + own)))
        start += own
    return pieces


def _is_in_blocks(b: Tensor, module: TheirModule, ranks: Mapping[str, int]) -> bool:
    """Whether a B [o, r] is zero outside a block for each of our matrices, of the ranks that are said."""
    if not set(ranks) <= set(module.paths) or sum(ranks.values()) != b.shape[1]:
        return False
    outside = b.clone()
    start = 0
    for path, rank in ranks.items():
        outside[module.rows_of(path), start : start + rank] = 0.0
        start += rank
    return not outside.any()


def require_finite(source: WeightSource, names: Iterable[str]) -> None:
    """Raise CheckpointError if a file's adapters hold NaN or infinity: it would show later, as something else."""
    names = dict.fromkeys(names)
    tensors = ((name, source.read(name)) for name in names)
    found = [(name, count, tensor.numel()) for name, tensor in tensors if (count := count_nonfinite(tensor))]
    if found:
        raise CheckpointError(
            f"the adapter in {source.path} holds numbers that are not finite, in {len(found)} of {len(names)} tensors, "
            f"{describe_nonfinite(found)}: the file is damaged, or its training diverged"
        )


def scaling_of(alpha: float, rank: int, use_rslora: bool) -> float:
    """Return what an adapter's result is multiplied by."""
    return alpha / (math.sqrt(rank) if use_rslora else rank)


def alpha_for(scaling: float, rank: int, use_rslora: bool) -> float:
    """Return the alpha that gives an adapter this scaling, without the dust of a way there and back."""
    alpha = scaling * (math.sqrt(rank) if use_rslora else rank)
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha


def read_parts(text: str | None) -> dict[str, dict[str, int]]:
    """Return the ranks of our matrices inside fused adapters, by their module and our path."""
    if text is None:
        return {}
    try:
        parts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"the metadata of the adapter's file is broken: {describe_json_error(error)}"
        ) from error
    if not isinstance(parts, dict) or not all(
        isinstance(ranks, dict) and all(type(rank) is int and rank > 0 for rank in ranks.values())
        for ranks in parts.values()
    ):
        raise CheckpointError("the metadata of the adapter's file is broken: `parts` gives no ranks")
    return parts
