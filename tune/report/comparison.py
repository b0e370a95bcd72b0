"""Several runs on one page: their curves laid over one another, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tune.report.curves import Chart, Line
from tune.report.evaluations import show_evaluations_beside
from tune.report.html import badge, draw_charts, table, text, write_page
from tune.report.page import METRICS, NUM_OPEN, further_keys
from tune.report.run_data import RunData, read_run
from tune.report.settings import differing_settings

__all__ = ["write_comparison"]

_FIGURES = (
    ("loss", "loss, last", "{:.4f}"),
    ("val_loss", "validation loss, last", "{:.4f}"),
    ("val_perplexity", "perplexity", "{:.4g}"),
    ("num_tokens", "tokens seen", "{:,.0f}"),
    ("tokens_per_second", "tokens per second", "{:,.0f}"),
    ("peak_memory_gib", "peak memory, GiB", "{:.2f}"),
)


def write_comparison(folders: Sequence[Path], path: Path) -> None:
    """Write a page about several runs.

    Args:
        folders: of the runs.
        path: of the page.

    Raises:
        DataError: a folder is no run's.
        TuneError: the page cannot be written, or a file of its name is none of ours.
    """
    runs = [read_run(folder) for folder in folders]
    names = _short_names(folders)
    curves, about = draw_charts(_charts(runs, names), NUM_OPEN + 1)  # of two speeds each has its own here
    settings = [[each for each in run.settings if each.name != "output_dir"] for run in runs]
    differing = differing_settings(settings)
    rows = [
        (label, *(_shown(run.last(key), form) for run in runs))
        for key, label, form in _FIGURES
        if any(run.series(key) for run in runs)
    ]
    steps = ("steps", *(f"{run.rows[-1]['step']:,}" if run.rows else "-" for run in runs))
    kinds = ("name", *["number"] * len(runs))
    heads = "".join(
        f"<p>{text(folder)} {badge(str(run.record.get('status') or 'run'))}</p>"
        for folder, run in zip(folders, runs)
    )
    settings_table = (
        table(
            ("setting", *names),
            [(name, *values) for name, values in differing],
            ("name", *["text"] * len(runs)),
        )
        if differing
        else '<p class="soft">All settings but output_dir are the same.</p>'
    )
    body = [
        f"<h1>{len(runs)} runs</h1>\n{heads}",
        "<h2>How they ended</h2>\n" + table(("", *names), [steps, *rows], kinds),
        show_evaluations_beside(folders, names),
        f"<h2>Curves</h2>\n{curves or '<p>No step has been logged yet.</p>'}",
        f"<h2>Settings that differ</h2>\n{settings_table}",
    ]
    write_page(path, f"{len(runs)} runs: tune report", "\n".join(body), about)


def _charts(runs: Sequence[RunData], names: Sequence[str]) -> list[Chart]:
    """Return one chart for each metric that a run has, a curve for each run."""
    titles: dict[str, str] = {}
    for title, lines in METRICS:
        titles |= {key: name.capitalize() for key, name in lines} | {lines[0][0]: title}
    titles["trained_tokens_per_second"] = "Tokens trained on per second"
    keys = [*titles, *further_keys(runs)]
    return [
        Chart(
            titles.get(key, key),
            [Line(name, run.series(key)) for name, run in zip(names, runs)],
            is_linear=key == "lr",
        )
        for key in keys
    ]


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Return names that tell the runs apart: as much of the end of each path as that takes."""
    parts = [folder.absolute().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {name}" for number, name in enumerate(names, 1)]


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
