"""Errors that say no more than that another process of the run has gone."""

from __future__ import annotations

import re

__all__ = ["is_lost_connection"]

# What gloo, NCCL and the store say when it is another process that has gone.
_LOST = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|broken pipe|socket (closed|timeout)|recvValue failed"
    r"|remote process exited|communicator was aborted|ncclRemoteError|ncclSystemError|failed to recv"
    r"|peer may have (died|exited)|application timeout caused pair closure|unhandled system error"
    r"|no longer (alive|reachable)|heartbeat monitor",
    re.IGNORECASE,
)


def is_lost_connection(text: str) -> bool:
    """Tell whether an error says no more than that another process has gone."""
    return _LOST.search(text) is not None
