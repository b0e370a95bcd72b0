"""From an exception to what the user reads and the code the shell sees."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import tune
from tune.cli.rank_report import STOP_CODES
from tune.cli.terminal import report_error, say
from tune.errors import TuneError, causes, first_line
from tune.utils.streams import silence

# What no program can help: the disk is full, over quota, read-only, or broken; a file is larger than it may be; too
# many files are open.
_MACHINE_ERRORS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EMFILE, errno.ENFILE)
)

EXIT_FAILED = 1
EXIT_BAD_USAGE = 2
EXIT_BUG = 70
EXIT_INTERRUPTED = 128 + 2  # SIGINT
EXIT_CLOSED_PIPE = 128 + 13  # SIGPIPE, which Windows does not define


def exit_code_of(error: BaseException, own_file: Path | None = None) -> int:
    """Report `error` on standard error as far as that helps, and return the exit code for it.

    Args:
        error: what ended the command.
        own_file: the user's own recipe that was running, if it was one: a bug in it is theirs to see.
    """
    try:
        code = _report(error, own_file)
        sys.stderr.flush()
    except OSError:  # standard error is full, or has lost its reader; the code still says what happened
        silence(2)
        code = _report(error, own_file)
    return code


def _report(error: BaseException, own_file: Path | None) -> int:
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        report_error(str(error.code))  # sys.exit("some text") means: print it and fail
        return EXIT_FAILED
    if isinstance(error, KeyboardInterrupt):
        say("\nInterrupted.\n", sys.stderr)
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # Whoever was reading has seen enough (`| head`). Python would complain once more when it flushes at exit.
        silence(1)
        return EXIT_CLOSED_PIPE
    if isinstance(error, TuneError):
        report_error(str(error))
        return error.exit_code
    # torch's class is compared by name: this module does not import torch. Training says by itself what needs less.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        report_error(f"out of memory: {first_line(error)}")
        return EXIT_FAILED
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
        report_error(f"{error.filename or 'output'}: {error.strerror}")
        return EXIT_FAILED
    if own_file is not None:
        return _report_own(error, own_file)
    if (code := _stopped_by(error)) is not None:
        say("\nInterrupted.\n", sys.stderr)
        return code
    import traceback  # only on the way out

    say("".join(traceback.format_exception(error)), sys.stderr)
    report_error(
        f"this is a bug in tune {tune.__version__}, not something you did wrong.\n"
        "Please report it with the lines above, the command you typed and your config."
    )
    return EXIT_BUG


def _stopped_by(error: BaseException) -> int | None:
    """Return the exit code of the request to stop that another exception was made of, if one was.

    A Ctrl-C while a library in C++ is imported comes out as an ImportError.
    """
    for behind in causes(error):
        if isinstance(behind, KeyboardInterrupt):
            return EXIT_INTERRUPTED
        if isinstance(behind, SystemExit) and isinstance(behind.code, int) and behind.code in STOP_CODES:
            return behind.code
    return None


def _report_own(error: BaseException, own_file: Path) -> int:
    """Report an exception out of the user's own recipe: their traceback, without our frames around it."""
    import traceback

    frames = error.__traceback__
    while frames is not None and Path(frames.tb_frame.f_code.co_filename) != own_file:
        frames = frames.tb_next
    # A syntax error has no frame in the file, but names the line itself.
    say("".join(traceback.format_exception(type(error), error, frames)), sys.stderr)
    report_error(f"{own_file.name} failed with {type(error).__name__}; the lines above show where")
    return EXIT_FAILED
