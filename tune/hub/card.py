"""The model card: what a model was made from, how, on what, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

import tune
from tune.hub.lineage import Lineage
from tune.hub.upload_files import is_local
from tune.utils.paths import BUNDLED_PREFIX

__all__ = ["write_card"]

# The keys of a config that change a result, in the order people ask for them, and the metrics that tell it; any
# metric of a validation is shown besides.
_SETTINGS = (
    "epochs", "max_steps_per_epoch", "batch_size", "gradient_accumulation_steps", "optimizer", "lr_scheduler", "loss",
    "clip_grad_norm", "dtype", "seed",
)  # fmt: skip
_METRICS = ("loss", "num_tokens", "num_trained_tokens", "tokens_per_second", "peak_memory_gib")
_DATA_ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".gz")
_MAX_TEXT = 200
_TEMPLATE = Path(__file__).with_name("card.md.jinja")


def write_card(lineage: Lineage, kind: str, repo: str, task: str = "text-generation") -> str:
    """Return the text of README.md for a model or adapter, with front matter the hub reads.

    Args:
        lineage: how it came about.
        kind: "model" or "adapter".
        repo: owner/name it is sent to.
        task: what the hub calls what it does.
    """
    config, base, adapter = lineage.config, lineage.base, kind == "adapter"
    base_repo = base.repo if base is not None else None
    recipe = PurePath(name).stem if isinstance(name := config.get("recipe"), str) else ""
    datasets = _datasets(config)
    front = ModelCardData(
        base_model=base_repo,
        base_model_relation=("adapter" if adapter else "finetune") if base_repo else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag=task,
        tags=["tune", *filter(None, [recipe.replace("_", "-")])],
        datasets=[name for name, where in datasets if where == "hub"] or None,
        **(base.license if base is not None else {}),
    )
    settings = {key: _value(config[key]) for key in _SETTINGS if config.get(key) is not None}
    measured = {
        key: f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
        for key, value in lineage.metrics.items()
        if (key in _METRICS or "val" in key) and type(value) in (int, float)
    }
    card = ModelCard.from_template(
        front,
        template_path=str(_TEMPLATE),
        name=repo.rpartition("/")[2],
        repo=repo,
        adapter=adapter,
        version=tune.__version__,
        recipe=_code(recipe),
        step=lineage.step,
        base=_base_model(lineage),
        trained_on=[_dataset(name, where) for name, where in datasets],
        tables={
            title: [(_code(key), _code(value)) for key, value in rows.items()]
            for title, rows in {"Training": settings, "Measured after this step": measured}.items()
        },
    )
    return f"{card}\n"


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
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value)
    if not isinstance(value, Mapping):
        return _place(value) if isinstance(value, str) else str(value)
    given = {key: item for key, item in value.items() if key != "_component_" and item is not None}
    arguments = ", ".join(f"{key}={_value(item)}" for key, item in given.items())
    name = str(value.get("_component_", "")).rpartition(".")[2]
    return f"{name}({arguments})" if name else arguments


def _place(text: str) -> str:
    """Return text without folders: what lies where is nobody's business."""
    text = text.removeprefix(BUNDLED_PREFIX)
    return PurePath(text.replace("\\", "/")).name or text


def _code(text: str) -> str:
    """Return text that came from a config as code, so that nothing in it acts as markup."""
    plain = " ".join(text.split()).replace("|", "/").replace("`", "'")[:_MAX_TEXT]
    return f"`{plain}`" if plain else ""
