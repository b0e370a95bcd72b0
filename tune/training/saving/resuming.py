"""Going on from a saved step: what was saved goes into what now stands, unless it is another run's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tune.training.saving.fingerprint import check_fingerprint
from tune.training.saving.run_state import Stateful, load_run_state
from tune.training.saving.saved_steps import SavedStep

__all__ = ["resume_state"]


def resume_state(
    step: SavedStep,
    saved: Mapping[str, Any],
    fingerprint: Mapping[str, str],
    model: nn.Module,
    optimizer: Optimizer,
    device: torch.device,
    parts: Mapping[str, Stateful],
    *,
    allow_changes: bool,
) -> None:
    """Put a saved step's state into optimizer, parts and random generators; the weights are there already.

    Every process must call this, after everything that draws random numbers.

    Args:
        step: to go on from.
        saved: where it stood, from `read_run`.
        fingerprint: of the run as it is now.
        model, optimizer, device, parts: as in `load_run_state`.
        allow_changes: go on with other settings or data, having said which.

    Raises:
        CheckpointError: the step is of another run, or cannot be read.
    """
    changed = check_fingerprint(
        saved["fingerprint"], fingerprint, str(step.path), allow_changes=allow_changes
    )
    load_run_state(step.state_dir, model, optimizer, device, parts, settings_changed=bool(changed))
