"""The state of a run written in one go, as `Checkpoints` does in two."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tune.training.saving.run_state import capture_run_state, write_run_state
from tune.utils.mesh import Mesh


def save_run_state(
    directory: Path, model: nn.Module, optimizer: Optimizer, run: Mapping[str, Any], parts: Mapping[str, Any]
) -> None:
    write_run_state(directory, capture_run_state(model, optimizer, run, parts), Mesh())
