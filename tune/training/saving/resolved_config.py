"""The file that says exactly what ran, and runs it again."""

from __future__ import annotations

from typing import Any

from tune.checkpoints.writers import replacing
from tune.config.resolution import dump_params
from tune.errors import CheckpointError
from tune.training.saving.checkpoints import Checkpoints

__all__ = ["write_resolved_config"]


def write_resolved_config(params: Any, checkpoints: Checkpoints, **drawn: Any) -> None:
    """Write every parameter with its value, and, where the params came from a config, where it was set.

    Args:
        params: a params object; built in Python, it is written without provenance.
        checkpoints: of the run; `config.yaml` is written beside them, and feeding it back reproduces the run.
        **drawn: values the run chose where a field was null, such as its seed.

    Raises:
        CheckpointError: the file cannot be written.
    """
    if not checkpoints.mesh.is_rank_zero:
        return
    path = checkpoints.output_dir / "config.yaml"
    text = dump_params(params, drawn=drawn)

    def write() -> None:
        try:
            with replacing(path) as staged:
                staged.write_text(text, encoding="utf-8")
        except OSError as error:
            raise CheckpointError(
                f"cannot write {path}: {error.strerror}. Make room there, or choose another output_dir."
            ) from error

    write()
    checkpoints.write_config = write
