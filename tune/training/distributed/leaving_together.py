"""`fail_together` under the name and arguments that `tune.training.saving` knows."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from tune.training.distributed.collective_failure import fail_together
from tune.utils.mesh import current_mesh

__all__ = ["leaving_together"]


def leaving_together(model: Any) -> AbstractContextManager[None]:
    """See `fail_together`."""
    return fail_together(model, current_mesh())
