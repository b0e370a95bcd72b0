"""One run at a time in an output directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from tune.errors import CheckpointError, TrainingError

__all__ = ["RunLock"]


class RunLock:
    """Holds an output directory, created if missing, until `release` or the end of the process.

    The kernel lets go of the lock however the process ends, so a killed run never blocks the next one.

    Raises:
        TrainingError: another process holds it.
        CheckpointError: the directory cannot be created or written.
    """

    def __init__(self, output_dir: Path) -> None:
        path = output_dir / ".lock"
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CheckpointError(
                f"cannot write in output_dir {output_dir}: {error.strerror}. Choose another output_dir."
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise TrainingError(
                f"another run is writing to {output_dir}. Wait for its end or choose another output_dir."
            ) from error
        except OSError:
            # Some network file systems have no locks; the run is no worse off than without this class.
            pass
        # A process that loads data would hold the lock on, for seconds after the run was killed.
        os.register_at_fork(after_in_child=self._close)

    def release(self) -> None:
        """Let another run have the directory."""
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
