"""Adapters in files, in the layout of peft: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tune.checkpoints.adapter_config import (
    CONFIG_FILE,
    describe_adapter,
)
from tune.checkpoints.adapter_experts import (
    write_experts,
)
from tune.checkpoints.adapter_files import (
    QUANTIZATION,
    WEIGHTS_FILES,
    base_difference,
)
from tune.checkpoints.adapter_fusion import fused_size, fused_tensors
from tune.checkpoints.adapter_layout import (
    PARTS,
    require_finite,
    their_modules,
)
from tune.checkpoints.adapter_source import open_adapter, require_same_form
from tune.checkpoints.adapter_tokens import (
    apply_token_matrices,
    fill_token_matrices,
    token_tensors,
)
from tune.checkpoints.load import require_family
from tune.checkpoints.locate import STAGING
from tune.checkpoints.mapping import lending_of, places_by_name, plain_path, weight_shapes
from tune.checkpoints.save import TokenizerFiles, prepare_folder, write_tokenizer
from tune.checkpoints.writers import write_json, write_safetensors
from tune.errors import CheckpointError
from tune.modules import TransformerDecoder
from tune.modules.peft import (
    FrozenLinear,
    LoRAConfig,
    LoRAExperts,
    LoRALinear,
    adapted_modules,
    adapter_parameters,
    apply_lora,
    cast_adapters,
    choose_lora,
)
from tune.utils import get_logger
from tune.utils.sharding import copy_into_


def save_adapter(
    model: TransformerDecoder, directory: Path | str, base: str, tokenizer: TokenizerFiles | None = None
) -> None:
    """Write a model's adapters, and nothing of its base, as peft does: its PeftModel.from_pretrained loads them.

    Beside a model that was read out of a larger one, they are named as the larger one's modules are.

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
    layout = family.layout_of_modules(model.carried and model.carried.outer)
    shapes = weight_shapes(model)
    modules = their_modules(layout, model.config, shapes)
    tensors: dict[str, Tensor] = {}
    sizes: dict[str, tuple[int, float]] = {}
    parts: dict[str, dict[str, int]] = {}
    linears = {path: module for path, module in adapted.items() if isinstance(module, LoRALinear)}
    for module in modules.values():
        own = {path: linears[path] for path in module.paths if path in linears}
        if own:
            tensors.update(fused_tensors(module, own, places, lending_of(model)))
            sizes[module.name] = fused_size(module.name, own)
            if len(module.paths) > 1:
                parts[module.name] = {path: adapter.rank for path, adapter in own.items()}
    stacks = {path: module for path, module in adapted.items() if isinstance(module, LoRAExperts)}
    layouts = [layout, *(other for other in family.hf_variants if other.outer is layout.outer)]
    experts = write_experts(stacks, layouts, model.config, shapes)
    tensors.update(experts.tensors)
    parts.update(experts.parts)
    token_parts, token_fields = token_tensors(model, layout)
    tensors.update(token_parts)
    first = next(iter(adapted.values()))

    def said(name: str) -> str:  # beside which an adapter is
        return f"{name}.weight" if layout.adapted_weights and layout.adapted_weights in name else name

    weights = {said(name) for name in sizes} - sizes.keys()
    content = describe_adapter(
        {said(name): size for name, size in sizes.items()} | experts.sizes,
        [*map(said, modules), *experts.others],
        base=str(Path(base).parent) if Path(base).name == STAGING else base,
        dropout=0.0 if stacks or weights else first.dropout,  # peft refuses to load parameters with any
        use_dora=first.use_dora,
        use_rslora=first.use_rslora,
        in_full=layout.outer is not None,
        main=next(iter(experts.sizes.values()), None),
        parameters=experts.parameters | weights,
    )
    content.update(token_fields)
    if model.score is not None:
        content["task_type"] = "SEQ_CLS"
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
        adapter = open_adapter(model, directory) if directory else None
        apply_lora(model, choose_lora(settings, adapter.config if adapter else None))
        if adapter:
            apply_token_matrices(model, adapter.matrices, adapter.source)
    cast_adapters(model, dtype)
    if model.score is not None:
        model.score.to(dtype)


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
    adapter = open_adapter(model, directory)
    if any(place.device.type == "meta" for place in places_by_name(model).values()):
        raise CheckpointError("the base has no memory yet: load it before its adapter")
    if not (present := _adapted(model)):
        apply_lora(model, adapter.config)
        apply_token_matrices(model, adapter.matrices, adapter.source)
        present = _adapted(model)
    require_same_form(adapter, present)
    if base is not None and (doubt := base_difference(base, directory)):
        get_logger().warning(f"The adapter in {directory}: {doubt}")
    require_finite(adapter.source, adapter.tensor_names())
    fill_token_matrices(model, adapter.matrices, adapter.source, dtype)
    for stack in adapter.experts:
        for layer, values in zip(
            (present[stack.path].lora_a, present[stack.path].lora_b), stack.read(adapter.source), strict=True
        ):
            _fill(layer, "weight", values, present[stack.path], dtype)
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
    return open_adapter(model, directory).config


class _Held:
    """A tensor in memory, to be written."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name, self._tensor = name, tensor.contiguous()
        self.shape, self.dtype, self.nbytes = tuple(tensor.shape), tensor.dtype, tensor.nbytes

    def read(self) -> Tensor:
        return self._tensor


def _adapted(model: nn.Module) -> dict[str, LoRALinear | LoRAExperts]:
    return {plain_path(path): module for path, module in adapted_modules(model).items()}


@torch.no_grad()
def _fill(
    owner: nn.Module,
    leaf: str,
    values: Tensor,
    module: LoRALinear | LoRAExperts,
    dtype: torch.dtype | None,
) -> None:
    held: nn.Parameter = getattr(owner, leaf)
    if not held.is_meta and dtype in (None, held.dtype):
        copy_into_(held, values)
        return
    fresh = torch.empty(held.shape, dtype=dtype or module.base_dtype, device=module.base_device).copy_(values)
    setattr(owner, leaf, nn.Parameter(fresh, requires_grad=held.requires_grad))
