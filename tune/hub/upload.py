"""A model to the hub: nothing overwritten unasked, all of it in one commit, compared with the hub's own sums after."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from tune.errors import HubError
from tune.hub.connection import CONNECT_TIMEOUT, Hub, explained, patiently, without_token
from tune.hub.listing import Repository, look_up
from tune.hub.parcel import Outgoing
from tune.hub.short_names import is_repository
from tune.utils.hub_errors import (
    TOKEN_PAGE,
    explain_hub_error,
    http_library,
    hub_failures,
    ways_to_give_a_token,
)

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

__all__ = ["UploadPlan", "plan_upload", "send", "who_am_i"]

# Seconds without an answer after which a connection counts as lost.
SENDING_TIMEOUT = 300.0
_WEIGHT_ENDINGS = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack", ".onnx")
_INDEX_ENDINGS = (".safetensors.index.json", ".bin.index.json")


@dataclass(frozen=True)
class UploadPlan:
    """What is about to change on the hub.

    Args:
        repo: owner/name.
        branch: the branch the files go to.
        files: what is sent.
        replaced: names of files there that are overwritten.
        deleted: names of weights there that are of no use beside the new ones.
        existing: what is there now; None for a repository, or a branch, that has to be made.
        makes_repo: whether the repository has to be made.
        private: whether only its owner may see it.
    """

    repo: str
    branch: str
    files: tuple[Outgoing, ...]
    replaced: tuple[str, ...]
    deleted: tuple[str, ...]
    existing: Repository | None
    makes_repo: bool
    private: bool


def who_am_i(hub: Hub) -> str:
    """Return the name of the account the token is of.

    Raises:
        HubError: there is no token, or it is not valid, or may only read.
    """
    if hub.token is None:
        raise HubError(
            f"uploading needs a token that may write. Make one at {TOKEN_PAGE}, then give it: {ways_to_give_a_token()}"
        )
    with explained(hub, hub.request("", writing=True), "asking who the token is of"):
        answer = patiently(lambda: hub.api.whoami())
    if not isinstance(answer, dict) or not isinstance(answer.get("name"), str):
        raise HubError(f"{hub.endpoint} does not say whose token this is; check HF_ENDPOINT")
    access = answer.get("auth")
    role = access.get("accessToken", {}).get("role") if isinstance(access, dict) else None
    if role == "read":
        raise HubError(
            f"the token ({hub.token_from}) of {answer['name']} may only read; make one that may write at {TOKEN_PAGE}"
        )
    return str(answer["name"])


def plan_upload(
    hub: Hub, repo: str, files: Sequence[Outgoing], *, branch: str | None, private: bool, force: bool
) -> UploadPlan:
    """Return what sending `files` to `repo` would change, having made sure that it may be.

    Raises:
        HubError: the repository holds weights already and `force` is false, or it is public although private was
            asked for, or the hub cannot be asked.
    """
    if not is_repository(repo):
        raise HubError(
            f"{repo!r} is no name of a repository: give owner/name, of letters, digits, '-', '_' and '.'"
        )
    target = branch or "main"
    there = _look_up_or_none(hub, repo, None)
    existing = there if there is None or branch in (None, "main") else _look_up_or_none(hub, repo, branch)
    if there is not None and private and not there.private:
        raise HubError(
            f"{repo} is public already, and --private counts only where a repository is made. Make it private at "
            f"{hub.endpoint}/{repo}/settings, or choose another name"
        )
    names = {file.name for file in files}
    held = [file.name for file in existing.files] if existing is not None else []
    weights = [name for name in held if name.endswith(_WEIGHT_ENDINGS)]
    if weights and not force:
        shown = ", ".join(weights[:4]) + (f" and {len(weights) - 4} more" if len(weights) > 4 else "")
        raise HubError(
            f"{hub.endpoint}/{repo} holds a model already ({shown}). --force replaces it; the old one stays in the "
            "repository's history"
        )
    stale = [
        name
        for name in held
        if "/" not in name and name.endswith((*_WEIGHT_ENDINGS, *_INDEX_ENDINGS)) and name not in names
    ]
    return UploadPlan(
        repo=there.name if there is not None else repo,
        branch=target,
        files=tuple(files),
        replaced=tuple(name for name in held if name in names),
        deleted=tuple(stale),
        existing=existing,
        makes_repo=there is None,
        private=private if there is None else there.private,
    )


def send(hub: Hub, plan: UploadPlan, message: str, sent: Callable[[Outgoing], None]) -> str:
    """Carry out `plan` and return the address of the model's page.

    Args:
        hub: where to.
        plan: what to send.
        message: says in the repository's history what this is.
        sent: told of each file whose content has arrived.

    Raises:
        HubError: something was refused or lost; until the last request the repository shows nothing new.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # documented there

    # The client waits for ever by itself; a storage host may think for minutes about a large file.
    get_session().timeout = http_library().Timeout(SENDING_TIMEOUT, connect=CONNECT_TIMEOUT)
    _make_room(hub, plan)
    additions = [
        CommitOperationAdd(file.name, file.source if isinstance(file.source, bytes) else str(file.source))
        for file in plan.files
    ]
    with _way_the_hub_takes(hub, plan):
        for file, addition in zip(plan.files, additions):
            with _explained_sending(hub, plan, file.name):
                hub.api.preupload_lfs_files(plan.repo, [addition], revision=plan.branch, num_threads=1)
            sent(file)
        parent = plan.existing.commit if plan.existing is not None else None
        with _explained_sending(hub, plan, "the commit"):
            commit = hub.api.create_commit(
                plan.repo,
                [*additions, *(CommitOperationDelete(name) for name in plan.deleted)],
                commit_message=message,
                revision=plan.branch,
                parent_commit=parent,
            )
    _compare(hub, plan, additions, commit.oid)
    page = f"{hub.endpoint}/{plan.repo}"
    return page if plan.branch == "main" else f"{page}/tree/{quote(plan.branch, safe='')}"


def _look_up_or_none(hub: Hub, repo: str, branch: str | None) -> Repository | None:
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return look_up(hub, repo, branch)
    except HubError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError | RevisionNotFoundError):
            return None
        raise


def _make_room(hub: Hub, plan: UploadPlan) -> None:
    """Make the repository and the branch where they are missing."""
    request = hub.request(plan.repo, plan.branch, writing=True)
    if plan.makes_repo:
        with explained(hub, request, f"making {plan.repo}"):
            # None leaves it to what the owner has set as usual.
            patiently(lambda: hub.api.create_repo(plan.repo, private=plan.private or None, exist_ok=True))
    if plan.existing is None and plan.branch != "main":
        with explained(hub, request, f"making the branch {plan.branch}"):
            patiently(lambda: hub.api.create_branch(plan.repo, branch=plan.branch, exist_ok=True))


@contextlib.contextmanager
def _way_the_hub_takes(hub: Hub, plan: UploadPlan) -> Iterator[None]:
    """Send large files by Xet where the hub offers it, else by LFS: mirrors and older hubs know LFS alone."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # documented there

    before = constants.HF_HUB_DISABLE_XET
    address = f"{hub.endpoint}/api/models/{plan.repo}/xet-write-token/{quote(plan.branch, safe='')}"
    try:
        with explained(hub, hub.request(plan.repo, plan.branch, writing=True), "asking how to send"):
            answer = patiently(lambda: get_session().get(address, headers=hub.headers, timeout=30.0))
        if answer.status_code == 403:
            raise HubError(
                f"the token ({hub.token_from}) may not write there: {plan.repo} belongs to somebody else, or the token "
                f"lacks the permission to write ({TOKEN_PAGE})"
            )
        constants.HF_HUB_DISABLE_XET = before or answer.status_code != 200
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


@contextlib.contextmanager
def _explained_sending(hub: Hub, plan: UploadPlan, what: str) -> Iterator[None]:
    # The client wraps what a transfer failed of in RuntimeError, a strange answer in ValueError or KeyError; Xet's own
    # errors are kinds of OSError.
    try:
        yield
    except hub_failures(RuntimeError, ValueError, KeyError, OSError) as error:
        request = hub.request(plan.repo, plan.branch, writing=True)
        reason = (
            explain_hub_error(error, request)
            or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        )
        raise HubError(
            without_token(
                f"sending {what} to {plan.repo} failed: {reason}.\nThe repository shows nothing new. Run the same "
                "command again: what has arrived is not sent twice",
                hub,
            )
        ) from error


def _compare(hub: Hub, plan: UploadPlan, additions: Sequence[CommitOperationAdd], commit: str) -> None:
    """Make sure that the hub now holds what was sent."""
    there = {file.name: file for file in look_up(hub, plan.repo, commit).files}
    for file, addition in zip(plan.files, additions):
        arrived = there.get(file.name)
        if arrived is None or arrived.size != file.size:
            found = f"has {arrived.size:,}" if arrived is not None else "is missing"
            raise HubError(
                f"{file.name} {found} on the hub, {file.size:,} bytes were sent: {hub.endpoint}/{plan.repo} is not "
                "whole. Run the same command again with --force"
            )
        if len(arrived.digest) == 64 and arrived.digest != addition.upload_info.sha256.hex():
            raise HubError(
                f"{file.name} differs on the hub from what was sent: {hub.endpoint}/{plan.repo} is damaged. Run the "
                "same command again with --force"
            )
