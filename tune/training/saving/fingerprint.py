"""What a run must still be when it is resumed: the settings and data that decide its numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tune
from tune.config.component import COMPONENT_KEY, Component
from tune.data.files import describe_files
from tune.errors import CheckpointError
from tune.modules import TransformerDecoder
from tune.training.loading import MapDataset
from tune.training.train_state import TrainState
from tune.utils import get_logger
from tune.utils.mesh import Mesh

__all__ = [
    "check_fingerprint",
    "describe_component",
    "fingerprint_run",
    "hash_code",
    "hash_dataset",
    "hash_weight_files",
]

_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pth", "*.pt")
# Facts of a run that decide nothing but how sums are rounded. How a step is cut up is one of them, as long as it holds
# the same sequences.
LAST_DIGITS = frozenset({"batch_size", "gradient_accumulation_steps", "processes", "threads", "torch"})
# Another program may be another version of the same one, or one that trains otherwise: its author knows.
CODE = "code"
# Parameters that were null where they were not set, in runs of versions before they said what that meant: this.
_ONCE_NULL = {
    "lora_rank": "8",
    "lora_alpha": "16.0",
    "lora_dropout": "0.0",
    "lora_attn_modules": "['q_proj', 'v_proj']",
    **dict.fromkeys(
        ("apply_lora_to_mlp", "apply_lora_to_output", "use_dora", "use_rslora", "quantize_base"), "False"
    ),
}
_NOTHING = frozenset({"[]", "()", "{}"})


def describe_component(component: Component) -> str:
    """Return a component's name and arguments as text that is equal exactly when they are."""
    if not component:
        return "none"
    arguments = {name: value for name, value in component.to_mapping().items() if name != COMPONENT_KEY}
    return f"{component.path} {json.dumps(arguments, sort_keys=True, default=str)}"


def fingerprint_run(
    settings: Mapping[str, Any],
    state: TrainState,
    model: TransformerDecoder,
    dataset: MapDataset,
    mesh: Mesh,
    recipe: str | Path,
) -> dict[str, str]:
    """Return what makes a run this run and no other, as texts that can be compared and shown.

    Every process must call this.

    Args:
        settings: parameters and their values, from `tune.config.fixed_on_resume`, and whatever else must stay. Without
            an `lr_scheduler` more epochs only add steps at the end, so their number does not matter.
        state: its seed, the number of steps, and what a step takes.
        model: its sizes count.
        dataset: what is trained on.
        mesh: how many processes share a step, and their device.
        recipe: its file; the state takes note of it.
    """
    state.recipe = str(recipe)
    facts = {
        "batch_size": state.batch_size,
        "gradient_accumulation_steps": state.gradient_accumulation_steps,
        "model": model.config,
        "dataset": mesh.from_rank_zero(lambda: hash_dataset(dataset)),
        "sequences_per_step": state.sequences_per_step,
        CODE: hash_code(recipe),
        "seed": state.seed,
        "device": mesh.device.type,
        "num_steps": state.num_steps if settings["lr_scheduler"] else "any",
        "processes": mesh.world_size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return {
        name: describe_component(fact) if isinstance(fact, Component) else str(fact)
        for name, fact in {**settings, **facts}.items()
    }


def hash_dataset(dataset: MapDataset, num_sampled: int = 20_000) -> str:
    """Return a short text that changes when the tokens, labels or weights of a dataset do.

    Args:
        dataset: examples with `tokens` and `labels`.
        num_sampled: examples looked at, evenly spaced, the first and last among them; the number of examples
            always counts. A change to an example that is not looked at goes unnoticed.
    """
    size = len(dataset)
    digest = hashlib.sha256(str(size).encode())
    if mixture := getattr(dataset, "mixture", None):
        digest.update(str(mixture).encode())  # other examples, or in other shares
    indices = np.unique(np.linspace(0, max(size - 1, 0), min(size, num_sampled)).astype(int))
    for index in indices.tolist():
        example = dataset[index]
        for key in ("tokens", "labels"):
            digest.update(np.asarray(example[key], dtype=np.int64).tobytes() + b"|")
        if "weights" in example:
            digest.update(np.asarray(example["weights"], dtype=np.float64).tobytes() + b"|")
        if "verdict" in example:
            digest.update(f"{example['verdict']}|".encode())
    return f"{size} examples, {digest.hexdigest()[:16]}"


def hash_code(*files: str | Path) -> str:
    """Return a short text that changes when the source of a recipe, or the version of tune, does."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(Path(file).read_bytes())
    return f"tune {tune.__version__}, recipe {digest.hexdigest()[:12]}"


def hash_weight_files(folder: Path) -> str:
    """Return a short text that changes when a folder's weight files are others.

    Looked at are their names, their sizes, and 64 KiB at either end of each: safetensors keep their names and shapes
    at the start. A change in the middle of a file of the same size goes unnoticed.
    """
    return describe_files(sorted({path for pattern in _WEIGHT_FILES for path in folder.glob(pattern)}))


def check_fingerprint(
    saved: Mapping[str, str], current: Mapping[str, str], where: str, *, allow_changes: bool = False
) -> list[str]:
    """Refuse to go on with other settings or data than the saved step was made with; return what was let pass.

    What only decides the last digits (`LAST_DIGITS`: how many processes and threads, the version of torch) is mentioned
    in the log and goes on; so is another program (the recipe's file, tune's version), which may train otherwise.

    Args:
        saved, current: from `fingerprint_run`.
        where: the saved step, for the message.
        allow_changes: mention what else has changed in the log, too, and go on.

    Raises:
        CheckpointError: something differs; every difference is listed.
    """
    saved, current = _without_null(saved), _without_null(current)
    unset = dict.fromkeys(sorted(saved.keys() | current.keys()), "not set")
    was, now = unset | saved, unset | current
    lines = {name: _tell(name, was[name], now[name]) for name in unset if was[name] != now[name]}
    harmless = [line for name, told in lines.items() if name in LAST_DIGITS for line in told]
    changed = [name for name in lines if name not in LAST_DIGITS and name != CODE]
    harmful = [line for name in changed for line in lines[name]]
    if harmful and not allow_changes:
        raise CheckpointError(
            f"{where} cannot be continued exactly, because this has changed since it was saved:\n"
            + "\n".join(harmful)
            + "\nSet it back; or go on all the same with allow_changes_on_resume=true; or start a new run from the "
            + f"saved weights: model_checkpoint={where}/model with another output_dir."
        )
    if harmful:
        get_logger().warning(f"Going on from {where} in spite of what has changed:\n" + "\n".join(harmful))
    if harmless:
        get_logger().warning(
            f"{where} was saved elsewhere; the numbers may differ in their last digits:\n"
            + "\n".join(harmless)
        )
    if CODE in lines:
        get_logger().warning(
            f"{where} was saved by another program: the recipe's file or the version of tune has changed. It may train "
            "otherwise, and that cannot be told from here:\n" + "\n".join(lines[CODE])
        )
    return changed


def _without_null(facts: Mapping[str, str]) -> dict[str, str]:
    """Return facts in which null, and an empty list where null is as good, are written as what they mean."""
    alike = {
        name: "None" if text in _NOTHING and name not in _ONCE_NULL else text for name, text in facts.items()
    }
    return {name: _ONCE_NULL.get(name, text) if text == "None" else text for name, text in alike.items()}


def _tell(name: str, was: str, now: str) -> list[str]:
    """Return what has changed, in lines; of a component that has kept its name, the arguments alone."""
    (old_path, old), (new_path, new) = (_split_component(text) for text in (was, now))
    if old is None or new is None or old_path != new_path:
        return [f"  {name}: was {was}, is {now}"]
    texts = {argument: (_shown(old, argument), _shown(new, argument)) for argument in sorted(old | new)}
    return [
        f"  {name}.{argument}: was {before}, is {after} ({old_path})"
        for argument, (before, after) in texts.items()
        if before != after
    ]


def _shown(arguments: Mapping[str, Any], name: str) -> str:
    return json.dumps(arguments[name], sort_keys=True) if name in arguments else "not set"


def _split_component(text: str) -> tuple[str, dict[str, Any] | None]:
    """Return path and arguments of what `describe_component` wrote; None for the arguments of another text."""
    path, _, arguments = text.partition(" ")
    try:
        content = json.loads(arguments)
    except ValueError:
        return path, None
    return path, content if isinstance(content, dict) else None
