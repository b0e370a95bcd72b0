"""How a machine finds out, before a run with others, which of its addresses they know."""

from __future__ import annotations

import contextlib
import socket
import time

from tune.errors import TrainingError

_RESOLVE_S = 60


def find_address(endpoint: str, seconds: int) -> tuple[str, bool]:
    """Return this machine's address as the endpoint's host sees it, and whether this machine is to listen there.

    torch compares names: it would not know the address of a second network card as ours.

    Args:
        endpoint: where the machines meet.
        seconds: how long a name may take to come into being.

    Raises:
        TrainingError: there is no such host, or no way to it.
    """
    host, _, port = endpoint.rpartition(":")
    until = time.monotonic() + min(_RESOLVE_S, seconds)
    while True:
        try:
            family, _, _, _, address = socket.getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM
            )[0]
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(address)  # sends nothing
                return str(probe.getsockname()[0]), _can_listen(family, address)
        except OSError as error:
            # In a cluster that is just starting, names come into being with the machines.
            if not isinstance(error, socket.gaierror) or time.monotonic() > until:
                raise TrainingError(
                    f"there is no way to {host}, the --rdzv_endpoint: {error.strerror or error}"
                ) from error
            time.sleep(1.0)


def _can_listen(family: int, address: tuple[object, ...]) -> bool:
    """Tell whether an address is this machine's, and its port is not taken by another launcher."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            return True
        except OSError:
            return False


def wait_for_host(endpoint: str) -> None:
    """Wait until the machine that the others meet at listens: torch itself would look more and more rarely.

    That is for ever, in a thread: the launcher keeps the time.
    """
    host, _, port = endpoint.rpartition(":")
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
            return
        time.sleep(0.5)
