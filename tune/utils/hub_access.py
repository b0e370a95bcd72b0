"""The way to the Hugging Face hub: its address, the token, and plain words for what goes wrong there."""

from __future__ import annotations

import json
import os
import re
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.request import getproxies

from huggingface_hub import HfApi, constants, errors, get_token
from huggingface_hub.utils import logging

from tune.errors import HubError, causes
from tune.utils.logging import get_logger

TOKEN_PAGE = "https://huggingface.co/settings/tokens"
# Seconds to wait before each new try.
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
_PASSING = (408, 429, 500, 502, 503, 504)
_MAX_SERVER_WORDS = 300

# The HTTP package huggingface_hub is built on: httpx2, or httpx in earlier releases.
_http_error = next(base for base in errors.HfHubHTTPError.__mro__[1:] if base.__name__ == "HTTPError")
http: Any = sys.modules[_http_error.__module__.partition(".")[0]]
# What a request to the hub ends in that is no bug of ours.
HUB_FAILURES: tuple[type[Exception], ...] = (
    http.HTTPError, http.InvalidURL, http.StreamError, ConnectionError, ssl.SSLError,
    errors.HFValidationError, json.JSONDecodeError, UnicodeError, RecursionError,
)  # fmt: skip

# What reading the answer of something else than a hub ends in.
_NO_HUB = (json.JSONDecodeError, UnicodeError, RecursionError, KeyError, TypeError, AttributeError)

T = TypeVar("T")


@dataclass(frozen=True)
class Hub:
    """One hub and the person asking.

    Args:
        endpoint: its address, without a slash at the end.
        token: access token, or None.
        token_from: where the token came from, for messages; None without one.
        kind: what is asked for, "model" or "dataset".
    """

    endpoint: str
    token: str | None = field(default=None, repr=False)
    token_from: str | None = None
    kind: str = "model"

    @property
    def api(self) -> HfApi:
        """The hub's own client; False keeps it from looking for a token where none was meant."""
        return HfApi(endpoint=self.endpoint, token=self.token or False, library_name="tune")

    def page(self, repo: str) -> str:
        """Return the address of the page of `repo`."""
        return f"{self.endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{repo}"

    @property
    def ways_to_give_a_token(self) -> str:
        """What says how to give a token."""
        option = "--hf-token TOKEN, " if self.kind == "model" else ""
        return f"{option}the environment variable HF_TOKEN, or once for all with `hf auth login`"

    def explain(
        self, error: BaseException, repo: str, revision: str | None = None, *, writing: bool = False
    ) -> str | None:
        """Return what `error` means and what to do about it; None if it says nothing about the hub.

        Errors that wrap the hub's own are looked through.

        Args:
            error: what a request ended in.
            repo: owner/name that was asked for.
            revision: branch, tag or commit, if one was named.
            writing: whether something was to be changed there.
        """
        kinds = (errors.OfflineModeIsEnabled, http.HTTPError, http.InvalidURL)
        cause: Any = next((link for link in causes(error) if isinstance(link, kinds)), None)
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return "the hub is switched off by HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE); unset it to use the network"
        if isinstance(cause, errors.GatedRepoError):
            return self.explain_gated(repo, cause.server_message)
        if isinstance(cause, errors.RevisionNotFoundError):
            return f"the {self.kind} {repo} has no branch, tag or commit {revision!r}"
        if isinstance(cause, errors.EntryNotFoundError):
            return f"{self.page(repo)} has lost a file between listing and fetching it; run again"
        if isinstance(cause, errors.HfHubHTTPError):
            missing = isinstance(cause, errors.RepositoryNotFoundError)
            said = f" The hub says: {_words(cause.server_message)}" if cause.server_message else ""
            return self._explain_status(404 if missing else cause.response.status_code, repo, writing, said)
        if cause is not None:
            return f"{self.endpoint} cannot be reached{self._why_not_reached(cause)}"
        if isinstance(error, _NO_HUB):
            return (
                f"{self.endpoint} did not answer as the hub does (a web page, perhaps the log-in of a network or a "
                "proxy). Open any page in a browser to log in, or check HF_ENDPOINT, then run again"
            )
        return None

    def explain_gated(self, repo: str, server: str | None = None) -> str:
        """Return how to be let in to a gated repository; `server` is what the hub said."""
        start = f"the {self.kind} {repo} is gated: its owner asks you to accept terms first."
        if self.token_from is None:
            return (
                f"{start}\n"
                f"  1. Log in and accept them at {self.page(repo)}\n"
                f"  2. Make a token with read access at {TOKEN_PAGE}\n"
                f"  3. Give it: {self.ways_to_give_a_token}"
            )
        waiting = f" (The hub says: {_words(server)})" if server else ""
        return (
            f"{start}\n"
            f"The token ({self.token_from}) is of an account that has not been let in yet: accept the terms at "
            f"{self.page(repo)} with that account, wait for the owner if they must agree, then run again. A "
            f"fine-grained token also needs the permission to read gated repositories ({TOKEN_PAGE}).{waiting}"
        )

    def _explain_status(self, status: int, repo: str, writing: bool, said: str) -> str:
        token, ways = f"the token ({self.token_from})", self.ways_to_give_a_token
        if status == 401 and self.token_from is not None:
            return f"the hub does not accept {token}: mistyped, expired or revoked. Make a new one at {TOKEN_PAGE}"
        if status in (401, 404):
            start = f"there is no {self.kind} {repo} at {self.endpoint}"
            if self.token_from is None:
                return f"{start}, or it is private; a private one needs a token: {ways}"
            return f"{start} that {token} may see; check the spelling, and that its account has access"
        if status == 403:
            right = f"{'write to' if writing else 'read'} {repo}"
            if self.token_from is None:
                return f"one may not {right} without a token: {ways}.{said}"
            return f"{token} may not {right}; give one of an account that may, with that right ({TOKEN_PAGE}).{said}"
        if status in (409, 412) and writing:
            return f"{repo} was changed by somebody else meanwhile; look at {self.page(repo)}, then run again.{said}"
        if status == 429:
            return f"the hub has had too many requests from here for now; wait a few minutes, then run again.{said}"
        if status >= 500:
            page = "https://status.huggingface.co tells how it is"
            return f"the hub has a problem of its own (HTTP {status}); run again in a while ({page}).{said}"
        return f"the hub refused the request (HTTP {status}).{said}"

    def _why_not_reached(self, error: BaseException) -> str:
        """Return what follows "cannot be reached": the reason, and what to do about it."""
        words, kind = _words(str(error)), type(error).__name__
        if "CERTIFICATE" in words.upper() or "SSL" in words.upper():
            return f" safely: {words}. Check the clock and SSL_CERT_FILE; a proxy may be in between"
        if kind in ("InvalidURL", "UnsupportedProtocol"):
            if self.endpoint.startswith(("http://", "https://")):
                return f": it sends on to what is no address of the web ({words}); a proxy may be in between"
            return f": {words}. HF_ENDPOINT is no address"
        if re.search("Name or service|name resolution|nodename|getaddrinfo|No address", words):
            return (
                ": its name is not known here. Without network, fetch the files on another machine and copy the "
                "folder; with it, check HF_ENDPOINT"
            )
        way = (
            "the proxy that HTTP_PROXY or HTTPS_PROXY names"
            if getproxies()
            else "the network and HF_ENDPOINT"
        )
        return f": {words or kind}. Check {way}, then run again"


def connect(token: str | None = None, kind: str = "model") -> Hub:
    """Return the hub to use: HF_ENDPOINT or huggingface.co, with `token` or the one this machine is logged in with.

    Raises:
        HubError: the token cannot be read, or cannot be one.
    """
    # Its warnings repeat addresses; ours say what they mean.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    source: str | None = "--hf-token"
    if token is None:
        try:
            token = get_token()
        except (OSError, UnicodeDecodeError) as error:
            raise HubError(f"the token of `hf auth login` cannot be read: {error}") from error
        # Machines of a continuous integration may fetch a token of their own; earlier releases do not know that.
        except getattr(errors, "OIDCError", OSError) as error:
            raise HubError(f"there is no token: {_words(str(error))}") from error
        variable = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
        source = None if token is None else "HF_TOKEN" if variable else "from `hf auth login`"
    if token is not None and not re.fullmatch("[!-~]+", token.strip()):
        raise HubError(
            f"the token ({source}) is empty or holds characters no token has; copy it again from {TOKEN_PAGE}"
        )
    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    return Hub(endpoint, token and token.strip(), source, kind)


@contextmanager
def translate_hub_errors(
    hub: Hub,
    repo: str,
    revision: str | None = None,
    *others: type[Exception],
    writing: bool = False,
    message: str = "{}",
) -> Iterator[None]:
    """Turn what goes wrong with the hub inside into a HubError that says what to do.

    Args:
        hub: whose token is kept out of the message, should a server have repeated it.
        repo: owner/name that is asked for.
        revision: branch, tag or commit, if one is named.
        others: kinds of errors that are the hub's doing here, beside the usual ones.
        writing: whether something is to be changed there.
        message: what is said, with {} for the reason.

    Raises:
        HubError: it went wrong.
    """
    try:
        yield
    except (*HUB_FAILURES, *others) as error:
        reason = hub.explain(error, repo, revision, writing=writing) or f"it failed: {_words(str(error))}"
        text = message.format(reason.rstrip("."))
        raise HubError(text.replace(hub.token, "***") if hub.token else text) from error


def with_retries(ask: Callable[[], T]) -> T:
    """Return what `ask` returns, asking again after passing troubles.

    Of these, huggingface_hub 2.4.0 ends `model_info` at any, and `http_get` at a 5xx or a connection that broke.
    """
    for wait in WAITS:
        try:
            return ask()
        except (errors.HfHubHTTPError, http.ReadError, http.WriteError) as error:
            status = (
                error.response.status_code if isinstance(error, errors.HfHubHTTPError) else "connection lost"
            )
            if status not in (*_PASSING, "connection lost"):
                raise
            get_logger().info("The hub: %s; trying again in %.1f s", status, wait)
            time.sleep(wait)
    return ask()


def _words(text: str | None) -> str:
    """Return a server's words on one line, not too many."""
    return " ".join((text or "").split())[:_MAX_SERVER_WORDS]
