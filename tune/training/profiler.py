"""A torch profiler described by a config."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch

from tune.config.component import Component
from tune.config.instantiate import instantiate
from tune.errors import TrainingError
from tune.utils import expand_path, get_logger

__all__ = ["DummyProfiler", "Profiler", "build_profiler", "setup_torch_profiler"]


class Profiler(AbstractContextManager[Any, Any], Protocol):
    """What the loop needs of a profiler: a context, and one call after each optimizer step."""

    def step(self) -> None: ...


class DummyProfiler(nullcontext[Any]):
    """Stands where a profiler would, and does nothing."""

    def __enter__(self) -> DummyProfiler:
        return self

    def step(self) -> None:
        """Do nothing."""


def build_profiler(component: Component | None, output_dir: Path) -> Profiler:
    """Return the profiler a config describes, writing to `output_dir` where it says nothing else; or an idle one."""
    if not component:
        return DummyProfiler()
    profiler: Profiler = instantiate(component, defaults={"output_dir": str(output_dir)})
    return profiler


def setup_torch_profiler(
    enabled: bool = False,
    cpu: bool = True,
    cuda: bool = True,
    profile_memory: bool = False,
    with_stack: bool = False,
    record_shapes: bool = True,
    with_flops: bool = False,
    wait_steps: int = 5,
    warmup_steps: int = 3,
    active_steps: int = 2,
    num_cycles: int = 1,
    output_dir: str = "profiler_output",
) -> Profiler:
    """Return a profiler that writes Chrome traces of some optimizer steps.

    Args:
        enabled: False gives a profiler that does nothing, so a config can keep its settings.
        cpu: record what the host does.
        cuda: record what the GPU does, where there is one.
        profile_memory: record allocations too.
        with_stack: record Python stacks (slow).
        record_shapes: record the shapes operators are called with.
        with_flops: estimate the operations of matrix products.
        wait_steps: optimizer steps let pass at the start of each cycle.
        warmup_steps: steps the profiler runs without recording.
        active_steps: steps recorded.
        num_cycles: how often that is repeated; 0 means to the end of the run.
        output_dir: folder for the traces; a relative one lies in the working directory.

    Raises:
        TrainingError: nothing would be recorded.
    """
    if not enabled:
        return DummyProfiler()
    activities = [torch.profiler.ProfilerActivity.CPU] if cpu else []
    if cuda and torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    if not activities or active_steps < 1:
        raise TrainingError(
            f"the profiler would record nothing: cpu={cpu}, cuda={cuda} (GPU here: "
            f"{torch.cuda.is_available()}), active_steps={active_steps}. Enable one and record at least 1 step."
        )
    directory = expand_path(output_dir)
    directory.mkdir(parents=True, exist_ok=True)

    def write_trace(finished: torch.profiler.profile) -> None:
        name, number = f"trace_step_{finished.step_num}", 2
        path = directory / f"{name}.json"
        while os.path.lexists(path):  # of an earlier run, or anybody's
            path, number = directory / f"{name}_{number}.json", number + 1
        finished.export_chrome_trace(str(path))
        get_logger().info(f"Profiler: wrote {path} (open it at https://ui.perfetto.dev)")

    return torch.profiler.profile(
        activities=activities,
        schedule=torch.profiler.schedule(
            wait=wait_steps, warmup=warmup_steps, active=active_steps, repeat=num_cycles
        ),
        on_trace_ready=write_trace,
        profile_memory=profile_memory,
        with_stack=with_stack,
        record_shapes=record_shapes,
        with_flops=with_flops,
    )
