"""What a run makes of the signals that ask it to stop."""

from __future__ import annotations

import signal

import pytest

from tune.training.signals import StopRequest
from tune.utils.mesh import Mesh


def test_only_the_second_ctrl_c_stops_at_once() -> None:
    with StopRequest(Mesh()) as stop:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(signum)
        assert stop.agreed()
        assert stop.exit_code == 143
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("is_ignored", [False, True])
def test_a_lost_terminal_is_a_request_unless_ignored(is_ignored: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
    try:
        with StopRequest(Mesh()) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.agreed() is not is_ignored
            assert stop.exit_code == (0 if is_ignored else 129)
    finally:
        signal.signal(signal.SIGHUP, before)
