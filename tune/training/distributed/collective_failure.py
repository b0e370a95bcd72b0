"""Forward passes that all processes leave where one of them fails, so that none waits for a gather without end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tune.errors import TrainingError, first_line
from tune.training.distributed.sharded_model import is_sharded_model, reshard
from tune.utils.mesh import Mesh

__all__ = ["PeerFailed", "fail_together"]


class PeerFailed(RuntimeError):
    """Another process failed in what all of them were doing."""


@contextmanager
def fail_together(model: Any, mesh: Mesh) -> Iterator[None]:
    """Run forward passes of a model; where the body fails on one process, it ends on all of them.

    A gather of sharded weights waits for every process: for one that has failed, until the backend loses patience,
    which takes it minutes. So before each of them the hosts agree that all have come so far. That costs a message for
    each block: this is for passes that may fail, not for training. Of a model that is not sharded nothing is gathered,
    and each process goes its own way.

    Every process must enter, and pass through the same modules. A sharded model has its shards again afterwards.

    Raises:
        PeerFailed: another process failed.
        TrainingError: this one failed in the middle of a gather, where the others wait for it. They wait until it
            ends, so nothing may come between this error and the end of the process.
    """
    if not is_sharded_model(model):
        yield
        return
    gate = _Gate(mesh)
    try:
        with gate.before_gathers_of(model):
            yield
    except PeerFailed:
        raise
    except Exception as error:
        if gate.is_gathering:
            raise TrainingError(
                f"this process failed while the weights of all were brought together: {first_line(error)}"
            ) from error
        gate.tell(first_line(error))
        raise
    else:
        gate.agree()
    finally:
        if not gate.is_gathering:
            reshard(model)


class _Gate:
    """Where the processes agree to go on."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.is_gathering = False

    def agree(self, *_: Any) -> None:
        """Return once every process is here, or has failed before."""
        self.is_gathering = False
        if self._mesh.max(0.0):
            reasons = self._mesh.gather_to_all("")
            raise PeerFailed("; ".join(f"rank {rank}: {text}" for rank, text in enumerate(reasons) if text))

    def tell(self, reason: str) -> None:
        """Let the others know, wherever they agree next, that this process does not go on, and why."""
        self._mesh.max(1.0)
        self._mesh.gather_to_all(reason)

    @contextmanager
    def before_gathers_of(self, model: Any) -> Iterator[None]:
        """Agree before each gather of a forward pass, and know when one is under way."""
        from torch.distributed.fsdp import FSDPModule

        def begin(*_: Any) -> None:
            self.agree()
            self.is_gathering = True

        def end(*_: Any) -> None:
            self.is_gathering = False

        hooks = []
        for module in model.modules():
            # Around FSDP's own hook, which is the first one so far. What the root gathers is there when any other
            # module runs.
            gathers = isinstance(module, FSDPModule)
            hooks.append(module.register_forward_pre_hook(end))
            if gathers:
                hooks.append(module.register_forward_pre_hook(begin, prepend=True))
        hidden: Callable[..., Any] = model.hidden  # gathers what the root holds, and is no module with hooks

        def begin_hidden(*args: Any, **kwargs: Any) -> Any:
            begin()
            return hidden(*args, **kwargs)

        model.hidden = begin_hidden
        try:
            yield
        finally:
            model.hidden = hidden
            for hook in hooks:
                hook.remove()
