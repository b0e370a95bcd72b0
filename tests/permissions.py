"""Permissions that bind root, too: what ignores them are two of its capabilities, which a process may lay down."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# linux/capability.h, linux/prctl.h
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH, _CAP_SETPCAP = 1, 2, 8
_OVERRIDES = 1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH
_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP = 24


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


@contextmanager
def binding() -> Iterator[None]:
    """Have permissions bind this thread while the body runs."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("nothing binds root here")
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    assert libc.capget(ctypes.byref(header), data) == 0
    before = data[0].effective
    data[0].effective &= ~_OVERRIDES
    assert libc.capset(ctypes.byref(header), data) == 0
    try:
        yield
    finally:
        data[0].effective = before
        assert libc.capset(ctypes.byref(header), data) == 0


def can_bind() -> bool:
    """Return whether what this process executes can be bound for good: root may not always lay down its powers."""
    if os.geteuid() != 0:
        return True
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    known = sys.platform == "linux" and ctypes.CDLL(None).capget(ctypes.byref(header), data) == 0
    return bool(known and data[0].effective & 1 << _CAP_SETPCAP)


def require_binding() -> None:
    """Skip the test where this process is root for good: it may not lay down what it was born with."""
    if not can_bind():
        pytest.skip("root may not lay down its capabilities here (CAP_SETPCAP)")


def bind_for_good() -> None:
    """Have permissions bind this process, what it executes, and all that comes of it; for `preexec_fn`."""
    if os.geteuid() == 0 and sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "root's capabilities cannot be laid down")
        header, data = _Header(_VERSION_3, 0), (_Data * 2)()
        assert libc.capget(ctypes.byref(header), data) == 0
        data[0].effective &= ~_OVERRIDES
        data[0].permitted &= ~_OVERRIDES
        assert libc.capset(ctypes.byref(header), data) == 0
