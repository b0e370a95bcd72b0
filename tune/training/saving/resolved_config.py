"""The file that says exactly what ran, and runs it again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tune
from tune.checkpoints.writers import replacing
from tune.config.resolution import dump_params
from tune.errors import CheckpointError
from tune.training.saving.checkpoints import Checkpoints

__all__ = ["write_resolved_config"]

_HEAD = f"# Written by tune {tune.__version__}: every parameter of a run, and where its value came from."
_KEY = re.compile(r"^([A-Za-z_]\w*):", re.MULTILINE)


def write_resolved_config(params: Any, checkpoints: Checkpoints, **drawn: Any) -> None:
    """Write every parameter with its value, and, where the params came from a config, where it was set.

    Args:
        params: a params object; built in Python, it is written without provenance.
        checkpoints: of the run; `config.yaml` is written beside them, and feeding it back reproduces the run.
        **drawn: values the run chose where a field was null, such as its seed.

    Raises:
        CheckpointError: the file cannot be written, or one that is none of ours has its name.
    """
    if not checkpoints.mesh.is_rank_zero:
        return
    path = checkpoints.output_dir / "config.yaml"
    text = f"{_HEAD}\n\n{dump_params(params, drawn=drawn)}"

    def write() -> None:
        try:
            if not _is_own(path, params):
                raise CheckpointError(
                    f"{path} is no configuration of tune's, so it is left as it is. Choose another output_dir, or move "
                    "it away."
                )
            with replacing(path) as staged:
                staged.write_text(text, encoding="utf-8")
        except OSError as error:
            raise CheckpointError(
                f"cannot write {path}: {error.strerror}. Make room there, or choose another output_dir."
            ) from error

    write()
    checkpoints.write_config = write


def _is_own(path: Path, params: Any) -> bool:
    """Tell whether what is at `path`, if anything, has mostly parameters for its keys."""
    if not path.is_file():
        return not path.is_dir()
    held = path.read_text(encoding="utf-8", errors="replace")
    keys = set(_KEY.findall(held))
    return not held.strip() or 2 * len(keys & {*vars(params), "recipe"}) > len(keys)
