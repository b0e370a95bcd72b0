"""What of a local folder goes to the hub: a model's or an adapter's files, and nothing else that lies there."""

from __future__ import annotations

import fnmatch
import json
import os
from pathlib import Path

from huggingface_hub import CommitOperationAdd

from tune.checkpoints.adapter_config import CONFIG_FILE
from tune.checkpoints.config_fields import read_json
from tune.checkpoints.locate import find_model_dir
from tune.checkpoints.side_files import TOKENIZER_FILES
from tune.errors import CheckpointError, HubError
from tune.hub.short_names import is_repository
from tune.utils.paths import expand_path

__all__ = ["find_upload_folder", "is_local", "kind_of", "task_of", "upload_files"]

_SMALL_FILES = (*TOKENIZER_FILES, "README.md", "LICENSE*", "NOTICE*", "USE_POLICY*")
# Keys in which tools note where a model was loaded from: often a path on somebody's machine.
_PLACE_KEYS = ("_name_or_path", "name_or_path", "base_model_name_or_path")
_LOCAL_FOLDERS = ("checkpoints", "out", "output", "outputs", "models", "data", "datasets", "tmp")


def find_upload_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder of the model or adapter that `path` stands for.

    Args:
        path: an output directory (its latest step), a saved step, or a folder with a model or a PEFT adapter.

    Raises:
        CheckpointError: there is neither.
        HubError: the model is not in the layout other tools read.
    """
    folder = expand_path(path)
    if kind_of(folder) == "adapter":
        return folder
    try:
        found = find_model_dir(path)
    except CheckpointError:
        for adapter in (folder / "adapter", folder / "latest" / "adapter"):
            if kind_of(adapter) == "adapter":
                return adapter
        raise
    if not (found / "config.json").is_file():
        raise HubError(
            f"{found} is not in Hugging Face layout (no config.json), so other tools could not read it from the hub. "
            f"Convert it first: tune convert-ckpt {found} NEW_FOLDER"
        )
    return found


def kind_of(folder: Path) -> str:
    """Return what `folder` holds: "adapter" for PEFT's layout, else "model"."""
    return "adapter" if (folder / CONFIG_FILE).is_file() else "model"


def task_of(folder: Path) -> str:
    """Return what the hub calls what a model does: one that holds more than text is asked with pictures as well."""
    try:
        sees = read_json(folder / "config.json").get("vision_config") is not None
    except CheckpointError:
        sees = False
    return "image-text-to-text" if sees else "text-generation"


def upload_files(folder: Path, base_model: str | None) -> list[CommitOperationAdd]:
    """Return the files of a folder as they are sent, without places on this machine in them.

    Args:
        folder: with a model or an adapter.
        base_model: owner/name of the model it was made from, if known; takes the place of a local path.

    Raises:
        CheckpointError: weights are missing, cut short, or unreadable.
    """
    from tune.checkpoints.weights import open_weights  # imports torch

    adapter = kind_of(folder) == "adapter"
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from error
    if adapter:
        weights = _matching(names, "adapter_model.bin", "adapter_model.safetensors")[-1:]
    else:
        safetensors = [n for n in _matching(names, "*.safetensors") if not n.startswith("adapter_")]
        weights = safetensors or _matching(names, "pytorch_model*.bin")
    if not weights:
        raise CheckpointError(f"there are no weights in {folder}: nothing to upload")
    # Opened, which tells files that are cut short or missing from those that are whole.
    open_weights([folder / name for name in weights] if adapter else folder)
    indexes = [] if adapter else _matching(names, f"*{Path(weights[0]).suffix}.index.json")
    configs = [CONFIG_FILE] if adapter else ["config.json"]
    chosen = {*weights, *indexes, *_matching(names, *configs, *_SMALL_FILES)}
    return [CommitOperationAdd(name, _without_places(folder / name, base_model)) for name in sorted(chosen)]


def _matching(names: list[str], *patterns: str) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def is_local(place: str) -> bool:
    """Tell whether `place` is a path on some machine rather than owner/name on the hub."""
    return not is_repository(place) or place.partition("/")[0] in _LOCAL_FOLDERS or os.path.exists(place)


def _without_places(path: Path, base_model: str | None) -> Path | bytes:
    """Return the file, or its content with the hub's name in place of a path on this machine."""
    if path.suffix != ".json" or "index" in path.name or path.stat().st_size > 10_000_000:
        return path
    try:
        content = read_json(path)
    except CheckpointError:
        return path
    noted = {key: content[key] for key in _PLACE_KEYS if isinstance(content.get(key), str) and content[key]}
    places = {key: value for key, value in noted.items() if is_local(value)}
    for key, value in places.items():
        if base_model is not None:
            content[key] = base_model
        elif key == "base_model_name_or_path":
            content[key] = Path(value).name
        else:
            del content[key]
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode() if places else path
