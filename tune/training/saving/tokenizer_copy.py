"""The tokenizer of a resumed run: it must outlive the saved step that it is found in."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tune.checkpoints import has_tokenizer
from tune.checkpoints.manifest import CHANGED_SINCE, check_files
from tune.checkpoints.save import WEIGHT_FILES
from tune.errors import CheckpointError
from tune.training.saving.saved_steps import SavedStep
from tune.utils.mesh import Mesh

__all__ = ["keep_tokenizer"]

FOLDER = ".tokenizer"


def keep_tokenizer(saved: SavedStep, mesh: Mesh) -> Path | None:
    """Return a folder beside the saved steps with all files of `saved`'s model or adapter but the weights, made anew.

    None where they are those of an adapter that was saved without a tokenizer: its base has it.

    A tokenizer's files are copied into each step that the run saves; the step it resumed from may have been deleted by
    then (`keep_last_n_checkpoints`). Every process must call this; the first one copies.

    Raises:
        CheckpointError: the files cannot be copied, or are no longer what was saved.
    """
    kept = saved.path.with_name(FOLDER)
    staged = saved.path.with_name(f"{FOLDER}.new")

    part = saved.adapter_dir if saved.adapter_dir.is_dir() else saved.model_dir

    def copy() -> None:
        try:
            shutil.rmtree(staged, ignore_errors=True)
            shutil.copytree(part, staged, ignore=shutil.ignore_patterns(*WEIGHT_FILES))
            # With one of its files gone since the step was chosen, a tokenizer may still load, as another one.
            check_files(saved.path, saved.step, part.name, without=WEIGHT_FILES)
            shutil.rmtree(kept, ignore_errors=True)
            os.rename(staged, kept)
        except CheckpointError as error:
            shutil.rmtree(staged, ignore_errors=True)
            raise CheckpointError(f"{error} {CHANGED_SINCE}") from error
        except OSError as error:
            shutil.rmtree(staged, ignore_errors=True)
            # A copied folder's error is a list of (from, to, why).
            first = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
            raise CheckpointError(
                f"the tokenizer of {saved.path} cannot be copied to {kept}: {first}. Saved steps are intact. Make room "
                "there, then go on with resume_from_checkpoint=true."
            ) from error

    mesh.from_rank_zero(copy)
    return kept if part == saved.model_dir or has_tokenizer(kept) else None
