"""An adapter in files, compared with the model that is to have it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tune.checkpoints.adapter_config import AdapterSettings, find_adapter_dir, read_settings
from tune.checkpoints.adapter_experts import ExpertPiece, plan_expert_pieces, their_experts
from tune.checkpoints.adapter_files import find_adapter_weights, read_metadata
from tune.checkpoints.adapter_layout import (
    PARTS,
    PREFIX,
    Piece,
    plan_pieces,
    possible_copies,
    read_parts,
    refuse_misfit,
    scaling_of,
    their_modules,
)
from tune.checkpoints.adapter_tokens import TokenMatrix, plan_token_matrices
from tune.checkpoints.load import require_family
from tune.checkpoints.mapping import weight_shapes
from tune.checkpoints.weights import WeightSource, open_weights
from tune.modules import TransformerDecoder
from tune.modules.peft import LoRAConfig, LoRAExperts, LoRALinear, LoRAModule, chosen_modules
from tune.modules.peft.config import ATTN_MODULES, MLP_MODULES, module_name


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter in files, compared with the model."""

    source: WeightSource
    settings: AdapterSettings
    pieces: list[Piece]
    experts: list[ExpertPiece]
    config: LoRAConfig
    matrices: list[TokenMatrix]

    def tensor_names(self) -> list[str]:
        """Return the names of the file's tensors that belong to adapters of matrices."""
        names = [name for piece in self.pieces for name in piece.names.values()]
        return [*names, *(name for stack in self.experts for name in stack.names)]


def open_adapter(model: TransformerDecoder, directory: Path | str) -> AdapterFiles:
    """Return the adapter in a directory, compared with a model; arguments and errors as in `load_adapter`."""
    family = require_family(model)
    folder = find_adapter_dir(directory)
    settings = read_settings(folder)
    file = find_adapter_weights(folder)
    source = open_weights(file)
    parts = read_parts(read_metadata(file).get(PARTS))
    shapes = weight_shapes(model)
    # A model may go by other names where it is a part of a larger one.
    layouts = [
        (layout, their_modules(layout, model.config, shapes)) for layout in (family.hf, *family.hf_variants)
    ]
    layout, modules = max(
        layouts, key=lambda pair: sum(f"{PREFIX}{name}.lora_A.weight" in source for name in pair[1])
    )
    stacks = [stack for known, _ in layouts for stack in their_experts(known, model.config, shapes)]
    experts, of_experts, problems = plan_expert_pieces(source, settings, parts, stacks, modules)
    matrices, others = plan_token_matrices(source, settings, layout, model)
    pieces = plan_pieces(
        source,
        settings,
        parts,
        modules,
        possible_copies(layout, model),
        {*others, *of_experts},
        experts,
        problems,
    )
    config = _describe(model, settings, [*pieces, *experts])
    return AdapterFiles(source, settings, pieces, experts, config, matrices)


def _describe(
    model: TransformerDecoder, settings: AdapterSettings, pieces: Sequence[Piece | ExpertPiece]
) -> LoRAConfig:
    """Return the configuration that makes these adapters, matrix by matrix only where it cannot be said shorter."""
    names = {module_name(piece.path) for piece in pieces}
    modules = tuple(LoRAModule(piece.path, piece.rank, piece.alpha) for piece in pieces)
    config = LoRAConfig(
        rank=pieces[0].rank,
        alpha=pieces[0].alpha,
        dropout=settings.dropout,
        attn_modules=tuple(name for name in ATTN_MODULES if name in names),
        apply_to_mlp=not names.isdisjoint(MLP_MODULES),
        apply_to_output="output" in names,
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
    )
    says_all = set(chosen_modules(model, config)) == set(modules)
    return config if says_all else replace(config, modules=modules)


def require_same_form(adapter: AdapterFiles, present: Mapping[str, LoRALinear | LoRAExperts]) -> None:
    """Raise CheckpointError unless a model's adapters, by path, are those of the files in all but their values."""
    pieces: dict[str, Piece | ExpertPiece] = {piece.path: piece for piece in adapter.pieces}
    pieces |= {piece.path: piece for piece in adapter.experts}
    problems = [
        f"{path}: an adapter in the file, none in the model" for path in pieces if path not in present
    ]
    for path, module in present.items():
        if path not in pieces:
            problems.append(f"{path}: an adapter in the model, none in the file")
            continue
        rank, alpha = pieces[path].rank, pieces[path].alpha
        scaling = scaling_of(alpha, rank, adapter.settings.use_rslora)
        if module.rank != rank:
            problems.append(f"{path}: rank {rank} in the file, {module.rank} in the model")
        elif not math.isclose(module.scaling, scaling, rel_tol=1e-9):
            problems.append(
                f"{path}: scaled by {scaling:.6g} in the file, by {module.scaling:.6g} in the model"
            )
        if module.use_dora != adapter.settings.use_dora:
            problems.append(
                f"{path}: use_dora is {adapter.settings.use_dora} in the file, {module.use_dora} in the model"
            )
    refuse_misfit(adapter.source, "is of another form than the model's", problems)
