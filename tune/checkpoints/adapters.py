"""Adapters in files, in the layout of peft: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tune.checkpoints.adapter_config import (
    CONFIG_FILE,
    AdapterSettings,
    describe_adapter,
    find_adapter_dir,
    read_settings,
)
from tune.checkpoints.adapter_files import (
    QUANTIZATION,
    WEIGHTS_FILES,
    base_difference,
    find_adapter_weights,
    read_metadata,
)
from tune.checkpoints.adapter_fusion import fused_size, fused_tensors
from tune.checkpoints.adapter_layout import (
    PARTS,
    PREFIX,
    Piece,
    plan_pieces,
    possible_copies,
    refuse_misfit,
    require_finite,
    scaling_of,
    their_modules,
)
from tune.checkpoints.adapter_tokens import (
    TokenMatrix,
    apply_token_matrices,
    fill_token_matrices,
    plan_token_matrices,
    token_tensors,
)
from tune.checkpoints.load import require_family
from tune.checkpoints.locate import STAGING
from tune.checkpoints.mapping import lending_of, places_by_name, plain_path
from tune.checkpoints.save import TokenizerFiles, prepare_folder, write_tokenizer
from tune.checkpoints.weights import WeightSource, open_weights
from tune.checkpoints.writers import write_json, write_safetensors
from tune.errors import CheckpointError
from tune.modules import TransformerDecoder
from tune.modules.peft import (
    FrozenLinear,
    LoRAConfig,
    LoRALinear,
    LoRAModule,
    adapted_modules,
    adapter_parameters,
    apply_lora,
    cast_adapters,
    choose_lora,
    chosen_modules,
)
from tune.modules.peft.config import ATTN_MODULES, MLP_MODULES
from tune.utils import get_logger
from tune.utils.sharding import copy_into_


def save_adapter(
    model: TransformerDecoder, directory: Path | str, base: str, tokenizer: TokenizerFiles | None = None
) -> None:
    """Write a model's adapters, and nothing of its base, as peft does: its PeftModel.from_pretrained loads them.

    Args:
        model: one with a family and adapters.
        directory: made if needed; it must not hold weights yet.
        base: name or path of the model without the adapters, for tools that look for it. Of one that a conversion
            has yet to bring to its place, that place is named.
        tokenizer: its files are copied beside them.

    Raises:
        CheckpointError: the model has no adapters or no family, the directory holds weights, or a file cannot be
            written.
    """
    family = require_family(model)
    adapted = _adapted(model)
    if not adapted:
        raise CheckpointError("the model has no adapters to save: apply_lora puts them in")
    if any(module.lora_a.weight.is_meta for module in adapted.values()):
        raise CheckpointError("the model's adapters have no memory yet: reset_adapters gives it to them")
    folder = prepare_folder(directory)
    places = places_by_name(model)
    modules = their_modules(family.hf, model.config, {name: place.shape for name, place in places.items()})
    tensors: dict[str, Tensor] = {}
    sizes: dict[str, tuple[int, float]] = {}
    parts: dict[str, dict[str, int]] = {}
    for module in modules.values():
        own = {path: adapted[path] for path in module.paths if path in adapted}
        if own:
            tensors.update(fused_tensors(module, own, places, lending_of(model)))
            sizes[module.name] = fused_size(module.name, own)
            if len(module.paths) > 1:
                parts[module.name] = {path: adapter.rank for path, adapter in own.items()}
    token_parts, token_fields = token_tensors(model, family.hf)
    tensors.update(token_parts)
    first = next(iter(adapted.values()))
    content = describe_adapter(
        sizes,
        modules,
        base=str(Path(base).parent) if Path(base).name == STAGING else base,
        dropout=first.dropout,
        use_dora=first.use_dora,
        use_rslora=first.use_rslora,
    )
    content.update(token_fields)
    metadata = {PARTS: json.dumps(parts)} if parts else {}
    if any(isinstance(module, FrozenLinear) and module.nf4 is not None for module in model.modules()):
        metadata[QUANTIZATION] = "nf4"
    try:
        held = [_Held(name, tensor) for name, tensor in tensors.items()]
        write_safetensors(folder / WEIGHTS_FILES[0], held, metadata=metadata)
        write_json(folder / CONFIG_FILE, content)
        if tokenizer is not None:
            write_tokenizer(folder, tokenizer)
    except OSError as error:
        raise CheckpointError(f"the adapter cannot be written to {folder}: {error}") from error


def add_adapters(
    model: TransformerDecoder, settings: Mapping[str, Any], directory: Path | None, dtype: torch.dtype
) -> None:
    """Put adapters beside a model's matrices, unless its builder has done so; on the meta device, as it is built.

    Args:
        model: a decoder.
        settings: as `choose_lora` takes them.
        directory: of an adapter to go on from, which says what the settings leave open; None: there is none.
        dtype: of the adapters.

    Raises:
        ConfigError, CheckpointError: as `apply_lora` and `read_adapter_config`.
    """
    if not adapter_parameters(model):
        adapter = _open_adapter(model, directory) if directory else None
        apply_lora(model, choose_lora(settings, adapter.config if adapter else None))
        if adapter:
            apply_token_matrices(model, adapter.matrices, adapter.source)
    cast_adapters(model, dtype)


def load_adapter(
    model: TransformerDecoder,
    directory: Path | str,
    dtype: torch.dtype | None = None,
    *,
    base: Path | None = None,
) -> None:
    """Give a model the adapters in a directory, made here or by peft; everything is compared before anything changes.

    Args:
        model: its base is loaded. If it has adapters, they must be of the form of those in the files, whose values they
            get (their dropout stays what it is); if it has none, they are put in, and everything else is frozen.
        directory: with adapter_config.json, or a saved step or output directory of a run that has adapters.
        dtype: what adapters without memory, or put in here, become; None: what their matrix is.
        base: where the model was read from; a warning tells where the adapter calls another one its base.

    Raises:
        CheckpointError: there is no adapter, or it uses what is not supported, does not fit the model, or holds numbers
            that are not finite; all misfits are listed.
    """
    adapter = _open_adapter(model, directory)
    if any(place.device.type == "meta" for place in places_by_name(model).values()):
        raise CheckpointError("the base has no memory yet: load it before its adapter")
    if not (present := _adapted(model)):
        apply_lora(model, adapter.config)
        apply_token_matrices(model, adapter.matrices, adapter.source)
        present = _adapted(model)
    _compare(adapter, present)
    if base is not None and (doubt := base_difference(base, directory)):
        get_logger().warning(f"The adapter in {directory}: {doubt}")
    require_finite(adapter.source, adapter.pieces)
    fill_token_matrices(model, adapter.matrices, adapter.source, dtype)
    for piece in adapter.pieces:
        module = present[piece.path]
        a, b = (adapter.source.read(piece.names[kind]) for kind in ("a", "b"))
        _fill(module.lora_a, "weight", a[piece.ranks], module, dtype)
        _fill(module.lora_b, "weight", b[piece.rows, piece.ranks], module, dtype)
        if "magnitude" in piece.names:
            _fill(
                module, "magnitude", adapter.source.read(piece.names["magnitude"])[piece.rows], module, dtype
            )


def read_adapter_config(directory: Path | str, model: TransformerDecoder) -> LoRAConfig:
    """Return what `apply_lora` needs to make a model fit for `load_adapter`.

    Its `modules` are empty where all chosen matrices are adapted alike; else they are given one by one.

    Args:
        directory: as in `load_adapter`.
        model: of the adapter's family and sizes; it may be on the meta device.

    Raises:
        CheckpointError: as `load_adapter`.
    """
    return _open_adapter(model, directory).config


class _Held:
    """A tensor in memory, to be written."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name, self._tensor = name, tensor.contiguous()
        self.shape, self.dtype, self.nbytes = tuple(tensor.shape), tensor.dtype, tensor.nbytes

    def read(self) -> Tensor:
        return self._tensor


@dataclass(frozen=True)
class _Adapter:
    """An adapter in files, compared with the model."""

    source: WeightSource
    settings: AdapterSettings
    pieces: list[Piece]
    config: LoRAConfig
    matrices: list[TokenMatrix]


def _open_adapter(model: TransformerDecoder, directory: Path | str) -> _Adapter:
    family = require_family(model)
    folder = find_adapter_dir(directory)
    settings = read_settings(folder)
    file = find_adapter_weights(folder)
    source = open_weights(file)
    parts = read_metadata(file).get(PARTS)
    shapes = {name: place.shape for name, place in places_by_name(model).items()}
    # A model may go by other names where it is a part of a larger one.
    layouts = [
        (layout, their_modules(layout, model.config, shapes)) for layout in (family.hf, *family.hf_variants)
    ]
    layout, modules = max(
        layouts, key=lambda pair: sum(f"{PREFIX}{name}.lora_A.weight" in source for name in pair[1])
    )
    matrices, others = plan_token_matrices(source, settings, layout, model)
    pieces = plan_pieces(source, settings, parts, modules, possible_copies(layout, model), others)
    return _Adapter(source, settings, pieces, _describe(model, settings, pieces), matrices)


def _describe(model: TransformerDecoder, settings: AdapterSettings, pieces: list[Piece]) -> LoRAConfig:
    """Return the configuration that makes these adapters, matrix by matrix only where it cannot be said shorter."""
    leaves = {piece.path.rpartition(".")[2] for piece in pieces}
    modules = tuple(LoRAModule(piece.path, piece.rank, piece.alpha) for piece in pieces)
    config = LoRAConfig(
        rank=pieces[0].rank,
        alpha=pieces[0].alpha,
        dropout=settings.dropout,
        attn_modules=tuple(name for name in ATTN_MODULES if name in leaves),
        apply_to_mlp=not leaves.isdisjoint(MLP_MODULES),
        apply_to_output="output" in leaves,
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
    )
    says_all = set(chosen_modules(model, config)) == set(modules)
    return config if says_all else replace(config, modules=modules)


def _adapted(model: nn.Module) -> dict[str, LoRALinear]:
    return {plain_path(path): module for path, module in adapted_modules(model).items()}


def _compare(adapter: _Adapter, present: Mapping[str, LoRALinear]) -> None:
    pieces = {piece.path: piece for piece in adapter.pieces}
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


@torch.no_grad()
def _fill(owner: nn.Module, leaf: str, values: Tensor, module: LoRALinear, dtype: torch.dtype | None) -> None:
    held: nn.Parameter = getattr(owner, leaf)
    if not held.is_meta and dtype in (None, held.dtype):
        copy_into_(held, values)
        return
    fresh = torch.empty(held.shape, dtype=dtype or module.base_dtype, device=module.base_device).copy_(values)
    setattr(owner, leaf, nn.Parameter(fresh, requires_grad=held.requires_grad))
