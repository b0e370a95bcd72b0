"""`tune upload`: a saved step to the hub, with a card that says what it is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tune.cli.arguments import Command, Given, Option, UsageError
from tune.cli.terminal import columns, file_lines, format_size, say
from tune.config.diagnostics import printable

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

    from tune.hub.lineage import Lineage
    from tune.hub.upload import UploadPlan


def run(given: Given) -> int:
    """Check what is to be sent, show it, send it, and print its address."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # documented there

    from tune.hub.short_names import is_repository
    from tune.hub.upload import plan_upload, send, who_am_i
    from tune.hub.upload_files import find_upload_folder, kind_of
    from tune.utils import get_logger
    from tune.utils.hub_access import connect

    path, repo = given.operands
    token, base_model = given.one("hf_token"), given.one("base_model")
    message, branch = given.one("message"), given.one("revision")
    if base_model is not None and not is_repository(base_model):
        raise UsageError(f"--base-model takes owner/name as on the hub, not {base_model!r}")
    if not is_repository(repo) and not is_repository(f"owner/{repo}"):
        raise UsageError(
            f"{repo!r} is no name of a repository: give owner/name, of letters, digits, '-', '_' and '.'"
        )

    get_logger("INFO")
    folder = find_upload_folder(path)
    hub = connect(token)
    owner = who_am_i(hub)
    repo = repo if "/" in repo else f"{owner}/{repo}"
    lineage, files = _collect(folder, repo, base_model)
    plan = plan_upload(
        hub, repo, files, branch=branch, private="private" in given.switches, force="force" in given.switches
    )
    say(_overview(plan, folder, lineage), sys.stderr)
    if not sys.stderr.isatty():  # where it is one, the library shows bars of each file besides
        disable_progress_bars()
    at = f", step {lineage.step}" if lineage.step is not None else ""
    try:
        address = send(
            hub, plan, message or f"Upload {kind_of(folder)}{at}, with tune", file_lines(len(files))
        )
    except KeyboardInterrupt:
        say(
            f"\nStopped. {plan.repo} shows nothing new; the same command goes on, and sends nothing twice.",
            sys.stderr,
        )
        raise
    say(f"{address}\n")
    return 0


def _collect(folder: Path, repo: str, base_model: str | None) -> tuple[Lineage, list[CommitOperationAdd]]:
    """Verify what is sent against its manifest, and return how it came about and its files, the card among them."""
    from huggingface_hub import CommitOperationAdd

    from tune.hub.card import write_card
    from tune.hub.lineage import read_lineage
    from tune.hub.upload_files import kind_of, task_of, upload_files
    from tune.training.saving.saved_steps import saved_step_of, verify_step

    saved = saved_step_of(folder)
    if saved is not None:
        say(f"Verifying {saved.path.name} ...\n", sys.stderr)
        verify_step(saved, folder.resolve().name)
        lineage = read_lineage(saved.path.parent, saved.step, base_model)
    else:
        lineage = read_lineage(None, None, base_model)
    files = upload_files(folder, lineage.base.repo if lineage.base is not None else None)
    if not any(file.path_in_repo == "README.md" for file in files):
        card = write_card(lineage, kind_of(folder), repo, task_of(folder))
        files.append(CommitOperationAdd("README.md", card.encode()))
    return lineage, sorted(files, key=lambda file: file.path_in_repo)


def _overview(plan: UploadPlan, folder: Path, lineage: Lineage) -> str:
    from tune.hub.upload_files import kind_of

    kind, sizes = kind_of(folder), {file.path_in_repo: file.upload_info.size for file in plan.files}
    made = "a new repository" if plan.makes_repo else "an existing repository"
    seen = "private" if plan.private else "public"
    replaced = dict.fromkeys(plan.replaced, "replaces the one there")
    rows = [(printable(name), format_size(size), replaced.get(name, "")) for name, size in sizes.items()]
    lines = [
        f"{kind} {printable(str(folder))} -> {plan.repo} ({made}, {seen}, branch {plan.branch})",
        columns(rows),
        *(f"  {printable(n)} there is deleted: it is of the model that is replaced" for n in plan.deleted),
        f"  {len(rows)} files, {format_size(sum(sizes.values()))}; nothing else of the folder is sent",
    ]
    adapter = folder.resolve().parent / "adapter"
    if kind == "model" and adapter.is_dir():
        lines.append(
            f"  the step holds an adapter, too; to send that instead, give {printable(str(adapter))}"
        )
    if lineage.base is None or lineage.base.repo is None:
        lines.append("  the card names no base model on the hub; --base-model owner/name states it")
    return "\n".join(lines) + "\n"


COMMAND = Command(
    name="upload",
    summary="Upload a saved model to the hub.",
    description=(
        "Sends a saved step (weights, config and tokenizer, or a PEFT adapter) to the Hugging Face hub in one commit, "
        "with a model card that states base model, recipe, data, settings and measured values. The step is verified "
        "first, and what arrived is compared after. Optimizer state and everything else in the folder stays here.\n\n"
        "A repository that holds a model already is left alone unless --force is given. Your token has to be one that "
        "may write: --hf-token, the environment variable HF_TOKEN, or once for all `hf auth login`."
    ),
    examples=(
        ("tune upload out/mine me/my-model", "the latest step of a run"),
        ("tune upload out/mine/step_000100 me/my-model --private", "one step, for your eyes only"),
        (
            "tune upload out/mine/best my-model --force",
            "the best step, under your own name, in place of what is there",
        ),
    ),
    run=run,
    operands=(
        ("CHECKPOINT", "An output_dir, a saved step, or a folder with a model or an adapter."),
        ("REPO", "owner/name on the hub; it is made if there is none."),
    ),
    options=(
        Option(("--hf-token",), "Access token; better in HF_TOKEN, where no process list shows it.", "TOKEN"),
        Option(("--private",), "Make the repository private."),
        Option(("--force", "-f"), "Replace a model that is there."),
        Option(("--message", "-m"), "What the repository's history says of this upload.", "TEXT"),
        Option(("--revision",), "Branch to send to, made if missing; main if left out.", "BRANCH"),
        Option(("--base-model",), "Model it was made from, where the run does not know: owner/name.", "REPO"),
    ),
)
