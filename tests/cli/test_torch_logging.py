"""A launcher that loses torch's store has no page of C++ frames to show."""

from __future__ import annotations

import subprocess
import sys

import pytest

# The store lives in a process that goes while this one waits for a key.
LOSE_THE_STORE = """
import contextlib, os, subprocess, sys, threading
from tune.cli.torch_logging import importing_quietly
before = dict(os.environ)
with importing_quietly() if sys.argv[1] == "quiet" else contextlib.nullcontext():
    from torch.distributed import DistError, TCPStore
assert dict(os.environ) == before
serve = "import sys; from torch.distributed import TCPStore; s = TCPStore('127.0.0.1', 0, None, True, "
serve += "wait_for_workers=False); print(s.port, flush=True); sys.stdin.read()"
server = subprocess.Popen([sys.executable, "-c", serve], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
store = TCPStore("127.0.0.1", int(server.stdout.readline()), None, False)
threading.Timer(0.5, server.kill).start()
try:
    store.get("never set")
except DistError:
    print("lost")
"""


@pytest.mark.parametrize(("how", "is_quiet"), [("quiet", True), ("as torch is", False)])
def test_a_lost_store_is_an_exception_and_no_page(how: str, is_quiet: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOSE_THE_STORE, how], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "lost\n"), done.stderr
    assert ("frame #0" not in done.stderr) is is_quiet
