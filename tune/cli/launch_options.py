"""How many processes are asked for, on how many machines: the options, and the plan they make.

The names are torchrun's, since scripts and cluster templates are full of them. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tune.cli.arguments import Given, Option, UsageError
from tune.utils.cores import count_cores

_MAX_PROCESSES = 1024  # on one machine; more is a slip of the finger, and would take it down
_MAX_MACHINES = 100_000
_PORTS = {"c10d": 29400, "static": 29500}  # torchrun's, where an endpoint names none
_WORDS = ("auto", "gpu", "cpu")


def _option(
    name: str, text: str, metavar: str | None = None, *synonyms: str, choices: tuple[str, ...] = ()
) -> Option:
    names = [spelt for each in (name, *synonyms) for spelt in (each, each.replace("_", "-"))]
    flags = tuple(f"--{each}" for each in dict.fromkeys(names))
    return Option(flags, text, metavar, choices=choices, may_be_empty=True)


LAUNCH_OPTIONS = (
    _option(
        "nproc_per_node",
        "Processes on this machine: a number, or gpu (one for each GPU), cpu (for each core), auto (what there is).",
        "N",
        "num_gpus",
    ),
    _option("nnodes", "Machines. On each of them the same command is started.", "N"),
    _option("node_rank", "This machine's number from 0; for the backend static.", "N"),
    _option(
        "rdzv_endpoint", "Where the machines meet: one of them, a free port.", "HOST:PORT", "master_addr"
    ),
    _option("master_port", "The PORT, where it is given by itself.", "PORT"),
    _option(
        "rdzv_backend", "How they meet: c10d, or static with --node_rank.", "BACKEND", choices=tuple(_PORTS)
    ),
    _option("rdzv_id", "Name of the run, the same on all machines.", "ID"),
    _option("rdzv_conf", "More about the meeting, such as join_timeout=1800.", "KEY=VALUE,..."),
    _option("local_addr", "Address at which the other machines reach this one.", "ADDRESS"),
    _option(
        "max_restarts",
        "After a failure start all processes again, from the newest saved step, up to N times.",
        "N",
    ),
    _option(
        "stall_warning",
        "Say so, with the stacks of all ranks, when none has finished a step for so many seconds (600); three times "
        "that for the first step.",
        "SECONDS",
    ),
    _option("stall_timeout", "End the run when that goes on for so many seconds. Without: never.", "SECONDS"),
    _option("standalone", "One machine only (which is what happens without --nnodes)."),
)
LAUNCH_FLAGS = frozenset(flag for option in LAUNCH_OPTIONS for flag in option.flags)


@dataclass(frozen=True)
class LaunchPlan:
    """Which processes are to run, and how they find each other.

    Args:
        nproc_per_node: processes on this machine; 0 until `settle` has counted what `count` names.
        count: what to start one process for each of: gpu, cpu, auto; empty where a number was given.
        nnodes: machines.
        node_rank: this machine's number, where the backend does not find it out.
        backend: how the machines meet: c10d or static.
        endpoint: where they meet, as host:port.
        run_id: what this meeting is called; empty makes one up.
        conf: further settings of the meeting.
        local_addr: this machine's address for the others; None finds it out.
        max_restarts: how often all processes are started again after a failure.
        stall_warning: seconds without a step after which the user is told.
        stall_timeout: seconds without a step after which the run is ended; None for never.
    """

    nproc_per_node: int = 1
    count: str = ""
    nnodes: int = 1
    node_rank: int | None = None
    backend: str = "c10d"
    endpoint: str = "localhost:0"
    run_id: str = ""
    conf: dict[str, str] = field(default_factory=dict)
    local_addr: str | None = None
    max_restarts: int = 0
    stall_warning: int = 600
    stall_timeout: int | None = None

    @property
    def needs_launcher(self) -> bool:
        """Whether there is more to do than to run the recipe in this process."""
        return self.nproc_per_node * self.nnodes > 1 or self.max_restarts > 0

    def describe(self) -> str:
        """Return the number of processes, and how they come together, in words."""
        text = str(self.nproc_per_node * self.nnodes)
        if self.nnodes > 1:
            text += f" ({self.nnodes} machines x {self.nproc_per_node}), meeting at {self.endpoint} ({self.backend})"
        if self.max_restarts:
            text += f"; started again after a failure up to {self.max_restarts} times"
        return text

    def torchrun(self) -> list[str]:
        """Return the beginning of a command line that starts the same processes without tune."""
        words = ["torchrun", "--nnodes", str(self.nnodes), "--nproc_per_node", str(self.nproc_per_node)]
        if self.nnodes > 1:
            words += ["--rdzv_backend", self.backend, "--rdzv_endpoint", self.endpoint]
            words += ["--rdzv_id", self.run_id] if self.run_id else []
            words += ["--node_rank", str(self.node_rank)] if self.backend == "static" else []
        return [*words, "--max_restarts", str(self.max_restarts)] if self.max_restarts else words


def read_plan(given: Given) -> LaunchPlan:
    """Return the plan that the options make.

    Raises:
        UsageError: a value is none, or the machines are not told how to meet.
    """
    nproc_per_node, count = _read_processes(given)
    nodes = given.one("nnodes") or ""
    if re.fullmatch(r"\d+:\d+", nodes):
        raise UsageError(
            f"--nnodes {nodes}: a run has a fixed number of machines, since its batches are shared out among them; "
            f"give one number, such as --nnodes {nodes.partition(':')[2]}"
        )
    nnodes = _number(given, "nnodes", 1, _MAX_MACHINES) or 1
    max_restarts = _number(given, "max_restarts", 0, 1000) or 0
    conf = _read_conf(given.one("rdzv_conf"))
    plan = LaunchPlan(
        nproc_per_node,
        count,
        nnodes,
        conf=conf,
        local_addr=given.one("local_addr"),
        max_restarts=max_restarts,
        stall_warning=_number(given, "stall_warning", 1, 10**8) or LaunchPlan.stall_warning,
        stall_timeout=_number(given, "stall_timeout", 1, 10**8),
    )
    return _meet(plan, given)


def settle(
    plan: LaunchPlan, device: str | None, count_gpus: Callable[[], int], *, is_run: bool
) -> LaunchPlan:
    """Return the plan with its processes counted, having checked that each finds the device it is to use.

    Args:
        device: the device that was asked for; None takes a GPU where there is one.
        count_gpus: returns how many there are here.
        is_run: whether it is carried out here; a dry run may speak of another machine.

    Raises:
        UsageError: there are fewer GPUs than processes, or none to count.
    """
    on_gpu = device is None or device.partition(":")[0] == "cuda"
    if device is not None and (device == "mps" or ":" in device) and plan.nproc_per_node > 1:
        raise UsageError(
            f"{plan.nproc_per_node} processes on this machine would share the one device {device}; "
            + ("use one process" if device == "mps" else "write device=cuda, which gives each its own")
        )
    is_counted = plan.count == "gpu" or (plan.count == "auto" and on_gpu)
    is_checked = not plan.count and is_run and on_gpu and plan.nproc_per_node > 1
    found = count_gpus() if is_counted or is_checked else 0
    if is_checked and found < plan.nproc_per_node and (found or device is not None):
        raise UsageError(
            f"{plan.nproc_per_node} processes need a GPU each, but there are {found} here; "
            + (f"give --nproc_per_node {found}, or " if found else "train on the processor with ")
            + "device=cpu"
        )
    if plan.count == "gpu" and not found:
        raise UsageError("--nproc_per_node gpu: there is no GPU here; give a number, with device=cpu")
    return replace(plan, nproc_per_node=found or count_cores()) if plan.count else plan


def _read_processes(given: Given) -> tuple[int, str]:
    """Return the number of processes on this machine, or 0 and what to count."""
    asked = given.one("nproc_per_node")
    if asked in _WORDS:
        return 0, asked
    return _number(given, "nproc_per_node", 1, _MAX_PROCESSES, f", or one of {', '.join(_WORDS)}") or 1, ""


def _number(given: Given, name: str, minimum: int, maximum: int, others: str = "") -> int | None:
    text = given.one(name)
    if text is None:
        return None
    # isdecimal alone takes digits of other scripts
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and minimum <= int(text) <= maximum):
        raise UsageError(f"--{name} takes a whole number from {minimum} to {maximum}{others}, not {text!r}")
    return int(text)


def _meet(plan: LaunchPlan, given: Given) -> LaunchPlan:
    """Return the plan with how its machines meet.

    Raises:
        UsageError: they are not told, or in two ways.
    """
    endpoint, node_rank = given.one("rdzv_endpoint"), _number(given, "node_rank", 0, plan.nnodes - 1)
    # Who numbers the machines by hand means the backend that reads these numbers.
    backend = given.one("rdzv_backend") or ("static" if node_rank is not None else "c10d")
    port = _number(given, "master_port", 1, 65535) or _PORTS[backend]
    endpoint = None if endpoint is None else _with_port(endpoint, port)
    if plan.nnodes == 1:
        return plan
    if endpoint is None:
        raise UsageError(
            f"--nnodes {plan.nnodes}: the machines need a place to meet; give all of them the same "
            "--rdzv_endpoint HOST:PORT, where HOST is one of them"
        )
    if backend == "static" and node_rank is None:
        raise UsageError(
            f"--rdzv_backend static needs --node_rank, from 0 to {plan.nnodes - 1} and different on each machine; "
            "--rdzv_backend c10d finds it out"
        )
    if "standalone" in given.switches:
        raise UsageError(
            f"--standalone is for one machine, but there is --nnodes {plan.nnodes}; leave one of them out"
        )
    if backend == "static" and plan.max_restarts:
        raise UsageError(
            "--max_restarts needs --rdzv_backend c10d: with static, which --node_rank chooses, the ranks meet once"
        )
    run_id = given.one("rdzv_id") or "tune"
    return replace(plan, backend=backend, endpoint=endpoint, node_rank=node_rank, run_id=run_id)


def _with_port(endpoint: str, default: int) -> str:
    """Return `endpoint` as host:port; IPv6 may lack its brackets where it comes without a port."""
    if endpoint.count(":") > 1 and "[" not in endpoint:
        endpoint = f"[{endpoint}]"
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+)(?::(\d{1,5}))?", endpoint)
    if match is None or not 0 < int(match[2] or default) < 65536:
        raise UsageError(
            f"--rdzv_endpoint takes HOST:PORT, such as node0:{default} or [fd00::1]:{default}, not {endpoint!r}"
        )
    return f"{match[1]}:{match[2] or default}"


def _read_conf(text: str | None) -> dict[str, str]:
    conf: dict[str, str] = {}
    for item in filter(str.strip, (text or "").split(",")):
        key, _, value = (part.strip() for part in item.partition("="))
        if not (key and value):
            raise UsageError(
                f"--rdzv_conf takes KEY=VALUE,KEY=VALUE, such as join_timeout=1800, not {text!r}"
            )
        if key.endswith("timeout") and not (re.fullmatch(r"[0-9]{1,9}", value) and int(value)):
            raise UsageError(f"--rdzv_conf {key} takes a whole number of seconds from 1, not {value!r}")
        conf[key] = value
    return conf
