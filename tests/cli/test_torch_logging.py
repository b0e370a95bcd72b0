"""A launcher that loses torch's store has no page of C++ frames to show."""

from __future__ import annotations

import subprocess
import sys

import pytest

# The store lives in a process that goes while this one waits for a key.
LOSE_THE_STORE = """
import contextlib, os, signal, sys, threading
from tune.cli.torch_logging import importing_quietly
before = dict(os.environ)
with importing_quietly() if sys.argv[1] == "quiet" else contextlib.nullcontext():
    from torch.distributed import DistError, TCPStore
assert dict(os.environ) == before
ours, theirs = os.pipe()
server = os.fork()  # torch is imported, and there are no threads as yet
if server == 0:
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    os.write(theirs, str(store.port).encode())
    signal.pause()
store = TCPStore("127.0.0.1", int(os.read(ours, 99)), None, False)
threading.Timer(0.5, os.kill, (server, signal.SIGKILL)).start()
try:
    store.get("never set")
except DistError:
    print("lost")
"""


@pytest.mark.parametrize(("how", "is_quiet"), [("quiet", True), ("as torch is", False)])
def test_a_lost_store_is_an_exception_and_no_page(how: str, is_quiet: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOSE_THE_STORE, how], capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stdout) == (0, "lost\n"), done.stderr
    assert ("frame #0" not in done.stderr) is is_quiet
