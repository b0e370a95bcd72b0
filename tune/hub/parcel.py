"""What of a local folder goes to the hub: a model's or an adapter's files, and nothing else that lies there."""

from __future__ import annotations

import fnmatch
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune.checkpoints.locate import find_model_dir
from tune.errors import CheckpointError, HubError
from tune.hub.short_names import is_repository
from tune.utils.paths import expand_path

__all__ = ["Outgoing", "Parcel", "find_parcel", "is_local", "outgoing_files"]

ADAPTER_CONFIG = "adapter_config.json"
_TOKENIZER = [
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
]
_ABOUT = ["README.md", "LICENSE*", "NOTICE*", "USE_POLICY*"]
_SAFETENSORS = ["*.safetensors", "*.safetensors.index.json"]
_PICKLES = ["pytorch_model*.bin", "pytorch_model*.bin.index.json"]
# Keys in which tools note where a model was loaded from: often a path on somebody's machine.
_LOCAL_FOLDERS = ("checkpoints", "out", "output", "outputs", "models", "data", "datasets", "tmp")
_PLACE_KEYS = ("_name_or_path", "name_or_path", "base_model_name_or_path")


@dataclass(frozen=True)
class Parcel:
    """What a path stands for: the folder whose files are sent.

    Args:
        folder: holds the files.
        kind: "model" or "adapter".
    """

    folder: Path
    kind: str


@dataclass(frozen=True)
class Outgoing:
    """One file as it goes to the hub.

    Args:
        name: its name there.
        source: the local file, or the content itself where it is written for the hub.
    """

    name: str
    source: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size


def find_parcel(path: str | os.PathLike[str]) -> Parcel:
    """Return the model or adapter that `path` stands for.

    Args:
        path: an output directory (its latest step), a saved step, or a folder with a model or a PEFT adapter.

    Raises:
        CheckpointError: there is neither.
        HubError: the model is not in the layout other tools read.
    """
    folder = expand_path(path)
    if (folder / ADAPTER_CONFIG).is_file():
        return Parcel(folder, "adapter")
    try:
        found = find_model_dir(path)
    except CheckpointError:
        adapter = _find_adapter(folder)
        if adapter is None:
            raise
        return Parcel(adapter, "adapter")
    if not (found / "config.json").is_file():
        raise HubError(
            f"{found} is not in Hugging Face layout (no config.json), so other tools could not read it from the hub. "
            f"Convert it first: tune convert-ckpt {found} NEW_FOLDER"
        )
    return Parcel(found, "model")


def _find_adapter(folder: Path) -> Path | None:
    """Return the adapter of a saved step, or of the latest step of an output directory."""
    steps = sorted(folder.glob("step_*"), key=lambda step: (len(step.name), step.name), reverse=True)
    for step in (folder, folder / "latest", *steps):
        if (step / "adapter" / ADAPTER_CONFIG).is_file():
            return step / "adapter"
    return None


def outgoing_files(parcel: Parcel, base_model: str | None) -> list[Outgoing]:
    """Return the files of a parcel as they are sent, sorted by name, without places on this machine in them.

    Args:
        parcel: what is sent.
        base_model: owner/name of the model it was made from, if known; takes the place of a local path.

    Raises:
        CheckpointError: weights are missing, cut short, or unreadable.
    """
    folder = parcel.folder
    try:
        there = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from error
    if parcel.kind == "adapter":
        weights = [p for p in there if p.name in ("adapter_model.safetensors", "adapter_model.bin")][-1:]
        patterns = [ADAPTER_CONFIG, *_TOKENIZER, *_ABOUT]
    else:
        safetensors = [p for p in there if _fits(p.name, _SAFETENSORS) and not p.name.startswith("adapter_")]
        weights = safetensors or [p for p in there if _fits(p.name, _PICKLES)]
        patterns = ["config.json", "generation_config.json", *_TOKENIZER, *_ABOUT]
    if not any(not p.name.endswith(".json") for p in weights):
        raise CheckpointError(f"there are no weights in {folder}: nothing to upload")
    _check_weights([p for p in weights if not p.name.endswith(".json")], parcel)
    chosen = sorted({*weights, *(p for p in there if _fits(p.name, patterns))})
    return [Outgoing(path.name, _without_places(path, base_model)) for path in chosen]


def _fits(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _check_weights(files: list[Path], parcel: Parcel) -> None:
    """Open the weights, which tells files that are cut short or missing from those that are whole."""
    from tune.checkpoints.weights import open_weights  # imports torch

    open_weights(parcel.folder if parcel.kind == "model" else files)


def is_local(place: str) -> bool:
    """Tell whether `place` is a path on some machine rather than owner/name on the hub."""
    return not is_repository(place) or place.partition("/")[0] in _LOCAL_FOLDERS or os.path.exists(place)


def _without_places(path: Path, base_model: str | None) -> Path | bytes:
    """Return the file, or its content with the hub's name in place of a path on this machine."""
    if path.suffix != ".json" or "index" in path.name or path.stat().st_size > 10_000_000:
        return path
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return path
    if not isinstance(content, dict):
        return path
    changed = False
    for key in _PLACE_KEYS:
        value = content.get(key)
        if isinstance(value, str) and value and is_local(value):
            changed = True
            if base_model is not None:
                content[key] = base_model
            elif key == "base_model_name_or_path":
                content[key] = Path(value).name
            else:
                del content[key]
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode() if changed else path
