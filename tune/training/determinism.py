"""Whether a run, started again the same way, would give the same weights bit for bit; and how to make it."""

from __future__ import annotations

import os

import torch

from tune.config.component import Component
from tune.utils import get_logger
from tune.utils.mesh import Mesh

__all__ = ["describe_repeatability", "make_deterministic", "nondeterminism"]

# cuBLAS takes the same way every time with workspaces of fixed sizes only (its manual, "Results reproducibility").
_CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_FIXED = (":4096:8", ":16:8")


def make_deterministic(enabled: bool = True) -> None:
    """Let torch take, for the rest of this process, only ways that give the same result each time; if enabled.

    Slower on a GPU: attention's backward pass adds up in order. An operation that has no such way raises. Call it
    before anything runs on a GPU: cuBLAS reads its setting when it starts.
    """
    if not enabled:
        return
    is_late = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if is_late and os.environ.get(_CUBLAS_VARIABLE) not in _CUBLAS_FIXED:
        get_logger().warning(
            f"{_CUBLAS_VARIABLE} comes too late, the GPU is in use: set it to {_CUBLAS_FIXED[0]} before starting."
        )
    os.environ.setdefault(_CUBLAS_VARIABLE, _CUBLAS_FIXED[0])
    torch.use_deterministic_algorithms(True)
    # Filling what is about to be written would cost a pass over memory; nothing here reads before it writes.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of the module


def nondeterminism(seed: int | None, optimizer: Component, device: torch.device) -> list[str]:
    """Return what in this very run would break its repetition bit for bit; [] where nothing would.

    Meant is the same command on the same machine and versions, with as many processes and threads.

    Args:
        seed: as it was given; None draws one.
        optimizer: its class and arguments.
        device: where the run takes place.
    """
    causes = []
    if seed is None:
        causes.append("seed is null, so each run draws another (config.yaml in output_dir names it)")
    is_strict = torch.are_deterministic_algorithms_enabled()
    is_strict = is_strict and not torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type == "cuda":
        if not is_strict:
            causes.append(
                "torch's deterministic algorithms are off, so attention's backward pass adds up in any order"
            )
        elif os.environ.get(_CUBLAS_VARIABLE) not in _CUBLAS_FIXED:
            causes.append(
                f"{_CUBLAS_VARIABLE} is not {' or '.join(_CUBLAS_FIXED)}, so cuBLAS may change its ways"
            )
    elif device.type != "cpu":
        causes.append(f"torch has no deterministic algorithms on {device.type}")
    if device.type != "cpu" and optimizer.path.startswith("bitsandbytes"):
        causes.append("bitsandbytes does not say whether its kernels are deterministic")
    return causes


def describe_repeatability(seed: int | None, optimizer: Component, mesh: Mesh) -> str:
    """Return a line that says whether the run can be repeated, and under which conditions or why not.

    Args:
        seed, optimizer: as in `nondeterminism`.
        mesh: the processes of the run.
    """
    device = mesh.device
    causes = nondeterminism(seed, optimizer, device)
    if causes:
        return f"Would not repeat bit for bit: {'; '.join(causes)}"
    conditions = ["seed", "machine"]
    if mesh.world_size > 1:
        conditions.append(f"{mesh.world_size} processes")
    if device.type == "cpu":
        # Sums are cut up among threads, and rounded where they are cut.
        threads = torch.get_num_threads()
        conditions.append(f"{threads} thread{'s' * (threads > 1)} (OMP_NUM_THREADS)")
    listed = f"{', '.join(conditions[:-1])} and {conditions[-1]}"
    return f"Repeatable: the same {listed} give the same weights, bit for bit"
