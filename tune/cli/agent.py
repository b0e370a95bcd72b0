"""torch's elastic agent with what a user expects of `tune run` beside it: signals passed on, failures told, no orphans.

The agent brings the machines together, numbers the ranks, starts them, ends all when one fails, and starts them again.
It would also answer every signal by ending the ranks within seconds; so it runs in a thread of its own, where it gets
no signals, and the main thread passes them on and says how the run ended.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

import tune
from tune.cli.arguments import UsageError
from tune.cli.exit_codes import EXIT_FAILED
from tune.cli.launch_options import LaunchPlan
from tune.cli.rank import log_path
from tune.cli.rank_report import STOP_CODES, RankEnd, explain, find_first, is_certain, read_end
from tune.cli.rendezvous import find_address, wait_for_host
from tune.cli.run_file import Program
from tune.cli.stall import StallWatch, heartbeat_path
from tune.cli.terminal import paint, say
from tune.errors import TrainingError, first_line
from tune.utils.stop_signals import STOP_SIGNALS

POLL_S = 0.05
_JOIN_TIMEOUT_S = 600  # torch's, for the machines to come together
_SHOW_AFTER_S = 2.0  # from the first failure
_KILL_AFTER_S = 10.0  # from the second Ctrl-C, which asks to stop at once; from the failure of another rank
# tune may stand in a clone that is not installed, and must come from the place this one came from. The place is on
# the path for that import alone, so that nothing in it can take another package's name.
_RANK_CODE = (
    "import sys; sys.path.insert(0, {home!r}); import tune; del sys.path[0]; "
    "from tune.cli.rank import main; main()"
)


class _Stopped(Exception):
    """A stop was asked for: nothing is started any more."""


class Ranks(LocalElasticAgent):
    """The ranks of this machine: torch's agent in one thread, what the user does and sees in the main one."""

    def __init__(
        self, programs: tuple[Program, Program], plan: LaunchPlan, run_dir: Path, log_dir: Path
    ) -> None:
        code = _RANK_CODE.format(home=str(Path(tune.__file__).resolve().parent.parent))
        words = ("-P", "-c", code, str(run_dir / "task"), str(programs[0].file))
        self._spec = WorkerSpec(
            role="rank",
            local_world_size=plan.nproc_per_node,
            entrypoint=sys.executable,
            args=tuple(word.replace("$", "$$") for word in words),  # the agent replaces $-words
            rdzv_handler=None,  # type: ignore[arg-type]  # follows in `work`: it waits for the others
            max_restarts=plan.max_restarts,
            monitor_interval=0.1,
        )
        super().__init__(self._spec, DefaultLogsSpecs(log_dir=str(run_dir)))
        self._programs, self._plan, self._log_dir = programs, plan, log_dir
        self._task = run_dir / "task"  # what each rank reads when it starts
        self._lock = threading.Lock()
        self._requests: list[tuple[int, float]] = []  # signals that the launcher got, and when
        self._num_passed_on = 0
        self._running: SubprocessContext | None = None
        self._num_starts = 0
        self._run_dir = run_dir
        self._stalls = StallWatch(run_dir, plan.stall_warning, plan.stall_timeout)
        self._ended: dict[int, RankEnd] = {}  # in this attempt, by their place on this machine
        self._ends: list[RankEnd] = []  # of the ranks here, once an attempt is over
        self._given_up: set[int] = set()  # places of ranks that were killed, since another one had failed
        self._shown = 0  # the attempt whose failure was shown
        self._has_killed = False
        self._problem: Exception | None = None
        self._join_until: float | None = None  # when the machines have to have come together

    def work(self) -> None:
        """Bring the machines together, and start ranks until they are done; for a thread."""
        # What the ranks inherit: a signal waits until they are ready for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._spec.rdzv_handler = get_rendezvous_handler(self._find_rendezvous())
            try:
                self.run()
            finally:
                self._spec.rdzv_handler.shutdown()
        except _Stopped:
            pass
        except Exception as error:  # noqa: BLE001 - it belongs to the main thread
            self._problem = error

    def _find_rendezvous(self) -> RendezvousParameters:
        plan, conf = self._plan, dict[str, Any](self._plan.conf)
        local_addr = plan.local_addr or "localhost"  # not every machine can resolve its own name
        if plan.nnodes > 1:
            _say(f"Waiting for {plan.nnodes} machines at {plan.endpoint}.")
            seconds = int(conf.get("join_timeout", _JOIN_TIMEOUT_S))
            self._join_until = time.monotonic() + seconds + POLL_S
            address, is_host = find_address(plan.endpoint, seconds)
            local_addr = plan.local_addr or address
            conf.setdefault("is_host", str(is_host).lower())
            # Each of torch's own timeouts ends in a page of C++ frames; ours comes first. "timeout" is static's.
            for name in ("join_timeout", "timeout", "read_timeout"):
                conf[name] = int(conf.get(name, 0)) + seconds + _JOIN_TIMEOUT_S
            if plan.node_rank != 0 and conf["is_host"] == "false":
                wait_for_host(plan.endpoint)
            if plan.backend == "static":
                conf["rank"] = plan.node_rank
                self._spec.master_addr, self._spec.master_port = parse_rendezvous_endpoint(plan.endpoint, -1)
        self._spec.local_addr = local_addr
        try:
            return RendezvousParameters(
                backend=plan.backend,
                endpoint=plan.endpoint,
                run_id=plan.run_id.replace("/", "_") or uuid.uuid4().hex,  # it becomes the name of a folder
                min_nodes=plan.nnodes,
                max_nodes=plan.nnodes,
                local_addr=local_addr,
                **conf,
            )
        except TypeError as error:  # the name of something that has an option of its own
            raise UsageError(f"--rdzv_conf: {first_line(error).partition('() ')[2]}") from error

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        """Start all ranks, unless a stop was asked for."""
        program = self._programs[1 if self._num_starts else 0]
        with open(self._task, "wb") as file:
            pickle.dump((os.getpid(), self._log_dir, program.file, program.is_own), file)
            pickle.dump(program, file)
        with self._lock:
            if self._requests:
                raise _Stopped
            self._announce_start(worker_group)
            self._num_starts += 1
            for place in range(self._plan.nproc_per_node):
                heartbeat_path(self._run_dir, place).unlink(missing_ok=True)
            self._stalls = StallWatch(self._run_dir, self._plan.stall_warning, self._plan.stall_timeout)
            self._ends, self._ended, self._given_up = [], {}, set()
            started: dict[int, Any] = super()._start_workers(worker_group)
            assert isinstance(self._pcontext, SubprocessContext)
            self._running = self._pcontext
        return started

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        """End all ranks, as when those of another machine are started again."""
        super()._stop_workers(worker_group)
        self._running = None

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """Look at the ranks; once all have ended, take down how."""
        if self._running is not None and not self._have_all_ended(self._running):
            return RunResult(state=WorkerState.HEALTHY)
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state is WorkerState.HEALTHY or self._running is None:
            return result
        with self._lock:
            self._ends, self._running = list(self._ended.values()), None
        if self._requests or any(end.kind in ("stopped", "aborted") for end in self._ends):
            self._remaining_restarts = 0  # a stop is no failure
        elif self._remaining_restarts:
            self._show_failure(self._ends)
        return result

    def _have_all_ended(self, running: SubprocessContext) -> bool:
        """Take down which ranks have ended; where one has failed, show that, and end the others.

        torch would do so by SIGTERM, which asks ranks to save a step that can no longer be finished.
        """
        known = dict(self._ended)
        for place, handler in running.subprocess_handlers.items():
            status, error_file = handler.proc.poll(), Path(running.error_files[place])
            if place in self._ended or (status is None and not error_file.exists()):
                continue
            rank = self._worker_group.workers[place].global_rank
            end = read_end(error_file, rank, self._log_of(rank), status or 0, time.time())
            # One that had to be killed with the others, and had nothing to tell, says nothing about the run.
            is_put_out = place in self._given_up and end.kind == "killed"
            known[place] = replace(end, kind="lost") if is_put_out else end
            if status is not None:
                self._ended[place] = known[place]
        if len(self._ended) == len(running.subprocess_handlers):
            return True
        failed = [end for end in known.values() if end.kind not in ("done", "stopped")]
        if not failed:
            if not self._requests:
                self._look_for_stall(running)
            return False
        first, since = find_first(failed), time.time() - min(end.timestamp for end in failed)
        # Others that fail of the same are shown with it, if they do so soon.
        if first is not None and is_certain(first) and since > _SHOW_AFTER_S and not self._requests:
            self._show_failure([first])
        if since > _KILL_AFTER_S:
            for place, handler in running.subprocess_handlers.items():
                if handler.proc.poll() is None:
                    self._given_up.add(place)
                    handler.proc.kill()
        return False

    def _look_for_stall(self, running: SubprocessContext) -> None:
        """Tell of ranks that stand still; end them where the user has set a limit."""
        processes = {place: handler.proc for place, handler in running.subprocess_handlers.items()}
        workers = self._worker_group.workers
        text, is_over = self._stalls.look(processes, workers[0].global_rank)
        if text:
            _say(f"{text} Those of the other ranks: {self._log_dir}/rank_N.log")
        if not is_over:
            return
        place = self._stalls.place
        message = "error: no step was finished within --stall_timeout: the run was ended\n"
        self._ended[place] = RankEnd(workers[place].global_rank, time.time(), "failed", EXIT_FAILED, message)
        self._given_up = set(processes)
        for process in processes.values():
            process.kill()

    @property
    def is_idle(self) -> bool:
        """Whether no rank runs: a stop need not wait for anything."""
        return self._running is None

    def is_too_late(self) -> bool:
        """Tell whether the machines have not come together in their time; torch may be waiting for ever."""
        if self._num_starts or self._join_until is None or time.monotonic() < self._join_until:
            return False
        self._problem = self._problem or self._not_met(
            "they did not in time, or another program answers there"
        )
        return True

    def _not_met(self, reason: str) -> TrainingError:
        plan = self._plan
        return TrainingError(
            f"the {plan.nnodes} machines lost each other or did not meet at {plan.endpoint}: {reason}. The same "
            "command has to run on each of them, and the first of them has to be reachable at that address and port. "
            "--rdzv_conf join_timeout=SECONDS waits longer."
        )

    def on_signal(self, signum: int, frame: object) -> None:
        """Take note of a signal."""
        self._requests.append((signum, time.monotonic()))

    def pass_on_signals(self) -> bool:
        """Send each rank what came since the last call; return whether anything did."""
        with self._lock:
            new = self._requests[self._num_passed_on :]
            self._num_passed_on += len(new)
            handlers = self._running.subprocess_handlers if self._running else {}
        for handler in handlers.values():
            for signum, _ in new:
                handler.proc.send_signal(signum)
            if self._must_kill() and handler.proc.poll() is None:
                self._has_killed = True
                handler.proc.kill()
        return bool(new)

    def _must_kill(self) -> bool:
        interrupts = [when for signum, when in self._requests if signum == signal.SIGINT]
        return len(interrupts) > 2 or (
            len(interrupts) == 2 and time.monotonic() - interrupts[1] > _KILL_AFTER_S
        )

    def conclude(self) -> int:
        """Show what is still to be shown, and return the exit code of the run."""
        if self._problem is not None:
            self._raise_problem(self._problem)
        first = find_first(self._ends)
        if not self._requests:
            if first is not None and first.kind not in ("stopped", "aborted"):
                self._show_failure(self._ends)
            return 0 if first is None else EXIT_FAILED if first.kind == "lost" else first.code
        asked = 128 + self._requests[0][0]
        if first is None:
            # A run that was over before it noticed the request is a finished one.
            return 0 if self._ends else asked
        if self._has_killed:
            _say("The ranks did not stop, and were killed.")
        elif first.kind == "failed" or (first.kind == "killed" and first.code not in STOP_CODES):
            self._show_failure(self._ends)
            return first.code
        elif not any(end.kind == "stopped" for end in self._ends):
            _say(f"Stopped by {signal.Signals(asked - 128).name} at once: no further step was saved.")
        # A rank that was stopped takes the connection away from others, which says nothing about the run.
        return next((end.code for end in self._ends if end.kind == "stopped"), asked)

    def _raise_problem(self, problem: Exception) -> None:
        """Raise what ended the agent, where that says more than a request to stop does."""
        if not isinstance(problem, (RendezvousError, DistError)):
            raise problem
        if self._requests:
            return
        self._show_failure(self._ends)
        raise self._not_met(first_line(problem.__cause__ or problem)) from problem

    def _announce_start(self, worker_group: WorkerGroup) -> None:
        if self._num_starts:
            _say(f"Restart {self._num_starts} (of {self._plan.max_restarts} after failures here).")
            return
        first, last = (worker_group.workers[place].global_rank for place in (0, -1))
        span = f"s {first} to {last}" if last > first else f" {first}"
        where = f"; output of all but rank 0: {self._log_dir}/rank_N.log" if last else ""
        _say(f"Starting rank{span} of {worker_group.workers[0].world_size}{where}.")

    def _show_failure(self, ends: Sequence[RankEnd]) -> None:
        """Show the error that ended this attempt, once: other ranks may come to theirs later."""
        first = find_first(ends)
        if first is None or self._shown == self._num_starts:
            return
        self._shown = self._num_starts
        world_size = self._worker_group.workers[0].world_size
        text = explain(first, ends, world_size, self._log_of(first.rank), socket.gethostname())
        _say(re.sub("^error:", paint("error:", "red", sys.stderr), text, flags=re.MULTILINE))

    def _log_of(self, rank: int) -> Path | None:
        return log_path(self._log_dir, rank) if rank else None


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may have gone, and the ranks save for all that
        say(text + "\n", sys.stderr)
