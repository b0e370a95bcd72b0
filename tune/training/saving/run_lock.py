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
            self._folder = os.open(str(output_dir), os.O_RDONLY)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            self._close()
            if error.filename == str(output_dir) and output_dir.is_dir():
                raise CheckpointError(f"output_dir {output_dir} cannot be read: {error.strerror}.") from error
            raise CheckpointError(
                f"cannot write in output_dir {output_dir}: {error.strerror}. Choose another output_dir."
            ) from error
        self.output_dir = output_dir
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._close()
            raise TrainingError(
                f"another run is writing to {output_dir}. Wait for its end or choose another output_dir."
            ) from error
        except OSError:
            # Some network file systems have no locks; the run is no worse off than without this class.
            pass
        # A process that loads data would hold the lock on, for seconds after the run was killed.
        os.register_at_fork(after_in_child=self._close)

    def find_folder(self) -> Path | None:
        """Return where the folder is that was locked, whatever its name is now; None where it is gone."""
        if self._folder < 0:
            return self.output_dir
        held = os.fstat(self._folder)
        for path in (self.output_dir, self._current_name()):
            try:
                if path is not None and os.path.samestat(held, path.stat()):
                    return path
            except OSError:
                continue
        return None

    def _current_name(self) -> Path | None:
        try:  # Linux knows it
            return Path(os.readlink(f"/proc/self/fd/{self._folder}"))
        except OSError:
            return None

    def release(self) -> None:
        """Let another run have the directory."""
        self._close()

    def _close(self) -> None:
        for name in ("_descriptor", "_folder"):
            if getattr(self, name, -1) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)
