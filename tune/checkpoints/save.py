"""From a model to files that other tools load as they stand."""

from __future__ import annotations

import math
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from tune.checkpoints.carried import Carried
from tune.checkpoints.load import require_family
from tune.checkpoints.mapping import LayoutTensor, ModelWeights, tensors_in_layout
from tune.checkpoints.writers import write_json, write_pickle, write_shards
from tune.errors import CheckpointError
from tune.modules import DecoderConfig, Family, TransformerDecoder
from tune.utils.paths import expand_path

MAX_SHARD_BYTES = 5 * 2**30
WEIGHT_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "consolidated.*.pth"),
    "torchtune_model*.pt",
)


class TokenizerFiles(Protocol):
    """What a saved model needs of its tokenizer."""

    bos_id: int
    eos_id: int
    pad_id: int
    stop_ids: tuple[int, ...]

    def files(self) -> list[Path]: ...

    def write_settings(self, directory: Path) -> None: ...


def save_model(
    model: TransformerDecoder,
    directory: Path | str,
    *,
    tokenizer: TokenizerFiles | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dtype: torch.dtype | None = None,
) -> None:
    """Write weights, config.json and the tokenizer's files in Hugging Face layout.

    A model that was read out of a larger one is written as that one: under its names, with its configuration, and with
    what else it held copied byte for byte.

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
    folder = prepare_folder(directory)
    carried: Carried | None = model.carried
    layout = family.hf if carried is None else carried.layout
    tensors = tensors_in_layout(ModelWeights(model), layout, model.config, dtype=dtype)
    config = describe_model(family, model.config, tensors, carried)
    ids = token_ids(tokenizer)
    if model.score is not None and tokenizer is not None:
        ids["pad_token_id"] = tokenizer.pad_id  # by which transformers finds a text's last token
    config = config | ids if carried is None else carried.with_token_ids(config, ids)
    try:
        write_shards(folder, [*tensors, *(carried.tensors if carried else ())], max_shard_bytes)
        write_json(folder / "config.json", config)
        if carried is not None:
            carried.write_files(folder)
        if tokenizer is not None:
            write_tokenizer(folder, tokenizer)
    except OSError as error:
        raise CheckpointError(f"the model cannot be written to {folder}: {error}") from error


def save_meta(
    model: TransformerDecoder,
    directory: Path | str,
    *,
    tokenizer: TokenizerFiles | None = None,
) -> None:
    """Write consolidated.00.pth, params.json and the tokenizer's file in Meta's layout.

    Args:
        model: one of a family that has a Meta layout. A tied output matrix is written a second time.
        directory: made if needed; it must not hold weights yet.
        tokenizer: its tokenizer.model is copied, or else all of its files.

    Raises:
        CheckpointError: the family has no such layout, the directory holds weights, or a file cannot be written.
    """
    family = require_family(model)
    if family.meta is None or family.write_meta_config is None:
        raise CheckpointError(f"the {family.name} family has no Meta layout; save it in Hugging Face layout")
    folder = prepare_folder(directory)
    tensors = tensors_in_layout(ModelWeights(model), family.meta, model.config, repeat_tied=True)
    params = family.write_meta_config(model.config)
    try:
        write_pickle(folder / "consolidated.00.pth", tensors)
        write_json(folder / "params.json", params)
        if tokenizer is not None:
            files = tokenizer.files()
            # Meta knows one file; a tokenizer of another form goes along as it is.
            _copy_tokenizer([file for file in files if file.suffix == ".model"][:1] or files, folder)
    except OSError as error:
        raise CheckpointError(f"the model cannot be written to {folder}: {error}") from error


def describe_model(
    family: Family, config: DecoderConfig, tensors: list[LayoutTensor], carried: Carried | None = None
) -> dict[str, Any]:
    """Return the content of config.json, without what belongs to a tokenizer.

    Args:
        family: the model's.
        config: its sizes.
        tensors: as they are written; the type of most of their bytes is the one that is named.
        carried: what the model's checkpoint held beside it; its description is then kept, and brought up to date.

    Raises:
        CheckpointError: the family's config.json has no words for a constant of the model.
    """
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    dtype = str(max(sizes, key=lambda dtype: sizes[dtype])).removeprefix("torch.")
    content = (
        carried.describe(family, config, dtype)
        if carried is not None
        else {
            "architectures": [family.architectures[0]],
            "model_type": family.name,
            **family.write_hf_config(config),
            "torch_dtype": dtype,
        }
    )
    _check_expressed(family, config, content)
    return content


def _check_expressed(family: Family, config: DecoderConfig, content: dict[str, Any]) -> None:
    """Read what is to be written: a model built by hand may have what its family's files cannot say."""
    try:
        again = family.read_hf_config(content)
    except CheckpointError as error:
        raise CheckpointError(
            f"no config.json of the {family.name} family says what this model is: {error}"
        ) from error
    lost = [
        f"{field.name} {getattr(config, field.name)!r}, which would be read as {getattr(again, field.name)!r}"
        for field in fields(config)
        if not _is_same(getattr(config, field.name), getattr(again, field.name))
    ]
    if lost:
        raise CheckpointError(
            f"config.json of the {family.name} family cannot express this model; nothing was written.\n  "
            + "\n  ".join(lost)
        )


def _is_same(left: object, right: object) -> bool:
    """Whether two constants are the same but for the last digits, which a way there and back may cost."""
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-9)
    if is_dataclass(left) and type(left) is type(right):
        return all(_is_same(value, getattr(right, name)) for name, value in vars(left).items())
    return left == right


def prepare_folder(directory: Path | str) -> Path:
    folder = expand_path(directory)
    try:
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(f"{folder} is a file, where a directory for the model is needed")
        folder.mkdir(parents=True, exist_ok=True)
        held = [path.name for pattern in WEIGHT_FILES for path in folder.glob(pattern)]
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be made: {error.strerror}") from error
    if held:
        raise CheckpointError(
            f"{folder} holds weights already ({', '.join(sorted(held)[:4])}); files of two models must not mix. "
            "Choose another directory, or remove them."
        )
    return folder


def write_tokenizer(folder: Path, tokenizer: TokenizerFiles) -> None:
    _copy_tokenizer(tokenizer.files(), folder)
    tokenizer.write_settings(folder)
    if not (folder / "generation_config.json").exists():
        write_json(folder / "generation_config.json", token_ids(tokenizer))


def _copy_tokenizer(files: list[Path], folder: Path) -> None:
    for file in files:
        # Other tools look for a SentencePiece model under this name only.
        shutil.copyfile(file, folder / ("tokenizer.model" if file.suffix == ".model" else file.name))


def token_ids(tokenizer: TokenizerFiles | None) -> dict[str, Any]:
    """Return what config.json says of a tokenizer."""
    if tokenizer is None:
        return {}
    stops = list(tokenizer.stop_ids)
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": stops if len(stops) > 1 else tokenizer.eos_id}
