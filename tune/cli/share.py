"""`tune share`: a run as one folder or zip, to hand on."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tune.cli.arguments import Command, Given, Option, UsageError
from tune.cli.report import find_run
from tune.cli.terminal import columns, format_size, paint, report_warning, say
from tune.utils.escape import escape_control
from tune.utils.paths import expand_path
from tune.utils.secret_masking import MASK, is_secret_name

if TYPE_CHECKING:
    from tune.sharing.bundle import Shared


def run(given: Given) -> int:
    """Write what is shared, say what went, and where it is."""
    from tune.sharing.bundle import share_run
    from tune.sharing.draft import MAX_ATTACHED, check_addresses, write_draft

    told = [address.strip(" ") for each in given.all("email") for address in each.split(",")]
    addresses = [address for address in told if address]
    check_addresses(addresses)
    redacts = "redact" in given.switches or "redact_key" in given.values
    folder = find_run(given.operands[0])
    target = _choose_target(given, folder, redacts, bool(addresses))
    is_zip = target.suffix == ".zip"

    from tune.report import write_report

    def draft(shared: Shared) -> dict[str, bytes]:
        return {target.with_suffix(".eml").name: write_draft(shared, target.name, addresses)}

    shared = share_run(
        folder,
        target,
        write_report,
        name=target.stem if is_zip else target.name,
        compress=is_zip,
        redact=redacts,
        listed=given.all("redact_key"),
        force="force" in given.switches,
        beside=draft if addresses else None,
    )
    _tell_removed(shared)
    for each in shared.left_out:
        report_warning(f"not in it: {each}")
    if not redacts:
        hint = "It holds paths, names of this machine and of its user, and the first examples of the data"
        say(f"{hint}; --redact takes the paths and names out.\n", sys.stderr)
    if addresses:
        how = "attached" if shared.num_bytes <= MAX_ATTACHED else "too large to attach, so it is only named"
        letter = f"{target.with_suffix('.eml')}: a draft to {', '.join(addresses)}"
        say(f"{letter} ({target.name} {how}). Nothing was sent.\n")
    again = shlex.quote(str(target) if is_zip or target.is_absolute() else f"./{target}")
    say(f"{target} ({format_size(shared.num_bytes)}). Run it again: tune run {again}\n")
    return 0


def _choose_target(given: Given, folder: Path, redacts: bool, is_sent: bool) -> Path:
    """Return the folder or zip to write; the run's own name may tell as much as a path does."""
    name = given.one("to")
    compresses = "compress" in given.switches or is_sent
    if name is None:
        name = f"{'run' if redacts else folder.absolute().name or 'run'}-shared"
    target = expand_path(name)
    if target.is_dir() and not (target / "manifest.json").is_file() and name.endswith("/"):
        raise UsageError(f"{target} is a folder that is there; name the one to be written")
    if compresses and target.suffix != ".zip":
        target = target.with_name(f"{target.name}.zip")
    if target.absolute().is_relative_to(folder.absolute()):
        raise UsageError(f"{target} lies in the run itself; write it elsewhere with --to")
    return target


def _tell_removed(shared: Shared) -> None:
    rows = []
    for leaf in shared.removed:
        value = MASK if is_secret_name(leaf.key) else escape_control(leaf.value, 60)
        rows.append((leaf.key, value, _times(1 + shared.counts.pop(leaf.key, 0))))
    rows += [(kind, "wherever it stood", _times(count)) for kind, count in sorted(shared.counts.items())]
    if rows:
        say(f"{paint('Left out:', 'bold')}\n{columns(rows)}\n")


def _times(count: int) -> str:
    return f"{count} time{'s' * (count != 1)}"


COMMAND = Command(
    name="share",
    summary="Put a run into one folder or zip, to hand on.",
    description=(
        "Writes the recipe, the config, the report, metrics, what the console said, versions, a small adapter, and the "
        "checksums of all, with a README of what it is. `tune run` runs such a zip or folder again. Tokens and "
        "passwords are left out in any case. With --redact, so are the values of settings that are paths or names, and "
        "the names of the machine and its user, in every file; what was left out is shown. The first examples of the "
        "data stay in the report. Nothing that the config names is imported, and nothing is sent."
    ),
    examples=(
        ("tune share out/tiny", "a folder, tiny-shared"),
        ("tune share out/tiny --compress --redact", "a zip without paths and names"),
        (
            "tune share out/tiny --redact-key optimizer.lr --to secret_rate.zip",
            "without a setting of your own choice",
        ),
        (
            "tune share out/tiny --redact --email a@example.com b@example.com",
            "a zip, and a draft with it attached",
        ),
    ),
    run=run,
    operands=(("RUN", "The output_dir of a run."),),
    options=(
        Option(("--compress", "-z"), "Write a zip."),
        Option(("--redact",), "Leave out paths, and names of people and machines."),
        Option(
            ("--redact-key", "--redact_key"),
            "Leave out this setting's value, too (repeatable).",
            "KEY",
            many=True,
        ),
        Option(
            ("--email",),
            "Write a draft of a letter with the zip.",
            "ADDRESS",
            many=True,
            greedy=True,
        ),
        Option(("--to",), "What to write; NAME-shared here if left out.", "PATH"),
        Option(("--force", "-f"), "Replace what an earlier call has written."),
    ),
)
