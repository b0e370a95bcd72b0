"""The way to the hub: its address, the token, and requests that are repeated while that can help."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tune.errors import HubError
from tune.utils import get_logger
from tune.utils.hub_errors import (
    HubRequest,
    explain_hub_error,
    find_token,
    http_library,
    hub_endpoint,
    hub_failures,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Hub", "connect", "explained", "patiently"]

# Seconds to wait before each new try; the hub may ask for other times, up to MAX_WAIT.
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
MAX_WAIT = 120.0
CONNECT_TIMEOUT = 10.0
# Without a byte for so long, a connection counts as lost.
READ_TIMEOUT = 30.0
_PASSING = (408, 429, 500, 502, 503, 504)

T = TypeVar("T")


@dataclass(frozen=True)
class Hub:
    """One hub and the person asking.

    Args:
        endpoint: address, without a slash at the end.
        token: access token, or None.
        token_from: where the token came from, for messages.
    """

    endpoint: str
    token: str | None
    token_from: str | None

    def __repr__(self) -> str:  # a token must not reach a log through here
        return f"Hub({self.endpoint!r}, token from {self.token_from})"

    @property
    def api(self) -> HfApi:
        """The hub's own client; False keeps it from looking for a token where none was meant."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.token or False, library_name="tune")

    @property
    def headers(self) -> dict[str, str]:
        """What every request of ours carries."""
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented there

        return dict(build_hf_headers(token=self.token or False, library_name="tune"))

    def request(self, repo: str, revision: str | None = None, *, writing: bool = False) -> HubRequest:
        """Return what is about to be asked, for an explanation of its failure."""
        return HubRequest("model", repo, self.endpoint, revision, self.token_from, writing)


def connect(token: str | None) -> Hub:
    """Return the hub to use: HF_ENDPOINT or huggingface.co, with `token` or the one this machine is logged in with.

    Raises:
        HubError: the token cannot be one.
    """
    from huggingface_hub.utils import logging

    # Its warnings repeat addresses; ours say what they mean.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    source: str | None = "--hf-token"
    if token is None:
        token, source = find_token()
    if token is not None:
        token = token.strip()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise HubError(
                f"the token ({source}) is empty or holds characters no token has; copy it again from "
                "https://huggingface.co/settings/tokens"
            )
    return Hub(hub_endpoint(), token, source)


@contextmanager
def explained(hub: Hub, request: HubRequest, doing: str) -> Iterator[None]:
    """Turn what goes wrong with the hub inside into a HubError that says what to do.

    Raises:
        HubError: it went wrong.
    """
    try:
        yield
    except hub_failures() as error:
        reason = explain_hub_error(error, request) or f"{doing} failed: {error}"
        raise HubError(without_token(reason, hub)) from error


def without_token(text: str, hub: Hub) -> str:
    """Return `text` with the token blotted out, should a server have repeated it."""
    return text.replace(hub.token, "***") if hub.token else text


def patiently(ask: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """Return what `ask` returns, asking again after passing troubles: lost connections, 429 and 5xx.

    An address that does not resolve or refuses is asked twice only: that seldom passes.
    """
    http = http_library()
    waits = list(WAITS)
    while True:
        try:
            return ask()
        except hub_failures() as error:
            wait = waiting_time(error, waits, http)
            if wait is None:
                raise
            get_logger().info("%s; trying again in %.1f s", _short(error), wait)
            sleep(wait)


def waiting_time(error: BaseException, waits: list[float], http: Any) -> float | None:
    """Return how long to wait before a new try, taking one off `waits`; None if trying again is no use."""
    if not waits:
        return None
    response = getattr(error, "response", None)
    if response is not None:
        if response.status_code not in _PASSING:
            return None
        asked = response.headers.get("Retry-After", "")
        if asked.isdecimal():
            waits.pop(0)
            return float(asked) if float(asked) <= MAX_WAIT else None
        return waits.pop(0)
    if isinstance(error, http.ConnectError):
        del waits[:-2]  # twice at most, from now on
        return min(WAITS[0], waits.pop())
    passing = isinstance(error, http.TransportError) and not isinstance(error, http.UnsupportedProtocol)
    return waits.pop(0) if passing else None


def _short(error: BaseException) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"the hub answers HTTP {response.status_code}"
    return "no connection" if type(error).__name__.startswith("Connect") else "the connection was lost"
