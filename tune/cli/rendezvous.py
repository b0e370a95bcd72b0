"""How machines that start a run together find each other's addresses, and wait for the one that listens."""

from __future__ import annotations

import errno
import socket
import time

from torch.distributed.launcher.api import LaunchConfig

from tune.errors import TrainingError

_JOIN_TIMEOUT_S = 600  # torch's
_RESOLVE_S = 60


def address_towards(host: str, port: int) -> str:
    """Return this machine's address as `host` sees it; nothing is sent for that."""
    until = time.monotonic() + _RESOLVE_S
    while True:
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
        except OSError as error:
            # In a cluster that is just starting, names come into being with the machines.
            if not isinstance(error, socket.gaierror) or time.monotonic() > until:
                raise TrainingError(f"there is no way to {host}: {error.strerror or error}") from error
            time.sleep(1.0)


def is_here(host: str, port: int) -> bool | None:
    """Tell whether `host` is this machine; None where the port is taken, perhaps by another launcher here."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return True
    except OSError as error:
        return False if error.errno == errno.EADDRNOTAVAIL else None


def wait_for_host(config: LaunchConfig) -> None:
    """Wait until the machine that the others meet at listens: torch itself would give up after a minute."""
    if config.rdzv_configs.get("is_host") != "false":
        return
    host, _, port = config.rdzv_endpoint.rpartition(":")
    seconds = int(config.rdzv_configs.get("join_timeout", _JOIN_TIMEOUT_S))
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise TrainingError(
                    f"nothing answers at {config.rdzv_endpoint}, the --rdzv_endpoint, after {seconds} s: "
                    f"{error.strerror or error}. The same command has to run on that machine, and the port has to be "
                    "reachable. --rdzv_conf join_timeout=SECONDS waits longer."
                ) from error
            time.sleep(0.5)
