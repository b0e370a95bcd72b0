"""`report.html`: what there is to see of one run."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tune.report.curves import Chart, Line, short_number
from tune.report.evaluations import show_evaluations
from tune.report.examples import show_examples
from tune.report.html import badge, commands, draw_charts, table, text, tile, write_page
from tune.report.picture import draw_picture
from tune.report.run_data import RunData, group_samples, read_run
from tune.report.settings import changed_settings
from tune.utils import get_logger

__all__ = ["METRICS", "NUM_OPEN", "REPORT", "write_report"]

REPORT, PICTURE = "report.html", "loss_curve.png"
# Which metrics share a chart, and what it is called; each with the name of its curve.
METRICS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Loss: the mean over the steps since the line before",
        (("loss", "loss"), ("val_loss", "validation loss")),
    ),
    ("Learning rate", (("lr", "learning rate"),)),
    ("Perplexity on validation data", (("val_perplexity", "perplexity"),)),
    ("Gradient norm", (("grad_norm", "gradient norm"),)),
    ("Tokens per second", (("tokens_per_second", "all"), ("trained_tokens_per_second", "trained on"))),
    ("Peak memory, GiB", (("peak_memory_gib", "peak so far"),)),
    ("Share of what matrix products alone reach", (("fraction_of_limit", "share"),)),
)
# Counters that rise from line to line and say nothing as curves.
_COUNTERS = frozenset({"step", "epoch", "num_tokens", "num_trained_tokens", "num_trained_pairs"})
# Charts that are not folded up: those of `METRICS`, and a few of what else was logged.
NUM_OPEN = len(METRICS) + 12


def write_report(folder: Path, *, picture: bool = True) -> Path:
    """Write `report.html` into the folder of a run, and `loss_curve.png` unless that is not wanted; return the page.

    Raises:
        DataError: the folder is no run's.
        TuneError: a file cannot be written, or one that is none of ours has its name.
    """
    run = read_run(folder)
    curves, about = draw_charts(charts_of(run), NUM_OPEN)
    sections = [
        _head(run),
        _warnings(run),
        curves or '<p class="soft">No step has been logged yet.</p>',
        show_evaluations(folder),
        f"<h2>What to type next</h2>\n{commands(_next(run))}",
        _settings(run),
        _data(run),
        _samples(run),
        _memory(run),
        _surroundings(run),
    ]
    write_page(folder / REPORT, f"{folder.name}: tune report", "\n".join(sections), about)
    if picture and find_spec("matplotlib") is None:
        get_logger().info(
            f"{PICTURE} is not drawn: matplotlib is not installed here (pip install matplotlib)"
        )
    elif picture:
        draw_picture(folder / PICTURE, folder.name, run.series("loss"), run.series("val_loss"))
    return folder / REPORT


def charts_of(run: RunData) -> list[Chart]:
    """Return the charts of a run's metrics: those that every run has, then whatever else it logged."""
    charts = []
    for title, lines in METRICS:
        level = _memory_level(run) if lines[0][0] == "peak_memory_gib" else None
        curves = [Line(name, run.series(key)) for key, name in lines]
        charts.append(Chart(title, curves, level, is_linear=lines[0][0] == "lr"))
    return charts + [Chart(key, [Line(key, run.series(key))]) for key in further_keys([run])]


def further_keys(runs: Sequence[RunData]) -> list[str]:
    """Return the names of metrics that have no chart of their own in `METRICS`."""
    known = {key for _, lines in METRICS for key, _ in lines} | _COUNTERS
    logged = dict.fromkeys(key for run in runs for key in run.metric_names())
    return [key for key in logged if key not in known]


def _memory_level(run: RunData) -> tuple[str, float] | None:
    """Return the predicted memory as a level of the chart; on a host the peak has what was there before in it."""
    memory = _mapping(run.record.get("memory"))
    predicted = memory.get("predicted_gib")
    if not isinstance(predicted, int | float) or not str(memory.get("device", "")).startswith("cuda"):
        return None
    return f"predicted {predicted:.2f}", float(predicted)


def _head(run: RunData) -> str:
    record, result = run.record, _mapping(run.record.get("result"))
    status = str(record.get("status", "")) if record else ""
    model, recipe = _mapping(record.get("model")), _mapping(record.get("recipe"))
    about = []
    if recipe.get("file"):
        about.append(Path(str(recipe["file"])).stem)
    if isinstance(model.get("parameters"), int):
        trained, whole = model.get("trained"), model["parameters"]
        if not isinstance(trained, int):
            trained = 0
        share = "all trained" if trained == whole else f"{short_number(float(trained))} of them trained"
        about.append(f"{short_number(whole)} parameters, {share}")
    sessions = record.get("sessions") or []
    if sessions:
        about.append(f"started {_time(sessions[0].get('started'))}")
        about.append(
            f"{'ended' if sessions[-1].get('ended') else 'last seen'} {_time(_last_seen(sessions[-1]))}"
        )
    tiles = [tile(name, value) for name, value in _figures(run, result)]
    error = sessions[-1].get("error") if sessions else None
    failed = f'<pre class="bad">{text(error)}</pre>' if error else ""
    return (
        f"<h1>{text(run.folder.name)} {badge(status) if status else ''}</h1>\n"
        f'<p class="soft">{text(" · ".join(about))}</p>\n{failed}<div class="tiles">{"".join(tiles)}</div>\n'
    )


def _figures(run: RunData, result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the figures that sum a run up, each with its name."""
    last_step = run.rows[-1]["step"] if run.rows else 0
    num_steps = run.record.get("num_steps") or result.get("num_steps")
    yield "steps", f"{last_step:,}" + (f" of {num_steps:,}" if isinstance(num_steps, int) else "")
    if (loss := run.last("loss")) is not None:
        yield "loss, last", f"{loss:.4f}"
    if (val_loss := run.last("val_loss")) is not None:
        yield "validation loss, last", f"{val_loss:.4f}"
        best = min(run.series("val_loss"), key=lambda point: point[1])
        yield f"best validation loss, at step {best[0]:,.0f}", f"{best[1]:.4f}"
    if (perplexity := run.last("val_perplexity")) is not None:
        yield "perplexity", f"{perplexity:,.4g}"
    if (tokens := run.last("num_tokens")) is not None:
        yield "tokens seen", short_number(tokens)
    if (speed := run.last("tokens_per_second")) is not None:
        yield "tokens per second", f"{speed:,.0f}"
    if (memory := run.last("peak_memory_gib")) is not None:
        yield "peak memory", f"{memory:.2f} GiB"


def _warnings(run: RunData) -> str:
    told = run.record.get("warnings")
    found = [each for each in told if isinstance(each, str)] if isinstance(told, list) else []
    broken = [row["step"] for row in run.rows if isinstance(row.get("loss"), str) or _is_nan(row.get("loss"))]
    if broken:
        found.append(f"The loss was no number in {len(broken)} of the lines read, first at step {broken[0]}.")
    shown = "".join(f'<div class="warning">{text(each)}</div>' for each in found)
    return f"<h2>Warnings</h2>\n{shown}" if shown else ""


def _next(run: RunData) -> Iterator[tuple[str, str]]:
    folder = shlex.quote(str(run.folder))
    status = run.record.get("status")
    if (run.folder / "latest").exists():
        yield "Talk to it:", f"tune chat {folder}"
        yield "Answer one prompt:", f"tune generate {folder} prompt='...'"
        yield (
            "Score it beside the model it began with:",
            f"tune eval {folder} data=held_out.jsonl --against base",
        )
    command = run.record.get("command")
    if status in ("stopped", "failed", "killed", "running") and isinstance(command, str):
        resumed = "" if "resume_from_checkpoint=true" in command else " resume_from_checkpoint=true"
        yield "Go on from the newest saved step:", f"{command}{resumed}"
    yield "Lay its curves over those of another run:", f"tune report {folder} OTHER_RUN"


def _settings(run: RunData) -> str:
    changed = changed_settings(run.settings)
    if not changed:
        return ""
    rows = [(setting.name, setting.value, setting.origin) for setting in changed]
    return "<h2>Settings that differ from defaults</h2>\n" + table(
        ("setting", "value", "set in"), rows, ("name", "text", "")
    )


def _data(run: RunData) -> str:
    data = _mapping(run.record.get("data"))
    parts = [f"<pre>{text(data['text'])}</pre>"] if isinstance(data.get("text"), str) else []
    parts.append(show_examples(run.preview))
    return "<h2>Data</h2>\n" + "".join(parts) if any(parts) else ""


def _samples(run: RunData) -> str:
    parts = []
    for prompt, answers in group_samples(run.samples):
        parts.append(
            f"<p><b>{text(prompt)}</b></p>\n" + table(("step", "answer"), answers, ("number", "text"))
        )
    return "<h2>Sample answers</h2>\n" + "".join(parts) if parts else ""


def _memory(run: RunData) -> str:
    memory = _mapping(run.record.get("memory"))
    rows: list[Sequence[object]] = []
    for name, sizes in _mapping(memory.get("parts_gib")).items():
        if isinstance(sizes, list) and len(sizes) == 3:
            rows.append((name, *map(_gib, sizes)))
    if not rows:
        return ""
    said = f"Predicted {_gib(memory.get('predicted_gib'))} GiB at the fullest, {memory.get('fullest', '')}"
    if "measured_gib" in memory:
        expected = memory.get("predicted_for_measured_gib")
        said += f"; measured after a few steps {_gib(memory['measured_gib'])} GiB, of {_gib(expected)} expected by then"
    if memory.get("available_gib") is not None:
        said += (
            f"; {_gib(memory['available_gib'])} GiB were available on {memory.get('device', 'the device')}"
        )
    head = ("GiB on each rank, predicted", "at the loss", "in backward", "at the step")
    return f"<h2>Memory</h2>\n<p>{text(said)}.</p>\n" + table(head, rows, ("", "number", "number", "number"))


def _surroundings(run: RunData) -> str:
    record = run.record
    if not record:
        return ""
    versions, recipe = _mapping(record.get("versions")), _mapping(record.get("recipe"))
    git, host, device = (
        _mapping(recipe.get("git")),
        _mapping(record.get("host")),
        _mapping(record.get("device")),
    )
    rows = [("command", record.get("command"))]
    rows.append(("versions", ", ".join(f"{name} {value}" for name, value in versions.items() if value)))
    rows.append(("recipe", recipe.get("file")))
    if git.get("commit"):
        changed = ", and the recipe has changed since" if git.get("recipe_changed") else ""
        rows.append(("git", f"{git['commit']} on {git.get('branch')}{changed}"))
    there = (
        host.get("name"),
        host.get("system"),
        f"{host.get('cpus')} cores",
        f"{host.get('memory_gib')} GiB",
    )
    rows.append(("host", ", ".join(map(str, there))))
    rows.append(
        ("device", f"{device.get('name')} ({device.get('type')}), processes: {record.get('processes')}")
    )
    for number, each in enumerate(record.get("sessions") or [], 1):
        steps = f"steps {each.get('from_step', '?')} to {each.get('step', '?')}"
        times = f"{_time(each.get('started'))} to {_time(_last_seen(each))}"
        rows.append((f"session {number}", f"{each.get('status')}, {steps}, {times}"))
    return "<h2>Where it ran</h2>\n" + table(("", ""), rows, ("", "text"))


def _last_seen(session: Mapping[str, Any]) -> object:
    return session.get("ended") or session.get("saved") or session.get("started")


def _time(value: object) -> str:
    """Return a time as people read it."""
    return str(value or "")[:19].replace("T", " ")


def _gib(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) and math.isfinite(value) else "-"


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
