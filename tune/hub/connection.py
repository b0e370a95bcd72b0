"""The way to the hub: its address, the token, and what is said and tried again when it fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub import HfApi
from huggingface_hub.utils import build_hf_headers, logging  # type: ignore[attr-defined]  # documented there

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

__all__ = ["Hub", "connect", "translate_hub_errors", "with_retries"]

# Seconds to wait before each new try; the hub may ask for other times, up to MAX_WAIT.
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
MAX_WAIT = 120.0
# Without an answer for so long, a connection counts as lost.
TIMEOUT = 30.0
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
        return HfApi(endpoint=self.endpoint, token=self.token or False, library_name="tune")

    @property
    def headers(self) -> dict[str, str]:
        """What a request that does not go through `api` carries."""
        return dict(build_hf_headers(token=self.token or False, library_name="tune"))

    def request(self, repo: str, revision: str | None = None, *, writing: bool = False) -> HubRequest:
        """Return what is about to be asked, for an explanation of its failure."""
        return HubRequest("model", repo, self.endpoint, revision, self.token_from, writing)


def connect(token: str | None) -> Hub:
    """Return the hub to use: HF_ENDPOINT or huggingface.co, with `token` or the one this machine is logged in with.

    Raises:
        HubError: the token cannot be one.
    """
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
def translate_hub_errors(
    hub: Hub, request: HubRequest, doing: str, *others: type[Exception], message: str = "{}"
) -> Iterator[None]:
    """Turn what goes wrong with the hub inside into a HubError that says what to do.

    Args:
        hub: whose token is kept out of the message, should a server have repeated it.
        request: what is asked.
        doing: what failed where the error says nothing about the hub.
        others: kinds of errors that are the hub's doing here, beside the usual ones.
        message: what is said, with {} for the reason.

    Raises:
        HubError: it went wrong.
    """
    try:
        yield
    except hub_failures(*others) as error:
        reason = explain_hub_error(error, request) or f"{doing} failed: {' '.join(str(error).split())[:300]}"
        text = message.format(reason.rstrip("."))
        raise HubError(text.replace(hub.token, "***") if hub.token else text) from error


def with_retries(ask: Callable[[], T], *, lost: bool = True) -> T:
    """Return what `ask` returns, asking again after passing troubles: 429, 5xx, lost connections.

    Args:
        ask: asks the hub.
        lost: whether to mend lost connections, too; the library's own transfers do most of that themselves.
    """
    http = http_library()
    mended = (http.TransportError,) if lost else (http.ReadError, http.WriteError)
    hopeless = (http.ConnectError, http.ProxyError, http.UnsupportedProtocol)
    for wait in WAITS:
        try:
            return ask()
        except hub_failures() as error:
            response = getattr(error, "response", None)
            asked = response.headers.get("Retry-After", "") if response is not None else ""
            pause = float(asked) if asked.isdecimal() else wait
            if response is not None:
                passing = response.status_code in _PASSING and pause <= MAX_WAIT
            else:
                passing = isinstance(error, mended) and not isinstance(error, hopeless)
            if not passing:
                raise
            what = f"the hub answers HTTP {response.status_code}" if response else "the connection was lost"
            get_logger().info("%s; trying again in %.1f s", what, pause)
            time.sleep(pause)
    return ask()
