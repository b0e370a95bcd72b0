"""What the resolved config in a run's folder says of its data, and of the model it began with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tune.config.component import COMPONENT_KEY, Component
from tune.config.resolve import load_tree, plain_tree
from tune.config.slots import STREAMING, WEIGHT
from tune.data import DataReport, Source, find_conversation_column
from tune.errors import ConfigError, DataError
from tune.evaluation.results import short_hash
from tune.utils.paths import expand_path

__all__ = ["HeldOut", "find_base", "find_held_out", "find_shortcomings", "find_tokenizer"]

_AUTO = "tune.tokenizers.auto"

# Arguments of a dataset that say where its rows are, as opposed to what they mean.
_ROWS = ("split", "data_files", "name", "subset", "revision", "field")
_PLACES = (*_ROWS, "limit", STREAMING, WEIGHT, "shuffle_buffer")


@dataclass(frozen=True)
class HeldOut:
    """Which examples a model is scored on.

    Args:
        components: build the datasets.
        val_split, seed: what is set aside of them, and how it was drawn; None: all of them are taken.
        is_of_run: whether these are what the run itself has validated on.
    """

    components: tuple[Component, ...]
    val_split: float | None = None
    seed: int = 0
    is_of_run: bool = False

    @property
    def id(self) -> tuple[str, str]:
        """What to call them in a file's name, and what tells them from all others."""
        told = [json.dumps(_whereabouts(one), sort_keys=True, default=str) for one in self.components]
        told += [str(self.val_split), str(self.seed)] if self.val_split is not None else []
        first, short = self.components[0], short_hash(*told)
        if self.is_of_run:
            return "validation", short
        return f"{Path(str(first.kwargs.get('source') or first.path)).stem[:60]}_{short}", short


def find_held_out(run: Path | None, rows: str | None) -> HeldOut:
    """Return the examples that a run has validated on; or other rows, read as it reads its own.

    Args:
        run: its folder; None where the model was trained elsewhere, so that rows are read by what they look like.
        rows: file, folder or hub name; None for those of the run.

    Raises:
        ConfigError: the run has no such data, or its config cannot be read.
        DataError: rows are of no format that is known.
    """
    config = {} if run is None else _read_config(run)
    dataset, validation = _components(config.get("dataset")), _components(config.get("dataset_val"))
    learns_pairs = any("preference" in one.path or "unpaired" in one.path for one in dataset)
    if rows is not None:
        own = (validation or dataset)[:1]
        if not own or learns_pairs:
            return HeldOut((_by_format(rows),))
        kept = {key: value for key, value in own[0].kwargs.items() if key not in _PLACES}
        return HeldOut((replace(own[0], kwargs={**kept, "source": rows}),))
    if learns_pairs:
        raise ConfigError(
            "the run has learnt from pairs, which have no one answer: give rows that have, with data=FILE"
        )
    if validation:
        return HeldOut(validation, is_of_run=True)
    if config.get("val_split") is not None:
        return HeldOut(dataset, float(config["val_split"]), int(config.get("seed") or 0), is_of_run=True)
    has_none = (
        "the run was not validated on any data"
        if run is not None
        else "no run is known that trained this model"
    )
    raise ConfigError(
        f"{has_none}: give held-out rows, with data=FILE or dataset=... (what it learnt shows nothing)"
    )


def find_shortcomings(report: DataReport) -> Iterator[str]:
    """Yield a sentence for whatever of the rows is not scored, or not whole."""
    if report.num_dropped:
        were = "row was" if report.num_dropped == 1 else "rows were"
        yield f"{report.num_dropped:,} {were} left out, first: {next(iter(report.dropped), '')}"
    if report.num_long_dropped:
        were = "example was" if report.num_long_dropped == 1 else "examples were"
        yield f"{report.num_long_dropped:,} {were} left out, being longer than max_seq_len, {report.max_seq_len}."
    num_cut = report.num_truncated - report.num_lost
    for number, what in ((report.num_lost, "is lost"), (num_cut, "may be cut")):
        if number:
            yield f"The answer of {number:,} example{'s' * (number != 1)} {what}: max_seq_len is {report.max_seq_len}."


def find_tokenizer(run: Path | None, default: Component) -> Component:
    """Return the tokenizer that a run was trained with, which may write conversations as its builder's family does.

    Args:
        run: its folder; None where none is known.
        default: what is asked for; what is found by itself is left open, and the run's then stands in its place.
    """
    config = {} if run is None or default.path != _AUTO or default.kwargs else _read_config(run)
    return next(iter(_components(config.get("tokenizer"))), default)


def find_base(run: Path | None) -> str:
    """Return the folder of the model that a run began with.

    Raises:
        ConfigError: no run is known, or it began with random weights.
    """
    checkpointer = {} if run is None else _read_config(run).get("checkpointer")
    folder = checkpointer.get("checkpoint_dir") if isinstance(checkpointer, Mapping) else None
    if not isinstance(folder, str) or not folder:
        raise ConfigError("against=base needs a run that began with a model: name a folder instead")
    return folder


def _whereabouts(component: Component) -> dict[str, Any]:
    """Return where the rows of a dataset are; a file by its full path, however it was written."""
    told = {name: value for name, value in component.kwargs.items() if name in ("source", *_ROWS)}
    for name in ("source", "data_files"):
        value = told.get(name)
        if isinstance(value, str) and os.path.exists(expand_path(value)):
            told[name] = os.path.realpath(expand_path(value))
    return told or {"builder": component.path}


def _read_config(run: Path) -> dict[str, Any]:
    file = run / "config.yaml"
    if not file.is_file():
        return {}
    tree = load_tree({}, config=file)
    values = plain_tree(tree)
    for problem in tree.problems:
        if problem.severity == "error":
            raise ConfigError(f"{file} cannot be read: {problem.message}")
    return values


def _components(value: Any) -> tuple[Component, ...]:
    several = value if isinstance(value, list) else [value]
    return tuple(
        Component(one[COMPONENT_KEY], {key: each for key, each in one.items() if key != COMPONENT_KEY})
        for one in several
        if isinstance(one, Mapping) and isinstance(one.get(COMPONENT_KEY), str)
    )


def _by_format(rows: str) -> Component:
    """Return the dataset that reads rows of this look: conversations, or prompts with answers."""
    first = next(iter(Source(rows, limit=1).rows()), None)
    try:
        find_conversation_column(list(map(str, first.values)) if first is not None else [])
    except DataError:
        return Component("tune.datasets.instruct_dataset", {"source": rows})
    return Component("tune.datasets.chat_dataset", {"source": rows})
