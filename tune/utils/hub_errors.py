"""What the Hugging Face hub, or the way there, answers, in plain words: the page to visit, the token to give."""

from __future__ import annotations

import importlib
import json
import os
import re
import ssl
from dataclasses import dataclass
from types import ModuleType
from urllib.parse import urlsplit
from urllib.request import getproxies

from tune.errors import HubError

TOKEN_PAGE = "https://huggingface.co/settings/tokens"
_MAX_SERVER_WORDS = 300


@dataclass(frozen=True)
class HubRequest:
    """What was asked of the hub, as far as an explanation needs it.

    Args:
        kind: "model" or "dataset".
        repo: owner/name.
        endpoint: address of the hub.
        revision: branch, tag or commit, if one was named.
        token_from: where the token came from ("--hf-token", "HF_TOKEN", "hf auth login"), or None without one.
        writing: whether something was to be changed there.
        options: whether the command has --hf-token, to be named among the ways to give one.
    """

    kind: str
    repo: str
    endpoint: str
    revision: str | None = None
    token_from: str | None = None
    writing: bool = False
    options: bool = True

    @property
    def page(self) -> str:
        """Address of the repository's page."""
        return f"{self.endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo}"


def ways_to_give_a_token(options: bool = True) -> str:
    """Return the sentence that says how to give a token."""
    first = "--hf-token TOKEN, " if options else ""
    return f"{first}the environment variable HF_TOKEN, or once for all with `hf auth login`"


def hub_endpoint() -> str:
    """Return the address of the hub in use: HF_ENDPOINT, or huggingface.co."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def find_token() -> tuple[str | None, str | None]:
    """Return the token this machine is logged in with, and where it comes from, for messages.

    Raises:
        HubError: there is one, but it cannot be read.
    """
    from huggingface_hub import errors, get_token

    # Machines of a continuous integration may fetch a token of their own; earlier releases do not know that.
    from_ci: type[Exception] = getattr(errors, "OIDCError", OSError)
    try:
        token = get_token()
    except from_ci as error:
        raise HubError(f"there is no token: {_words(str(error))}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise HubError(f"the token of `hf auth login` cannot be read: {error}") from error
    if token is None:
        return None, None
    by_variable = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    return token, "HF_TOKEN" if by_variable else "from `hf auth login`"


def http_library() -> ModuleType:
    """Return the HTTP package huggingface_hub is built on: httpx2, or httpx in earlier releases."""
    from huggingface_hub.errors import HfHubHTTPError

    root = next(base for base in HfHubHTTPError.__mro__[1:] if base.__name__ == "HTTPError")
    return importlib.import_module(root.__module__.partition(".")[0])


def hub_failures(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """Return every kind of exception a request to the hub ends in that is no bug of ours, and `others`."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    http = http_library()
    return (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        http.HTTPError,
        http.InvalidURL,
        http.StreamError,
        json.JSONDecodeError,
        UnicodeError,
        ssl.SSLError,
        ConnectionError,
        *others,
    )


def explain_hub_error(error: BaseException, request: HubRequest) -> str | None:
    """Return what `error` means and what to do about it; None if it says nothing about the hub.

    Errors that wrap the hub's own are looked through. Nothing of the request but its address is repeated.
    """
    from huggingface_hub import errors

    http = http_library()
    kinds = (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, http.HTTPError, http.InvalidURL)
    chain = [error]
    while (earlier := chain[-1].__cause__ or chain[-1].__context__) is not None and earlier not in chain:
        chain.append(earlier)
    cause = next((link for link in chain if isinstance(link, kinds)), None)
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return (
            "the hub is switched off by HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE); unset it to use the network"
        )
    if isinstance(cause, errors.GatedRepoError):
        return explain_gated(request, cause.server_message)
    if isinstance(cause, errors.RevisionNotFoundError):
        return f"the {request.kind} {request.repo} has no branch, tag or commit {request.revision!r}"
    if isinstance(cause, errors.EntryNotFoundError):
        return f"{request.page} has lost a file between listing and fetching it; run again"
    if isinstance(cause, errors.RepositoryNotFoundError):
        return _not_found(request)
    if isinstance(cause, errors.HfHubHTTPError):
        said = f" The hub says: {_words(cause.server_message)}" if cause.server_message else ""
        return _by_status(cause.response.status_code, request, said)
    if cause is not None:
        return f"{request.endpoint} cannot be reached{_why_not_reached(cause, request.endpoint)}"
    if isinstance(error, json.JSONDecodeError | UnicodeError):
        return (
            f"{request.endpoint} did not answer as the hub does (a web page, perhaps the log-in of a network or a "
            "proxy). Open any page in a browser to log in, or check HF_ENDPOINT, then run again"
        )
    return None


def explain_gated(request: HubRequest, server: str | None = None) -> str:
    """Return how to be let in to a gated repository; `server` is what the hub said."""
    start = f"the {request.kind} {request.repo} is gated: its owner asks you to accept terms first."
    if request.token_from is None:
        return (
            f"{start}\n"
            f"  1. Log in and accept them at {request.page}\n"
            f"  2. Make a token with read access at {TOKEN_PAGE}\n"
            f"  3. Give it: {ways_to_give_a_token(request.options)}"
        )
    waiting = " (The hub says: " + _words(server) + ")" if server else ""
    return (
        f"{start}\n"
        f"The token ({request.token_from}) is of an account that has not been let in yet: accept the terms at "
        f"{request.page} with that account, wait for the owner if they must agree, then run again. A fine-grained "
        f"token also needs the permission to read gated repositories ({TOKEN_PAGE}).{waiting}"
    )


def _by_status(status: int, request: HubRequest, said: str) -> str:
    token = f"the token ({request.token_from})"
    ways = ways_to_give_a_token(request.options)
    if status == 401 and request.token_from is not None:
        return f"the hub does not accept {token}: it is mistyped, expired or revoked. Make a new one at {TOKEN_PAGE}"
    if status == 401 and request.writing:
        return f"this needs a token that may write: {ways}"
    if status in (401, 404):
        return _not_found(request)
    if status == 403:
        right = f"{'write to' if request.writing else 'read'} {request.repo}"
        if request.token_from is None:
            return f"one may not {right} without a token: {ways}.{said}"
        return f"{token} may not {right}; give one of an account that may, with that permission ({TOKEN_PAGE}).{said}"
    if status in (409, 412) and request.writing:
        return f"{request.repo} was changed by somebody else meanwhile; look at {request.page}, then run again.{said}"
    if status == 429:
        return (
            f"the hub has had too many requests from here for now; wait a few minutes, then run again.{said}"
        )
    if status >= 500:
        return (
            f"the hub has a problem of its own (HTTP {status}); run again in a while "
            f"(https://status.huggingface.co tells how it is).{said}"
        )
    return f"the hub refused the request (HTTP {status}).{said}"


def _not_found(request: HubRequest) -> str:
    start = f"there is no {request.kind} {request.repo} at {request.endpoint}"
    if request.token_from is None:
        ways = ways_to_give_a_token(request.options)
        return f"{start}, or it is private; a private one needs a token: {ways}"
    return f"{start} that the token ({request.token_from}) may see; check the spelling, and that its account has access"


def _why_not_reached(error: BaseException, endpoint: str) -> str:
    """Return what follows "cannot be reached": the reason, and what to do about it."""
    words, kind = _words(str(error)), type(error).__name__
    if "CERTIFICATE" in words.upper() or "SSL" in words.upper():
        return f" safely: {words}. Check the clock and SSL_CERT_FILE; a proxy may be in between"
    if kind == "ProxyError":
        return f" through the proxy: {words}. Check HTTPS_PROXY"
    if re.search("Name or service|name resolution|nodename|getaddrinfo|No address", words):
        return (
            f": the name {urlsplit(endpoint).hostname} is not known here. Without network, fetch the files on another "
            "machine and copy the folder"
        )
    if "Timeout" in kind:
        return ": no answer in time. Check the network, then run again"
    if kind in ("InvalidURL", "UnsupportedProtocol"):
        return f": {words}. HF_ENDPOINT is no address"
    proxy = getproxies().get(urlsplit(endpoint).scheme)
    way = "the proxy that HTTP_PROXY or HTTPS_PROXY names" if proxy else "the network and HF_ENDPOINT"
    return f": {words or kind}. Check {way}, then run again"


def _words(text: str | None) -> str:
    """Return a server's words on one line, not too many."""
    return " ".join((text or "").split())[:_MAX_SERVER_WORDS]
