"""`tune cache`: what is kept of data that has been tokenized, and how to be rid of it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

from tune.cli.arguments import Command, Given, Option, UsageError
from tune.cli.terminal import format_size, say, table


def run(given: Given) -> int:
    """List what is kept, or remove it."""
    from tune.data.cache import OFF, open_cache

    action = given.operands[0]
    if action not in ("ls", "clear"):
        raise UsageError(f"`tune cache` can ls and clear, not {action}")
    cache = open_cache(given.one("dir"))
    if cache is None:
        raise UsageError(f"nothing is kept with --dir {OFF}, nor without a home: name a folder with --dir")
    removed, entries = cache.clear() if action == "clear" else ([], cache.entries())
    listed = removed if action == "clear" else entries
    if "json" in given.switches:
        content: dict[str, Any] = {"version": 1, "dir": str(cache.root), "max_bytes": cache.max_bytes}
        content["entries"] = [asdict(entry) for entry in entries]
        if action == "clear":
            content["removed"] = [asdict(entry) for entry in removed]
        say(json.dumps(content, indent=1) + "\n")
        return 0
    if listed:
        say(table(("SIZE", "EXAMPLES", "USED", "SOURCE"), map(_row, listed)) + "\n\n")
    total = format_size(sum(entry.num_bytes for entry in listed))
    if action == "clear":
        in_use = f"; {len(entries)} in use stay" if entries else ""
        say(f"removed {len(removed)} data sets, {total}, from {cache.root}{in_use}\n")
    else:
        say(f"{len(entries)} data sets, {total} of at most {format_size(cache.max_bytes)}, in {cache.root}\n")
    return 0


def _row(entry: Any) -> tuple[str, str, str, str]:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
    in_use = " (in use)" if entry.in_use else ""
    return format_size(entry.num_bytes), f"{entry.num_examples:,}", used, f"{entry.source}{in_use}"


COMMAND = Command(
    name="cache",
    summary="List or clear the tokenized data that is kept for the next run.",
    description=(
        "Data is tokenized once; what came of it is kept in a folder, by default $XDG_CACHE_HOME/tune/data or "
        "~/.cache/tune/data, for the next run with the same data, settings and tokenizer. Beyond TUNE_DATA_CACHE_GB "
        "gigabytes (50 by default) what was not used for longest is removed. What a run has in use is never removed, "
        "nor anything that tune has not written there."
    ),
    examples=(
        ("tune cache ls", "what is kept, and how much room it takes"),
        ("tune cache clear", "remove it; it is made anew when it is needed"),
    ),
    run=run,
    operands=(("ls|clear", "Show what there is, or remove it."),),
    options=(
        Option(("--dir",), "The folder, as data_cache_dir of a run says.", "FOLDER"),
        Option(("--json",), "Print the result as JSON."),
    ),
)
