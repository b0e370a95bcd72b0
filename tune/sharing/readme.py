"""What a shared run is, in the words of the file that lies on top of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tune.utils.escape import escape_control

__all__ = ["describe_shared", "summarize_run"]

_WHAT = {
    "config.yaml": "every parameter of the run, and where its value came from",
    "report.html": "the run on a page: open it in a browser, it loads nothing",
    "loss_curve.png": "the loss as a picture",
    "run.json": "how it was started, where, on what data, and how it ended",
    "metrics.jsonl": "a line for each logged step",
    "samples.jsonl": "what it answered during the run",
    "evaluations": "what it was worth when it was evaluated, and what it answered",
    "console.log": "what the console said",
    "preview.txt": "the first examples of its data, as the model reads them",
    "recipe": "the program that trained it",
    "adapter": "what it learnt, to be used with its base",
}
_MAX_PARAMETERS = 10**18  # more are none; and a float has no room for any number


def summarize_run(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what there is to know of a run at a glance, each with its name, from its run.json."""
    result, data, model = (_mapping(record.get(name)) for name in ("result", "data", "model"))
    versions, device, recipe = (_mapping(record.get(name)) for name in ("versions", "device", "recipe"))
    rows = [
        ("recipe", str(recipe.get("file") or "").replace("\\", "/").rpartition("/")[2].removesuffix(".py"))
    ]
    steps = (
        f"{result.get('step')} of {result.get('num_steps')} steps" if result.get("step") is not None else ""
    )
    rows.append(("status", ", ".join(filter(None, [str(record.get("status") or "not known"), steps]))))
    if isinstance(model.get("parameters"), int) and model["parameters"] < _MAX_PARAMETERS:
        rows.append(
            (
                "model",
                f"{model['parameters'] / 1e6:,.1f}M parameters, {model.get('precision', '')}".rstrip(", "),
            )
        )
    for key, name in (
        ("loss", "loss"),
        ("val_loss", "validation loss"),
        ("best_val_loss", "best validation loss"),
    ):
        if isinstance(result.get(key), float):
            rows.append((name, f"{result[key]:.4f}"))
    if data.get("text"):
        rows.append(("data", str(data["text"]).split("\n")[0]))
    told = ", ".join(f"{name} {value}" for name, value in versions.items() if value)
    rows += [("versions", told)] if told else []
    if device:
        rows.append(
            ("device", f"{device.get('name')} ({device.get('type')}), {record.get('processes')} processes")
        )
    return [(name, escape_control(value, 300)) for name, value in rows if value]


def describe_shared(
    name: str, record: Mapping[str, Any], manifest: Mapping[str, Any], left_out: Sequence[str], folder: Path
) -> str:
    """Return the README of a shared run.

    Args:
        name: of the run.
        record: its run.json.
        manifest: what is known of it besides.
        left_out: what is not in it, and why.
        folder: with its files.
    """
    lines = [f"# {name}", "", f"A run of tune {manifest['tune']}.", "", "| | |", "|---|---|"]
    rows = [(key, value) for key, value in summarize_run(record) if key != "recipe"]
    rows.insert(0, ("recipe", str(manifest["recipe"]["name"])))
    lines += [f"| {key} | {_cell(value)} |" for key, value in rows]
    lines += ["", "Run it again (tune shows what it is, and what differs, before anything starts):", ""]
    lines += [f"    tune run {name}.zip      # or this folder: tune run ./{name}", ""]
    if redacted := manifest["redacted"]:
        lines += ["These settings were left out, and are asked for:", ""]
        lines += [f"- `{key}`" for key in redacted] + [""]
    lines += ["| file | what it holds |", "|---|---|"]
    lines += [f"| `{file}` | {what} |" for file, what in _WHAT.items() if (folder / file).exists()]
    lines += ["| `manifest.json` | checksums of these files |", ""]
    if not manifest["recipe"].get("is_stock"):
        lines += ["The recipe is not the one that comes with tune: read it before you run it.", ""]
    if left_out and not redacted:
        lines += ["Not in it:", "", *(f"- {_cell(each)}" for each in left_out), ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return escape_control(text).replace("|", "\\|").replace("<", "&lt;")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
