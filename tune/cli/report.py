"""`tune report`: what a run's folder tells, as a page to look at."""

from __future__ import annotations

from pathlib import Path

from tune.cli.arguments import Command, Given, Option, UsageError
from tune.cli.terminal import say
from tune.utils.paths import expand_path

COMPARISON = "comparison.html"


def run(given: Given) -> int:
    """Write the page of one run into its folder, or one about several."""
    from tune.report import write_comparison, write_report

    folders = [find_run(name) for name in given.operands]
    out = given.one("out")
    if len(folders) == 1 and out is None:
        say(f"{write_report(folders[0])}\n")
        return 0
    path = expand_path(out or COMPARISON)
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}")
    write_comparison(folders, path)
    say(f"{path}\n")
    return 0


def find_run(name: str) -> Path:
    """Return the folder of the run that `name` means: itself, or the one that a saved step or a part of it lies in.

    Raises:
        UsageError: there is no such folder, or it belongs to no run.
    """
    folder = expand_path(name)
    if not folder.is_dir():
        raise UsageError(
            f"there is no folder {folder}" + ("; give the folder of the run" if folder.exists() else "")
        )
    for place in (folder, *folder.absolute().parents[:2]):
        if any((place / file).is_file() for file in ("run.json", "metrics.jsonl")):
            return place
    raise UsageError(f"{folder} is no run's folder: it holds neither run.json nor metrics.jsonl")


COMMAND = Command(
    name="report",
    summary="Make the page about a run, or one that compares several.",
    description=(
        "Writes report.html and loss_curve.png into the folder of a run: its curves, settings, data, sample answers, "
        "memory, and what to type next. A run does that by itself at each saved step; this does it for older ones. "
        "The page loads nothing from elsewhere, so that it can be sent as it is.\n\n"
        f"Of several runs the curves are laid over one another, in {COMPARISON} here or in --out."
    ),
    examples=(
        ("tune report out/tiny", "write out/tiny/report.html"),
        ("tune report out/a out/b --out lr.html", "compare two runs"),
    ),
    run=run,
    operands=(("RUN ...", "The output_dir of a run."),),
    options=(Option(("--out",), "The page to write about several runs.", metavar="FILE"),),
)
