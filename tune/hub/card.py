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
_ADAPTER_USE = """## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{repo}")
```

Or fetch it for tune: `tune download {repo}`.
"""
_MODEL_USE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repo}")
tokenizer = AutoTokenizer.from_pretrained("{repo}")
```

Or fetch it for tune: `tune download {repo}`.
"""


def write_card(lineage: Lineage, kind: str, repo: str) -> str:
    """Return the text of README.md for a model or adapter, with front matter the hub reads.

    Args:
        lineage: how it came about.
        kind: "model" or "adapter".
        repo: owner/name it is sent to.
    """
    config, base = lineage.config, lineage.base
    adapter = kind == "adapter"
    recipe = PurePath(name).stem if isinstance(name := config.get("recipe"), str) else ""
    datasets = _datasets(config)
    front: dict[str, Any] = {}
    if base is not None and base.repo is not None:
        front = {"base_model": base.repo, "base_model_relation": "adapter" if adapter else "finetune"}
    front["library_name"] = "peft" if adapter else "transformers"
    front["pipeline_tag"] = "text-generation"
    front["tags"] = list(dict.fromkeys(filter(None, ["tune", recipe.replace("_", "-")])))
    if hub_datasets := [name for name, where in datasets if where == "hub"]:
        front["datasets"] = hub_datasets
    if base is not None:
        front |= base.license

    what = "An adapter" if adapter else "A language model"
    how = f" by the recipe {_code(recipe)}" if recipe else ""
    at = f", saved after step {lineage.step:,}" if lineage.step is not None else ""
    trained = f" trained with tune {tune.__version__}{how}{at}" if recipe or at else ""
    facts = [f"- Base model: {_base_model(lineage)}"]
    facts += [f"- Recipe: {_code(recipe)}"] if recipe else []
    facts += [f"- Data: {_dataset(name, where)}" for name, where in datasets]
    settings = [
        (label, _value(config[key])) for key, label in _SETTINGS.items() if config.get(key) is not None
    ]
    measured = [
        (_METRICS.get(key) or _code(key), f"{value:,}" if isinstance(value, int) else f"{value:.5g}")
        for key, value in lineage.metrics.items()
        if (key in _METRICS or "val" in key) and type(value) in (int, float)
    ]
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n",
        f"# {repo.rpartition('/')[2]}\n",
        "\n".join([f"{what}{trained}.", "", *facts, ""]),
        _table("Training", settings),
        _table("Measured", measured),
        (_ADAPTER_USE if adapter else _MODEL_USE).format(
            repo=repo, base=(base and base.repo) or "THE_BASE_MODEL"
        ),
    ]
    return "\n".join(section for section in sections if section)


def _base_model(lineage: Lineage) -> str:
    if lineage.base is None:
        scratch = lineage.config.get("train_from_scratch") is True
        return "none, trained from random weights" if scratch else "not known"
    repo = lineage.base.repo
    return f"[{repo}](https://huggingface.co/{repo})" if repo else _code(lineage.base.name)


def _dataset(name: str, where: str) -> str:
    if where == "hub":
        return f"[{name}](https://huggingface.co/datasets/{name})"
    return _code(name) + (" (a local file)" if where == "local" else "")


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


def _code(text: str) -> str:
    """Return text that came from a config as code, so that nothing in it acts as markup."""
    plain = " ".join(text.split()).replace("|", "/").replace("`", "'")[:_MAX_TEXT]
    return f"`{plain}`" if plain else ""
