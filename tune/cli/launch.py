"""`tune run` with many processes: starts the ranks through torch's elastic launcher, and looks after them.

torch's agent brings the machines together, numbers the ranks, starts them, and starts them again after a failure. It
would also answer every signal by ending the ranks within seconds, and every end by a page of log; so it runs in a
thread of its own, where it gets no signals, and the main thread passes them on and says how the run ended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import tune
from tune.cli.launch_options import LaunchPlan, count_cores
from tune.cli.rank import RANK_VARIABLE
from tune.cli.rank_report import STOP_SIGNALS
from tune.cli.rendezvous import address_towards, is_here, wait_for_host
from tune.cli.supervisor import Supervisor
from tune.cli.torch_logging import silence_elastic
from tune.errors import TrainingError

_POLL_S = 0.05
# tune may stand in a clone that is not installed, and must come from the place this one came from. The place is on
# the path for that import alone, so that nothing in it can take another package's name.
_RANK_CODE = (
    "import sys; sys.path.insert(0, {home!r}); import tune; del sys.path[0]; "
    "from tune.cli.rank import main; sys.exit(main())"
)


@dataclass(frozen=True)
class Job:
    """What each rank runs.

    Args:
        file: the recipe's file.
        is_own: whether it is the user's.
        arguments: the command line for it.
        restart_arguments: the one after a failure, which goes on from the newest saved step.
        log_dir: where the output of all ranks but the first goes; None makes a temporary folder.
    """

    file: Path
    is_own: bool
    arguments: list[str]
    restart_arguments: list[str]
    log_dir: Path | None


def launch(job: Job, plan: LaunchPlan) -> int:
    """Run `job` in all processes of `plan` on this machine, and return the exit code of the run.

    That is 0, or the code of the rank that failed first, or what the ranks return after a signal.

    Raises:
        TrainingError: the machines did not come together.
    """
    silence_elastic()
    run_dir = Path(tempfile.mkdtemp(prefix="tune_run_"))
    log_dir, is_temporary = _make_log_dir(job.log_dir)
    supervisor = Supervisor(run_dir)
    specs = _RankSpecs(supervisor, job, plan, log_dir)
    problems: list[Exception] = []
    agent = threading.Thread(target=_run_agent, args=(_configure(plan, specs), job, problems), daemon=True)
    before = {signum: signal.signal(signum, supervisor.on_signal) for signum in STOP_SIGNALS}
    try:
        agent.start()
        while agent.is_alive() and not supervisor.must_leave:
            agent.join(_POLL_S)
            supervisor.poll()
            supervisor.announce(settled=False)
        for problem in problems:
            _take_in(problem, supervisor, plan)
        code = supervisor.conclude()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        shutil.rmtree(run_dir, ignore_errors=True)
    if is_temporary and code == 0:
        shutil.rmtree(log_dir, ignore_errors=True)
    if agent.is_alive():
        # It waits for other machines, somewhere inside torch, and must not see the interpreter go.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


class _Stopped(Exception):
    """A stop was asked for: nothing is started any more."""


class _RankSpecs(LogsSpecs):
    """Tells each rank, whenever the agent is about to start it, what it is to do and where its output goes."""

    def __init__(self, supervisor: Supervisor, job: Job, plan: LaunchPlan, log_dir: Path) -> None:
        super().__init__()
        self._supervisor, self._job, self._plan, self._log_dir = supervisor, job, plan, log_dir
        self._num_starts = 0

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Complete the environment of the local ranks; all of them keep the terminal until they run our code."""
        if self._supervisor.requests:
            raise _Stopped
        records = self._supervisor.begin(len(envs))
        self._say(envs)
        task = {
            "launcher": os.getpid(),
            "records": str(records),
            "file": str(self._job.file),
            "is_own": self._job.is_own,
            "arguments": self._job.restart_arguments if self._num_starts else self._job.arguments,
        }
        self._num_starts += 1
        for env in envs.values():
            env[RANK_VARIABLE] = json.dumps(task | {"log": self._log_of(int(env["RANK"]))})
            env["TORCHELASTIC_ERROR_FILE"] = ""
            if "OMP_NUM_THREADS" not in os.environ:
                env["OMP_NUM_THREADS"] = str(max(1, count_cores() // len(envs)))
        return LogsDest(
            stdouts=dict.fromkeys(envs, ""),
            stderrs=dict.fromkeys(envs, ""),
            error_files=dict.fromkeys(envs, os.devnull),
        )

    @property
    def root_log_dir(self) -> str:
        return str(self._log_dir)

    def _log_of(self, rank: int) -> str | None:
        return None if rank == 0 else str(self._log_dir / f"rank_{rank}.log")

    def _say(self, envs: Mapping[int, Mapping[str, str]]) -> None:
        """Say what is started here."""
        if self._num_starts:
            text = f"Restart {self._num_starts}"
            text += f" (of {self._plan.max_restarts} after failures here)" if self._plan.max_restarts else ""
            text += f", since {self._supervisor.reason}"
        else:
            ranks = sorted(int(env["RANK"]) for env in envs.values())
            span = f"s {ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else f" {ranks[0]}"
            text = f"Starting rank{span} of {envs[0]['WORLD_SIZE']}"
            if ranks[-1] > 0:
                text += f"; output of {'all but rank 0' if ranks[0] == 0 else 'these'}: {self._log_dir}/rank_N.log"
        sys.stderr.write(text + ".\n")
        sys.stderr.flush()


def _configure(plan: LaunchPlan, specs: LogsSpecs) -> LaunchConfig:
    if plan.max_restarts:
        # The store that the agent would share with the ranks still holds the addresses of the dead ones.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    conf: dict[str, Any] = dict(plan.conf)
    if "timeout" in conf:
        conf["timeout"] = int(conf["timeout"])
    local_addr = plan.local_addr
    if plan.nnodes > 1:
        sys.stderr.write(f"Waiting for {plan.nnodes} machines at {plan.endpoint}.\n")
        sys.stderr.flush()
        host, _, port = plan.endpoint.rpartition(":")
        local_addr = local_addr or address_towards(host.strip("[]"), int(port))
        if plan.backend == "static":
            conf["rank"] = plan.node_rank
        elif "is_host" not in conf:
            # torch compares names: it would not know the address of a second network card as ours.
            is_host = is_here(host.strip("[]"), int(port))
            conf |= {} if is_host is None else {"is_host": str(is_host).lower()}
    return LaunchConfig(
        min_nodes=plan.nnodes,
        max_nodes=plan.nnodes,
        nproc_per_node=plan.nproc_per_node,
        run_id=plan.run_id or uuid.uuid4().hex,
        rdzv_backend=plan.backend,
        rdzv_endpoint=plan.endpoint,
        rdzv_configs=conf,
        max_restarts=plan.max_restarts,
        logs_specs=specs,
        local_addr=local_addr or "localhost",  # a machine's own name is not always one that it can resolve
    )


def _run_agent(config: LaunchConfig, job: Job, problems: list[Exception]) -> None:
    code = _RANK_CODE.format(home=str(Path(tune.__file__).resolve().parent.parent))
    try:
        # The agent replaces $-words in arguments.
        wait_for_host(config)
        words = [word.replace("$", "$$") for word in ("-P", "-c", code, str(job.file))]
        elastic_launch(config, sys.executable)(*words)
    except Exception as error:  # noqa: BLE001 - it belongs to the main thread
        problems.append(error)


def _take_in(problem: Exception, supervisor: Supervisor, plan: LaunchPlan) -> None:
    """Make use of what ended the agent: known ends of ranks, or machines that did not meet."""
    if isinstance(problem, _Stopped):
        return
    if isinstance(problem, ChildFailedError):
        supervisor.poll()
        supervisor.note_exit_codes({rank: failure.exitcode for rank, failure in problem.failures.items()})
        return
    if isinstance(problem, (RendezvousError, DistError)):
        if supervisor.requests:
            return
        if supervisor.attempts:
            supervisor.announce()
        reason = str(problem.__cause__ or problem).strip().split("\n")[0]
        raise TrainingError(
            f"the {plan.nnodes} machines lost each other or did not meet at {plan.endpoint}: "
            f"{reason or type(problem).__name__}\n"
            "The same command has to run on each of them, and the first of them has to be reachable at that address "
            "and port. --rdzv_conf join_timeout=SECONDS waits longer."
        ) from problem
    raise problem


def _make_log_dir(wanted: Path | None) -> tuple[Path, bool]:
    """Return the folder for the ranks' logs, and whether it is a temporary one."""
    if wanted is not None:
        try:
            wanted.mkdir(parents=True, exist_ok=True)
            if all(os.access(path, os.W_OK) for path in (wanted, *wanted.glob("rank_*.log"))):
                return wanted, False
        except OSError:
            pass
        # The recipe can hardly write there either, and explains it better.
    return Path(tempfile.mkdtemp(prefix="tune_logs_")), True
