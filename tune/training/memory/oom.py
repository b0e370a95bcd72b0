"""What is said when memory has run out: where, how much was taken, and what would need less."""

from __future__ import annotations

import mmap
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

import torch

from tune.errors import TrainingError
from tune.training.memory.available import GIB, available_memory, held_memory
from tune.training.memory.plan import GENERAL_ADVICE, MemoryPlan

__all__ = ["explain_out_of_memory"]

# Room that is never used while there is any: what helps is measured in it, once there is none.
_RESERVE = 32 * 1024**2
# How a lack of memory reads where it is a plain RuntimeError.
_TEXTS = (
    "can't allocate memory",
    "std::bad_alloc",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "ALLOC_FAILED",
    "MPS backend out of memory",
)
# What is done in a file: the first that fits a frame of the traceback, the innermost frame that fits any.
_MOMENTS = (
    ("torch/optim/", "at the optimizer's step"),
    ("bitsandbytes/optim/", "at the optimizer's step"),
    ("torch/autograd/__init__.py", "in the backward pass"),
    ("tune/checkpoints/", "while weights are read or written"),
    ("tune/modules/loss/", "in the loss"),
    ("tune/modules/", "in the forward pass"),
    ("tune/datasets/", "while the data is read"),
    ("tune/data/", "while the data is read"),
)


@contextmanager
def explain_out_of_memory(get_plan: Callable[[], MemoryPlan | None] | None = None) -> Iterator[None]:
    """Turn the body's running out of memory, of a GPU or the host, into an error that says where, and what helps.

    Args:
        get_plan: returns the run's memory plan, or None where it has not come that far: asked when memory is out.

    Raises:
        TrainingError: in place of torch's own error; its first sentence is kept.
    """
    reserve = ExitStack()
    with suppress(OSError):
        reserve.enter_context(mmap.mmap(-1, _RESERVE))
    try:
        with reserve:
            yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        is_told_by_text = any(text in str(error) for text in _TEXTS)
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or is_told_by_text):
            raise
        raise TrainingError(_explain(error, get_plan)) from error


def _explain(error: Exception, get_plan: Callable[[], MemoryPlan | None] | None) -> str:
    text = str(error) or type(error).__name__
    # Two sentences tell what was asked for; the rest, and a prefix on the CPU, are for developers of torch.
    first = ". ".join((text.partition("DefaultCPUAllocator: ")[2] or text).split(". ")[:2]).rstrip(". \n")
    on_gpu = isinstance(error, torch.OutOfMemoryError) or "CUDA" in text or "CUBLAS" in text
    device = torch.device("cuda" if on_gpu and torch.cuda.is_available() else "cpu")
    explained = f"out of memory{_where(error.__traceback__)}: {first}. {_in_use(device)}. "
    try:
        plan = get_plan() if get_plan else None
        if plan is not None:
            return explained + "\n".join(plan.explanation(held_memory(device)))
    except (RuntimeError, MemoryError):
        pass  # there is no memory for the explanation: the short one has to do
    return explained + GENERAL_ADVICE


def _where(start: TracebackType | None) -> str:
    """Return in which part of a step memory ran out, and in which function of ours."""
    moment, place = "", ""
    for frame in traceback.extract_tb(start):
        path = Path(frame.filename).as_posix()
        if path == Path(__file__).as_posix():
            continue
        if not moment and frame.name.startswith(("setup", "_setup")):
            moment = "while the run is set up"
        found = next((words for part, words in _MOMENTS if part in path), "")
        # A block that is recomputed, or a weight that steps, inside the backward pass is still a part of that.
        if found and not (
            moment == "in the backward pass" and found in ("in the forward pass", "in the loss")
        ):
            moment = found
        if "/tune/" in path or "/recipes/" in path:
            place = f"{Path(path).name}, line {frame.lineno}, {frame.name}"
    return "".join((f" {moment}" if moment else "", f" ({place})" if place else ""))


def _in_use(device: torch.device) -> str:
    left = available_memory(device)
    device_words = "on the GPU" if device.type == "cuda" else "by this process"
    text = f"In use {device_words}: {held_memory(device) / GIB:.2f} GiB"
    if left is None:
        return text
    if device.type == "cuda":
        left -= torch.cuda.memory_reserved(device)
    return f"{text}; still free: {max(left, 0) / GIB:.2f} GiB"
