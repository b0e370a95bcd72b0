"""`tune run` with many processes: torch's elastic agent starts them, in a thread beside the one that hears the user."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

from tune.cli.agent import POLL_S, Ranks
from tune.cli.launch_options import LaunchPlan
from tune.cli.run_file import Program
from tune.utils.cores import count_cores
from tune.utils.stop_signals import heeded_signals


def launch(program: Program, plan: LaunchPlan, *, again: Program, log_dir: Path | None) -> int:
    """Run `program` in all processes of `plan` on this machine, and return the exit code of the run.

    That is 0, or the code of the rank that failed first, or what the ranks return after a signal.

    Args:
        program: the recipe and its arguments.
        plan: how many processes, and how they meet.
        again: what to run after a failure, going on from the newest saved step.
        log_dir: where the output of all ranks but the first goes; None makes a temporary folder.

    Raises:
        TrainingError: the machines did not come together.
    """
    if "LOGLEVEL" not in os.environ:
        logging.disable(logging.CRITICAL)  # the agent says in forty lines what we say in one
    if plan.max_restarts:
        # The store that the agent would share with the ranks still holds the addresses of the dead ones.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // plan.nproc_per_node)))
    logs = _make_log_dir(log_dir)
    with tempfile.TemporaryDirectory(prefix="tune_run_", ignore_cleanup_errors=True) as run_dir:
        ranks = Ranks((program, again), plan, Path(run_dir), logs)
        before = {signum: signal.signal(signum, ranks.on_signal) for signum in heeded_signals()}
        agent = threading.Thread(target=ranks.work, daemon=True)
        try:
            agent.start()
            while (
                agent.is_alive()
                and not (ranks.pass_on_signals() and ranks.is_idle)
                and not ranks.is_too_late()
            ):
                agent.join(POLL_S)
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
        code = ranks.conclude()
    if code == 0 and logs != log_dir:
        shutil.rmtree(logs, ignore_errors=True)
    if agent.is_alive():
        # It waits for other machines, somewhere inside torch, and must not see the interpreter go.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _make_log_dir(wanted: Path | None) -> Path:
    """Return the folder for the ranks' logs: the wanted one, or else a temporary one."""
    if wanted is not None:
        with contextlib.suppress(OSError):  # the recipe can hardly write there either, and explains it better
            wanted.mkdir(parents=True, exist_ok=True)
            if all(os.access(path, os.W_OK) for path in (wanted, *wanted.glob("rank_*.log"))):
                return wanted
    return Path(tempfile.mkdtemp(prefix="tune_logs_"))
