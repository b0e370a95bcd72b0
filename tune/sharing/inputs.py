"""What goes into a run beside its config: data and weights, told by their content, and the modules of a recipe."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Sequence
from pathlib import Path

from tune.data.files import describe_files
from tune.errors import TuneError
from tune.sharing.private import Leaf
from tune.utils.paths import expand_path

__all__ = ["describe_input", "describe_inputs", "own_modules"]

# Settings that name what goes into a run.
_INPUTS = ("dataset", "checkpointer", "tokenizer", "teacher", "reference")
_MAX_BYTES = 1 << 30


def describe_inputs(leaves: Sequence[Leaf]) -> dict[str, str]:
    """Return, for each value of a config that is a file or folder here, a short text that changes with the content."""
    told = {leaf.key: describe_input(leaf.value) for leaf in leaves if leaf.key.startswith(_INPUTS)}
    return {key: text for key, text in told.items() if text is not None}


def describe_input(value: str) -> str | None:
    """Return what tells data or weights from others, whatever they are called; None where `value` is no file or folder.

    All bytes count; of more than a GiB the first and last of each file.
    """
    if not value:
        return None
    try:
        path = expand_path(value)
        files = [path] if path.is_file() else sorted(each for each in path.iterdir() if each.is_file())
        num_bytes = sum(file.stat().st_size for file in files)
        if num_bytes > _MAX_BYTES:
            return describe_files(files)
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    except (OSError, ValueError, TuneError):
        return None
    return f"{len(files)} files, {num_bytes} bytes, {digest.hexdigest()[:16]}" if files else None


def own_modules(recipe: Path) -> list[Path]:
    """Return the modules that lie beside somebody's own recipe and are imported by it, or by one another."""
    found: dict[Path, None] = {}
    waiting = [recipe]
    while waiting:
        try:
            tree = ast.parse(waiting.pop().read_bytes())
        except (SyntaxError, ValueError, OSError, RecursionError):
            continue
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += (
                [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            )
            for name in names:
                file = recipe.parent / f"{name.partition('.')[0]}.py"
                if file.is_file() and not file.is_symlink() and file != recipe and file not in found:
                    found[file] = None
                    waiting.append(file)
    return list(found)
