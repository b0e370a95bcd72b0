"""Where the weights are: from the path a person gives to the folder that holds a model."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from tune.checkpoints.manifest import check_saved_folder
from tune.errors import CheckpointError
from tune.utils.paths import expand_path

__all__ = ["find_model_dir"]

# Any of these makes a folder a model folder: Hugging Face layout, then Meta layout.
_MODEL_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "params.json",
    "*.pth",
    "torchtune_model*.pt",
)
# What takes long to read of them, and is checked where it is opened.
WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.pth", "*.pt")

# A model that is converted into a folder is written in this one inside it, and has this file once it is whole.
STAGING = ".converting"
COMPLETE_MARKER = ".whole"


def find_model_dir(path: str | os.PathLike[str]) -> Path:
    """Return the folder with the weights that ``path`` stands for.

    Args:
        path: A model folder (Hugging Face or Meta layout), a saved step (``OUTPUT_DIR/step_000123``, ``latest``,
            ``best``), whose ``model/`` is meant, or an output directory, whose ``latest`` step is meant.

    Raises:
        CheckpointError: There is no such folder, or no model in it; or it is a saved step's, and a file beside its
            weights is no longer what was saved.
    """
    try:
        found = _find(expand_path(path))
        check_saved_folder(found, without=WEIGHT_PATTERNS)
        return found
    except OSError as error:
        raise CheckpointError(f"{error.filename or path} cannot be read: {error.strerror}") from error


def _find(folder: Path) -> Path:
    if not folder.exists():
        # A dangling `latest` exists as a link and not as a folder: say where it points.
        hint = f" (a link to {os.readlink(folder)}, which is gone)" if folder.is_symlink() else ""
        raise CheckpointError(
            f"there is no folder {folder}{hint}. Give the folder that holds the weights; `tune download` fetches a "
            "model from the hub."
        )
    if not folder.is_dir():
        if folder.name in ("latest", "best"):
            return _find(folder.parent / _pointed_at(folder))
        raise CheckpointError(
            f"{folder} is a file; give the folder that holds it, with its config and tokenizer."
        )
    names = {entry.name for entry in folder.iterdir()}
    if STAGING in names and _is_on_its_way(folder / STAGING):
        return folder / STAGING
    if "adapter_config.json" in names and "config.json" not in names:
        raise CheckpointError(
            f"{folder} holds an adapter, which is nothing without its base: give the base here, and the adapter as "
            "adapter_checkpoint"
        )
    if _holds_model(folder):
        return folder
    if _holds_model(folder / "model"):
        return folder / "model"
    # A step holds no steps: what claims to would lead in circles.
    if folder.name != "latest" and (folder / "latest").exists():
        return _find(folder / "latest")
    steps = [
        step
        for step in sorted(folder.glob("step_*"), key=lambda p: (len(p.name), p.name))
        if _holds_model(step / "model")
    ]
    if steps:
        # No `latest` to go by (an older copy, or a link that did not survive copying): longer names are later steps.
        return steps[-1] / "model"
    if (folder / "adapter" / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} holds an adapter, and no model: give the model it was trained beside here, and "
            f"adapter_checkpoint={folder}; or make the two one model with `tune merge {folder}`"
        )
    found = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    listing = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    raise CheckpointError(
        f"no model was found in {folder}: it holds {listing or 'nothing'}. Expected config.json with *.safetensors or "
        "pytorch_model*.bin (Hugging Face), params.json with consolidated.*.pth (Meta), or a saved step with model/."
    )


def _pointed_at(pointer: Path) -> str:
    """Return the step that a text file called ``latest`` names, as on file systems without links."""
    name = pointer.read_text(encoding="utf-8", errors="replace").strip()
    if "/" in name or not name.startswith("step_"):
        raise CheckpointError(
            f"{pointer} should name a saved step beside it, such as step_000123, not {name[:80]!r}."
        )
    return name


def read_complete_marker(staging: Path) -> dict[str, Any] | None:
    """Return what stands in the file that declares a staged model whole; None where there is none that we write.

    A folder from elsewhere may hold one of anybody's: only files right in it, or one folder deeper, can be meant.
    """
    try:
        declared = json.loads((staging / COMPLETE_MARKER).read_text(encoding="utf-8"))
        files = declared["files"]
        paths = [PurePosixPath(file) for file in files]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    is_ours = isinstance(files, list) and bool(files)
    is_ours = is_ours and all(len(path.parts) in (1, 2) for path in paths)
    is_ours = is_ours and not any(path.is_absolute() or ".." in path.parts for path in paths)
    return dict(declared) if is_ours else None


def _is_on_its_way(staging: Path) -> bool:
    """Tell whether all of a model is staged, and whoever was bringing its files to their places was stopped."""
    declared = read_complete_marker(staging)
    return declared is not None and all((staging / file).is_file() for file in declared["files"])


def _holds_model(folder: Path) -> bool:
    return folder.is_dir() and any(next(folder.glob(pattern), None) is not None for pattern in _MODEL_FILES)
