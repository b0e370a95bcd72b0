"""Commands on many processes, as a user types them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests import warm_python

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 1500  # seconds; nothing here takes a tenth of it on a quiet machine


def start(
    num_processes: int,
    recipe: Path | str,
    *arguments: str,
    log: Path | None = None,
    before: Callable[[], None] | None = None,
    popen: Callable[..., subprocess.Popen[str]] = warm_python.Popen,
) -> subprocess.Popen[str]:
    """Start a recipe on so many processes, in a session of its own so that all of it can be killed.

    Its output goes to `log`; without one, to pipes. `before` is called in the new process. `popen` may be
    subprocess's, for a start from nothing.
    """
    count = ["--nproc_per_node", str(num_processes)] if num_processes > 1 else []
    with open(log or os.devnull, "w") as file:
        stream = file if log else subprocess.PIPE
        return popen(
            [sys.executable, "-m", "tune", "run", *count, str(recipe), *arguments],
            # One thread per process: two cores are shared by all of them.
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=stream,
            stderr=stream,
            text=True,
            start_new_session=True,
            preexec_fn=before,
        )


def enter_network() -> None:
    """Go over to the network namespace that the environment names, as `ip netns exec` does; for `preexec_fn`."""
    with open(f"/var/run/netns/{os.environ['MACHINE']}") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")


def children_of(pid: int) -> list[int]:
    """Return the processes below this one, from the kernel."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:  # it has ended meanwhile
                continue
    return found[1:]


def rank_of(pid: int, rank: int) -> int:
    """Return the process of a rank below the launcher; its loader's workers come after it."""
    return next(
        child for child in children_of(pid) if Path(f"/proc/{child}/comm").read_text() == f"rank {rank}\n"
    )


def launch(
    num_processes: int, recipe: Path | str, *arguments: str, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a recipe on so many processes to its end; `before` is called in the new process."""
    process = start(num_processes, recipe, *arguments, before=before)
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
