"""The model card: what a model was made from, how, on what, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

import tune
from tune.hub.lineage import Lineage
from tune.hub.upload_files import is_local
from tune.utils.paths import BUNDLED_PREFIX

__all__ = ["write_card"]

# What changes a result, in the order people ask for it: the key of the config, and what it is called.
_SETTINGS = {
    "epochs": "epochs",
    "max_steps_per_epoch": "steps per epoch, at most",
    "batch_size": "sequences per process and micro-step",
    "gradient_accumulation_steps": "micro-steps per optimizer step",
    "optimizer": "optimizer",
    "lr_scheduler": "learning-rate schedule",
    "loss": "loss",
    "clip_grad_norm": "gradient norm clipped at",
    "dtype": "precision",
    "seed": "seed",
}
_METRICS = {
    "loss": "training loss (of this step)",
    "val_loss": "validation loss",
    "loss_val": "validation loss",
    "num_tokens": "tokens seen",
    "num_trained_tokens": "tokens trained on",
    "tokens_per_second": "tokens per second",
    "peak_memory_gib": "peak memory (GiB)",
}
_DATA_ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".gz")
_MAX_TEXT = 200


def write_card(lineage: Lineage, kind: str, repo: str) -> str:
    """Return the text of README.md for a model or adapter, with front matter the hub reads.

    Args:
        lineage: how it came about.
        kind: "model" or "adapter".
        repo: owner/name it is sent to.
    """
    recipe = _recipe(lineage)
    base = lineage.base
    front: dict[str, Any] = {}
    if base is not None and base.repo is not None:
        front |= {
            "base_model": base.repo,
            "base_model_relation": "adapter" if kind == "adapter" else "finetune",
        }
    front |= {
        "library_name": "peft" if kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(["tune", *([recipe.replace("_", "-")] if recipe else [])])),
    }
    hub_datasets = [name for name, where in _datasets(lineage.config) if where == "hub"]
    if hub_datasets:
        front["datasets"] = hub_datasets
    if base is not None:
        front |= base.license
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, default_flow_style=False)
    sections = [f"---\n{header}---\n", f"# {repo.rpartition('/')[2]}\n", _introduction(lineage, kind, recipe)]
    sections += [_table("Training", _settings(lineage)), _table("Measured", _measured(lineage))]
    sections += [_usage(kind, repo, base.repo if base else None)]
    return "\n".join(section for section in sections if section)


def _recipe(lineage: Lineage) -> str | None:
    recipe = lineage.config.get("recipe")
    return PurePath(recipe).stem if isinstance(recipe, str) and recipe else None


def _introduction(lineage: Lineage, kind: str, recipe: str | None) -> str:
    what = "An adapter" if kind == "adapter" else "A language model"
    how = f" by the recipe {_code(recipe)}" if recipe else ""
    at = f", saved after step {lineage.step:,}" if lineage.step is not None else ""
    lines = [f"{what} trained with tune {tune.__version__}{how}{at}."] if recipe or at else [f"{what}."]
    if lineage.base is not None:
        link = (
            f"[{lineage.base.repo}](https://huggingface.co/{lineage.base.repo})" if lineage.base.repo else ""
        )
        lines.append(f"- Base model: {link or _code(lineage.base.name)}")
    elif lineage.config.get("train_from_scratch") is True:
        lines.append("- Base model: none, trained from random weights")
    else:
        lines.append("- Base model: not known")
    if recipe:
        lines.append(f"- Recipe: {_code(recipe)}")
    for name, where in _datasets(lineage.config):
        link = f"[{name}](https://huggingface.co/datasets/{name})"
        lines.append(
            f"- Data: {link if where == 'hub' else _code(name) + (' (a local file)' * (where == 'local'))}"
        )
    return lines[0] + "\n\n" + "\n".join(lines[1:]) + "\n"


def _datasets(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the name of each data set of a config, and where it is: "hub", "local", or "builder" (of a builder)."""
    entries = config.get("dataset")
    found: list[tuple[str, str]] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        if isinstance(entry, str):
            found.append((entry.rpartition(".")[2], "builder"))
        if not isinstance(entry, Mapping):
            continue
        if isinstance(entry.get("datasets"), list):
            found += _datasets({"dataset": entry["datasets"]})
            continue
        source, files = entry.get("source"), entry.get("data_files")
        if source in ("json", "csv", "parquet", "text") and files:
            source = str(files[0] if isinstance(files, list) else files)
        if isinstance(source, str) and source:
            # A hub name has no ending of a data file.
            local = is_local(source) or PurePath(source).suffix.lower() in _DATA_ENDINGS
            found.append((_place(source), "local") if local else (source, "hub"))
        elif isinstance(entry.get("_component_"), str):
            found.append((entry["_component_"].rpartition(".")[2], "builder"))
    return list(dict.fromkeys(found))


def _settings(lineage: Lineage) -> list[tuple[str, str]]:
    rows = []
    for key, label in _SETTINGS.items():
        value = lineage.config.get(key)
        if value is not None:
            rows.append((label, _value(value)))
    return rows


def _measured(lineage: Lineage) -> list[tuple[str, str]]:
    rows = []
    for key, value in lineage.metrics.items():
        label = _METRICS.get(key) or (_code(key) if "val" in key else None)
        if label and isinstance(value, int | float) and not isinstance(value, bool):
            rows.append((label, f"{value:,}" if isinstance(value, int) else f"{value:.5g}"))
    return rows


def _value(value: Any) -> str:
    """Return a setting as one line; a component as its name and arguments."""
    if isinstance(value, Mapping):
        name = str(value.get("_component_", "")).rpartition(".")[2]
        rest = [
            f"{key}={_value(item)}"
            for key, item in value.items()
            if key != "_component_" and item is not None
        ]
        return f"{name}({', '.join(rest)})" if name else ", ".join(rest)
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value)
    return _place(value) if isinstance(value, str) else str(value)


def _place(text: str) -> str:
    """Return text without folders: what lies where is nobody's business."""
    text = text.removeprefix(BUNDLED_PREFIX)
    return PurePath(text.replace("\\", "/")).name or text


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    lines = [f"| {label} | {_code(value)} |" for label, value in rows]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines, ""])


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:_MAX_TEXT]


def _code(text: str) -> str:
    """Return text that came from a config as code, so that nothing in it acts as markup."""
    return f"`{_plain(text).replace('`', chr(39))}`" if text.strip() else ""


def _usage(kind: str, repo: str, base: str | None) -> str:
    if kind == "adapter":
        first = f'AutoModelForCausalLM.from_pretrained("{base or "THE_BASE_MODEL"}")'
        code = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            "",
            f'model = PeftModel.from_pretrained({first}, "{repo}")',
        ]
    else:
        code = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{repo}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{repo}")',
        ]
    fetch = f"Or fetch it for tune: `tune download {repo}`.\n"
    return "\n".join(["## Use", "", "```python", *code, "```", "", fetch])
