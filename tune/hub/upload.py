"""A model to the hub: nothing overwritten unasked, all of it in one commit, compared with the hub's own sums after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # documented there

from tune.errors import HubError
from tune.hub.listing import TIMEOUT, look_up
from tune.hub.selection import WEIGHT_ENDINGS
from tune.utils.hub_access import TOKEN_PAGE, Hub, http, translate_hub_errors

__all__ = ["UploadPlan", "plan_upload", "send", "who_am_i"]

# Seconds without an answer after which a connection counts as lost: a storage host may think about a large file.
SENDING_TIMEOUT = 300.0
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
        parent: the commit that is there now; None for a repository, or a branch, that has to be made.
        makes_repo: whether the repository has to be made.
        private: whether only its owner may see it.
    """

    repo: str
    branch: str
    files: tuple[CommitOperationAdd, ...]
    replaced: tuple[str, ...]
    deleted: tuple[str, ...]
    parent: str | None
    makes_repo: bool
    private: bool


def who_am_i(hub: Hub) -> str:
    """Return the name of the account the token is of.

    Raises:
        HubError: there is no token, or it is not valid, or may only read.
    """
    if hub.token is None:
        raise HubError(
            f"uploading needs a token that may write. Make one at {TOKEN_PAGE}, then give it: "
            f"{hub.ways_to_give_a_token}"
        )
    with translate_hub_errors(hub, "", None, KeyError, TypeError, AttributeError, writing=True):
        answer = hub.api.whoami()
        name, role = str(answer["name"]), answer.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise HubError(
            f"the token ({hub.token_from}) of {name} may only read; make one that may write at {TOKEN_PAGE}"
        )
    return name


def plan_upload(
    hub: Hub,
    repo: str,
    files: Sequence[CommitOperationAdd],
    *,
    branch: str | None,
    private: bool,
    force: bool,
) -> UploadPlan:
    """Return what sending `files` to `repo` would change, having made sure that it may be.

    Raises:
        HubError: the repository holds weights already and `force` is false, or it is public although private was
            asked for, or the hub cannot be asked.
    """
    target = branch or "main"
    with translate_hub_errors(hub, repo, target, writing=True):
        there = look_up(hub, repo) if hub.api.repo_exists(repo) else None
        has_branch = there is not None and (target == "main" or hub.api.revision_exists(repo, target))
    existing = look_up(hub, repo, target) if has_branch else None
    if there is not None and private and not there.private:
        raise HubError(
            f"{repo} is public already, and --private counts only where a repository is made. Make it private at "
            f"{hub.endpoint}/{repo}/settings, or choose another name"
        )
    names = {file.path_in_repo for file in files}
    held = [file.name for file in existing.files] if existing is not None else []
    weights = [name for name in held if name.endswith(WEIGHT_ENDINGS)]
    if weights and not force:
        shown = ", ".join(weights[:4]) + (f" and {len(weights) - 4} more" if len(weights) > 4 else "")
        raise HubError(
            f"{hub.endpoint}/{repo} holds a model already ({shown}). --force replaces it; the old one stays in the "
            "repository's history"
        )
    endings = (*WEIGHT_ENDINGS, *_INDEX_ENDINGS)
    return UploadPlan(
        repo=there.name if there is not None else repo,
        branch=target,
        files=tuple(files),
        replaced=tuple(name for name in held if name in names),
        deleted=tuple(n for n in held if "/" not in n and n.endswith(endings) and n not in names),
        parent=existing.commit if existing is not None else None,
        makes_repo=there is None,
        private=private if there is None else there.private,
    )


def send(hub: Hub, plan: UploadPlan, message: str, sent: Callable[[str], None]) -> str:
    """Carry out `plan` and return the address of the model's page.

    Args:
        hub: where to.
        plan: what to send.
        message: says in the repository's history what this is.
        sent: told the name of each file whose content has arrived.

    Raises:
        HubError: something was refused or lost; until the last request the repository shows nothing new.
    """
    get_session().timeout = http.Timeout(SENDING_TIMEOUT, connect=TIMEOUT)
    api = hub.api
    deletions = [CommitOperationDelete(name) for name in plan.deleted]
    failure = (
        f"sending to {plan.repo} failed: {{}}.\nThe repository shows nothing new. Run the same command again: what has "
        "arrived is not sent twice"
    )
    # The client wraps what a transfer failed of in RuntimeError, a strange answer in ValueError or KeyError; Xet's own
    # errors are kinds of OSError.
    kinds = (RuntimeError, ValueError, KeyError, OSError)
    with translate_hub_errors(hub, plan.repo, plan.branch, *kinds, writing=True, message=failure):
        if plan.makes_repo:
            # None leaves it to what the owner has set as usual.
            api.create_repo(plan.repo, private=plan.private or None, exist_ok=True)
        if plan.parent is None and plan.branch != "main":
            api.create_branch(plan.repo, branch=plan.branch, exist_ok=True)
        _choose_protocol(hub, plan)
        for file in plan.files:
            api.preupload_lfs_files(plan.repo, [file], revision=plan.branch, free_memory=False)
            sent(file.path_in_repo)
        commit = api.create_commit(
            plan.repo, [*plan.files, *deletions], commit_message=message, revision=plan.branch,
            parent_commit=plan.parent,
        )  # fmt: skip
    page = f"{hub.endpoint}/{plan.repo}"
    there = {file.name: file for file in look_up(hub, plan.repo, commit.oid).files}
    for file in plan.files:
        arrived, info = there.get(file.path_in_repo), file.upload_info
        # The digest of a small file is git's, which nothing here counts.
        digests = (info.sha256.hex(), arrived.digest if arrived and len(arrived.digest) == 40 else "")
        if arrived is None or arrived.size != info.size or arrived.digest not in digests:
            raise HubError(
                f"{file.path_in_repo} differs on the hub from what was sent: {page} is damaged. Run the same command "
                "again with --force"
            )
    return page if plan.branch == "main" else f"{page}/tree/{quote(plan.branch, safe='')}"


def _choose_protocol(hub: Hub, plan: UploadPlan) -> None:
    """Send by LFS where the hub offers no Xet: huggingface_hub 2.4.0 sends by Xet to mirrors that know LFS alone."""
    branch = quote(plan.branch, safe="")
    address = f"{hub.endpoint}/api/models/{plan.repo}/xet-write-token/{branch}"
    answer = get_session().get(address, headers={"authorization": f"Bearer {hub.token}"})
    constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_XET or answer.status_code == 404
