"""Ending a run from outside: the step is finished and saved, and the exit code says what happened."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from tune.utils import get_logger
from tune.utils.heartbeat import beat, stop_heartbeat
from tune.utils.mesh import Mesh
from tune.utils.stop_signals import heeded_signals

__all__ = ["StopRequest"]


class StopRequest:
    """Turns SIGINT, SIGTERM, SIGUSR1 and SIGHUP into a flag that the loop reads between steps.

    The first signal asks: the step in progress is finished and saved. A second Ctrl-C stops at once; a saved step is
    renamed into place only when complete, so that loses nothing that was finished. Schedulers announce the end of a
    job's time with SIGTERM or, on request, SIGUSR1; SIGHUP says that the terminal has gone, unless it is ignored.

    Use it as a context manager; the handlers that were there before come back at its end. Off the main thread,
    where Python allows no handlers, it never fires.

    Args:
        mesh: the processes of the run.
        answer: what is said to be done at a signal.
    """

    def __init__(self, mesh: Mesh, answer: str = "finishing this step, then saving and stopping") -> None:
        self._mesh = mesh
        self._answer = answer
        self.signum: int | None = None  # received by this process
        self._num_steps = 0
        self._was_interrupted = False
        self._agreed: int | None = None
        self._previous: dict[int, object] = {}

    def __bool__(self) -> bool:
        return self.signum is not None

    @property
    def exit_code(self) -> int:
        """0, or 128 plus the signal's number: 130 after SIGINT, 143 after SIGTERM, 138 SIGUSR1, 129 SIGHUP."""
        signum = self._agreed or self.signum
        return 0 if signum is None else 128 + signum

    def agreed(self) -> bool:
        """Tell whether any process of the run was asked to stop; all must ask together, and get the same answer."""
        self._num_steps += 1
        beat(self._num_steps)
        # Apart from what was received here: this process's own first signal, coming later, is no second one.
        self._agreed = int(self._mesh.max(self.signum or 0)) or None
        return self._agreed is not None

    def __enter__(self) -> StopRequest:
        beat(0)
        if threading.current_thread() is threading.main_thread():
            for signum in heeded_signals():
                self._previous[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stop_heartbeat()
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]  # what signal.signal() gave us
        self._previous.clear()

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            # After another signal the first Ctrl-C still leaves the step its time.
            if self._was_interrupted:
                raise KeyboardInterrupt
            self._was_interrupted = True
        self.signum = self.signum or signum
        hint = " (Ctrl-C again stops at once)" if signum == signal.SIGINT else ""
        get_logger().warning(f"{signal.Signals(signum).name}: {self._answer}{hint}.")
