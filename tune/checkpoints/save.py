"""From a model to files that other tools load as they stand."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tune.checkpoints.load import parameters_by_name, require_family, shared_shape
from tune.errors import CheckpointError
from tune.modules import Layout, TransformerDecoder
from tune.utils.paths import expand_path

_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "consolidated.*.pth")
_HF_DTYPES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


class TokenizerFiles(Protocol):
    """What a saved model needs of its tokenizer."""

    bos_id: int
    eos_id: int
    stop_ids: tuple[int, ...]

    def files(self) -> list[Path]: ...

    def write_settings(self, directory: Path) -> None: ...


def save_model(
    model: TransformerDecoder,
    directory: Path | str,
    *,
    tokenizer: TokenizerFiles | None = None,
    max_shard_bytes: int = 5 * 2**30,
    dtype: torch.dtype | None = None,
) -> None:
    """Write weights, config.json and the tokenizer's files in Hugging Face layout.

    Args:
        model: one with a family.
        directory: made if needed; it must not hold weights yet.
        tokenizer: its files are copied, the settings that other tools need beside them are added, and its BOS and
            stop ids written into the configuration.
        max_shard_bytes: size of one weight file; with more than one an index is written.
        dtype: what the weights are written in; None: as they are.

    Raises:
        CheckpointError: the model has no family, the directory holds weights, or a file cannot be written.
    """
    family = require_family(model)
    folder = _prepare(directory)
    first = next(model.parameters())
    config = {
        "architectures": [family.architectures[0]],
        "model_type": family.name,
        **family.write_hf_config(model.config),
        "torch_dtype": _HF_DTYPES[dtype or first.dtype],
        **_token_ids(tokenizer),
    }
    try:
        _write_shards(model, family.hf, folder, max_shard_bytes, dtype)
        _write_json(folder / "config.json", config)
        if tokenizer is not None:
            _write_tokenizer(folder, tokenizer)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the model cannot be written to {folder}: {error}") from error


def save_meta(
    model: TransformerDecoder,
    directory: Path | str,
    *,
    tokenizer: TokenizerFiles | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write consolidated.00.pth, params.json and the tokenizer's file in Meta's layout.

    Args:
        model: one of a family that has a Meta layout. A tied output matrix is written a second time.
        directory: made if needed; it must not hold weights yet.
        tokenizer: its model file is copied.
        dtype: what the weights are written in; None: as they are.

    Raises:
        CheckpointError: the family has no such layout, the directory holds weights, or a file cannot be written.
    """
    family = require_family(model)
    if family.meta is None or family.write_meta_config is None:
        raise CheckpointError(f"the {family.name} family has no Meta layout; save it in Hugging Face layout")
    folder = _prepare(directory)
    tensors = dict(_named_tensors(model, family.meta, dtype))
    if model.config.tie_word_embeddings:
        tensors[family.meta.tied_output] = tensors[family.meta.rules[0].theirs]
    partial = folder / ".consolidated.00.pth.part"
    try:
        torch.save(tensors, partial)
        os.replace(partial, folder / "consolidated.00.pth")
        _write_json(folder / "params.json", family.write_meta_config(model.config))
        if tokenizer is not None:
            shutil.copyfile(tokenizer.files()[0], folder / "tokenizer.model")
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"the model cannot be written to {folder}: {error}") from error


def _prepare(directory: Path | str) -> Path:
    folder = expand_path(directory)
    try:
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(f"{folder} is a file, where a directory for the model is needed")
        folder.mkdir(parents=True, exist_ok=True)
        held = [path.name for pattern in _WEIGHT_FILES for path in folder.glob(pattern)]
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be made: {error.strerror}") from error
    if held:
        raise CheckpointError(
            f"{folder} holds weights already ({', '.join(sorted(held)[:4])}); files of two models must not mix. "
            "Choose another directory, or remove them."
        )
    return folder


def _named_tensors(
    model: TransformerDecoder, layout: Layout, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor under its name in the layout, on the CPU; where nothing changes, without a copy."""
    parameters = parameters_by_name(model)
    for rules in layout.expand(model.config, parameters):
        parts = []
        for rule in rules:
            part = parameters[rule.ours][1].detach()
            if rule.to_theirs is not None:
                part = rule.to_theirs(part, model.config)
            parts.append(part.to("cpu", dtype).contiguous())
        yield rules[0].theirs, parts[0] if len(parts) == 1 else torch.cat(parts)


def _write_shards(
    model: TransformerDecoder, layout: Layout, folder: Path, max_bytes: int, dtype: torch.dtype | None
) -> None:
    plan = _plan_shards(model, layout, max_bytes, dtype)
    count = len(plan)
    names = (
        ["model.safetensors"]
        if count == 1
        else [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    )
    file_of = {tensor: file for file, tensors in zip(names, plan) for tensor in tensors}
    shard: dict[str, Tensor] = {}
    total_bytes = 0
    for tensor_name, tensor in _named_tensors(model, layout, dtype):
        shard[tensor_name] = tensor
        total_bytes += tensor.nbytes
        file = file_of[tensor_name]
        if len(shard) == len(plan[names.index(file)]):
            partial = folder / f".{file}.part"
            save_file(shard, partial, metadata={"format": "pt"})
            # safetensors makes files that only their owner can read; a model is made to be handed on.
            partial.chmod(0o666 & ~_umask())
            os.replace(partial, folder / file)
            shard = {}
    if count > 1:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": file_of}
        _write_json(folder / "model.safetensors.index.json", index)


def _plan_shards(
    model: TransformerDecoder, layout: Layout, max_bytes: int, dtype: torch.dtype | None
) -> list[list[str]]:
    """Return the tensor names of each file, filled in the order of the model."""
    parameters = parameters_by_name(model)
    plan: list[list[str]] = [[]]
    used = 0
    for rules in layout.expand(model.config, parameters):
        parameter = parameters[rules[0].ours][1]
        size = math.prod(shared_shape(rules, parameters)) * (dtype or parameter.dtype).itemsize
        if plan[-1] and used + size > max_bytes:
            plan.append([])
            used = 0
        plan[-1].append(rules[0].theirs)
        used += size
    return plan


def _write_tokenizer(folder: Path, tokenizer: TokenizerFiles) -> None:
    for file in tokenizer.files():
        # Other tools look for a SentencePiece model under this name only.
        shutil.copyfile(file, folder / ("tokenizer.model" if file.suffix == ".model" else file.name))
    tokenizer.write_settings(folder)
    if not (folder / "generation_config.json").exists():
        _write_json(folder / "generation_config.json", _token_ids(tokenizer))


def _token_ids(tokenizer: TokenizerFiles | None) -> dict[str, Any]:
    if tokenizer is None:
        return {}
    stops = list(tokenizer.stop_ids)
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": stops if len(stops) > 1 else tokenizer.eos_id}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
