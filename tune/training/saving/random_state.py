"""The state of every random generator a run may draw from."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch

from tune.utils.seed import MAX_SEED, set_seed

__all__ = ["get_rng_state", "seed_step", "set_rng_state"]


def get_rng_state(device: torch.device) -> dict[str, Any]:
    """Return the state of every random generator a run may draw from: Python, numpy, torch, the GPU."""
    numpy_state = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy_key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
        "numpy_rest": (
            int(numpy_state["state"]["pos"]),
            int(numpy_state["has_gauss"]),
            float(numpy_state["gauss"]),
        ),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Put every random generator where `get_rng_state` found it."""
    random.setstate(state["python"])
    position, has_gauss, gauss = state["numpy_rest"]
    key = state["numpy_key"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Make every random generator one of this step and process: the numbers before it leave no trace.

    Args:
        seed: of the run.
        step: optimizer steps taken.
        rank: of this process.
    """
    # A hash keeps (seed 0, step 1) apart from (seed 1, step 0), which a sum would not.
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    set_seed(int.from_bytes(digest, "little") % (MAX_SEED + 1))
