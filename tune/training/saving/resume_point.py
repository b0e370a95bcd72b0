"""Which saved step a run goes on from."""

from __future__ import annotations

import os
from pathlib import Path

from tune.errors import CheckpointError
from tune.training.saving.saved_steps import SavedStep, list_saved_steps, verify_step
from tune.utils import expand_path, get_logger

__all__ = ["choose_step_to_resume", "find_newest_complete_step", "set_aside_later_steps"]

SUPERSEDED_PREFIX = "superseded_"


def find_newest_complete_step(output_dir: Path) -> SavedStep | None:
    """Return the newest saved step that is whole, or None; each newer one that is not is named in the log.

    Raises:
        CheckpointError: this user may not read a newer one, so that nobody knows whether it is whole.
    """
    for saved in reversed(list_saved_steps(output_dir)):
        try:
            verify_step(saved)
        except CheckpointError as error:
            if isinstance(error.__cause__, PermissionError):
                # Going on from an older one, the run would write over it.
                raise CheckpointError(
                    f"{error} It may be whole, so no older step takes its place: let this user read all of "
                    f"{saved.path}, or move it elsewhere."
                ) from error
            get_logger().warning(f"Skipping a damaged saved step: {error}")
            continue
        return saved
    return None


def choose_step_to_resume(output_dir: Path, resume: bool, name: str | None = None) -> SavedStep | None:
    """Return the saved step a run goes on from, or None for a run that starts at the beginning.

    Args:
        output_dir: where this run's steps go.
        resume: whether to go on at all.
        name: a step to go on from in place of the newest complete one: "step_000100".

    Raises:
        CheckpointError: the directory holds another run's steps and `resume` is false; or the step to go on from
            is missing, damaged or may not be read.
    """
    steps = list_saved_steps(output_dir)
    if not resume:
        if steps:
            num_steps = f"{len(steps)} saved steps" if len(steps) > 1 else "a saved step"
            raise CheckpointError(
                f"{output_dir} already holds {num_steps} of an earlier run, the newest "
                f"{steps[-1].path.name}. Go on from there with resume_from_checkpoint=true, or choose another "
                "output_dir, or delete this one."
            )
        return None
    if name is not None:
        # A path is taken where it leads to one of these steps, and not for the step of that name.
        at = {name, str(expand_path(name).resolve())}
        named = [saved for saved in steps if at & {saved.path.name, str(saved.path.resolve())}]
        if not named:
            there = ", ".join(saved.path.name for saved in steps) or "none"
            raise CheckpointError(
                f"recipe_checkpoint {name!r} is not a saved step in {output_dir}; there are: {there}. "
                "Remove it to go on from the newest."
            )
        verify_step(named[0])
        return named[0]
    if not steps:
        get_logger().warning(
            f"Nothing to resume in {output_dir}: no step was saved there. Starting at the beginning."
        )
        return None
    newest = find_newest_complete_step(output_dir)
    if newest is None:
        raise CheckpointError(
            f"none of the {len(steps)} saved steps in {output_dir} is whole, so there is nothing to resume from. "
            "Choose another output_dir, or delete this one, to start anew."
        )
    return newest


def set_aside_later_steps(chosen: SavedStep) -> None:
    """Rename the saved steps that are later than the one a run goes on from by name: they are of a run taken back.

    Left where they are, the next resume would take one of them for the newest.

    Raises:
        CheckpointError: one cannot be renamed.
    """
    for saved in list_saved_steps(chosen.path.parent):
        if saved.step <= chosen.step:
            continue
        aside = saved.path.with_name(f"{SUPERSEDED_PREFIX}{saved.path.name}")
        number = 2
        while aside.exists():
            aside = saved.path.with_name(f"{SUPERSEDED_PREFIX}{saved.path.name}_{number}")
            number += 1
        try:
            os.rename(saved.path, aside)
        except OSError as error:
            raise CheckpointError(
                f"{saved.path} is later than {chosen.path.name}, which this run goes on from, and cannot be renamed "
                f"to {aside.name}: {error.strerror}."
            ) from error
        get_logger().warning(
            f"{saved.path.name} is later than {chosen.path.name}, which this run goes on from: renamed to {aside.name}"
        )
