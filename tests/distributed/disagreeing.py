"""A recipe of one's own whose processes do not agree, one way after another.

tune run --nproc_per_node 2 ./disagreeing.py FOLDER
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tune import training
from tune.errors import TuneError
from tune.training.distributed.parallel import ParallelPlan
from tune.training.saving import shared_folder
from tune.utils import get_logger, get_rank

CPU = torch.device("cpu")


def fail_with_a_strange_error() -> None:
    class Strange(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(f"{a} and {b}")

    training.from_rank_zero(lambda: (_ for _ in ()).throw(Strange(3, 5)))


def return_what_cannot_be_sent() -> None:
    training.from_rank_zero(threading.Lock)


def keep_a_shard_to_oneself() -> None:
    """The second process has a disk of its own under the folder's name."""
    folder = Path(sys.argv[1]) / str(get_rank())
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(7, 3)).sum().backward()
    optimizer.step()
    training.save_run_state(folder, model, optimizer, CPU, {"step": 1}, {})


def hold_different_folders() -> None:
    folder = Path(sys.argv[1]) / str(get_rank())
    folder.mkdir(parents=True)
    shared_folder.require_shared_folder(folder)


def break_the_saving_thread() -> None:
    """What writes the model fails in a way that nobody thought of, while training goes on."""
    model = nn.Linear(3, 5)
    optimizer = torch.optim.SGD(model.parameters())
    saver = training.StepSaver(Path(sys.argv[1]), CPU, keep_last_n=None, in_background=True)
    saver.save(1, model, optimizer, {"step": 1}, {}, lambda model, folder: {}["no such key"])
    saver.wait()


def have_different_memory() -> None:
    """The base fits the first machine alone: all must shard it."""
    from tune.training.distributed import parallel

    parallel._memory_of = lambda device: 1e9 if get_rank() == 0 else 10.0
    plan = training.plan_frozen_base(ParallelPlan(1, 2), nn.Linear(3, 5), CPU)
    assert plan.shards


MODES: dict[str, Callable[[], None]] = {
    made.__name__: made
    for made in (
        fail_with_a_strange_error,
        return_what_cannot_be_sent,
        keep_a_shard_to_oneself,
        hold_different_folders,
        break_the_saving_thread,
        have_different_memory,
    )
}


def main() -> None:
    """Run one mode after another, and say on each process how it ended."""
    shared_folder.SEEN_WITHIN_S = 0.3
    training.start_processes(CPU)
    root = sys.argv[1]
    for name, mode in MODES.items():
        sys.argv[1] = f"{root}/{name}"
        try:
            mode()
            outcome = "fine"
        except (TuneError, Exception) as error:  # noqa: BLE001 - what it is, is what the test looks at
            outcome = f"{type(error).__name__}: {error}"
        Path(root, f"{name}.{get_rank()}").write_text(outcome)
    get_logger().info("done")
    training.end_processes()


if __name__ == "__main__":
    main()
