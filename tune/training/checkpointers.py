"""Where a run's starting weights come from, and how its trained weights are written.

The format is recognised from the files, so one class reads everything; the others are that class under torchtune's
names. Which saved step to resume from is `tune.training.saving.saved_steps`' business.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tune.checkpoints import (
    adapter_tokenizer_dir,
    check_against_config,
    find_model_dir,
    load_into,
    open_weights,
    save_meta,
    save_model,
)
from tune.errors import CheckpointError, ConfigError
from tune.modules import TransformerDecoder
from tune.utils import expand_path

__all__ = [
    "FullModelCheckpointer",
    "FullModelHFCheckpointer",
    "FullModelMetaCheckpointer",
    "FullModelTorchTuneCheckpointer",
]


class FullModelCheckpointer:
    """Reads weights in Hugging Face or Meta layout; writes Hugging Face layout, which other tools load as it stands.

    Args:
        checkpoint_dir: folder with the weights to start from (or a saved step); "" when training from scratch.
        checkpoint_files: names of the weight files in it, where only some are meant; None takes them all.
        model_type: family the weights must be of, such as "LLAMA2"; None takes what they are.
        output_dir: accepted from older configs; saved steps go to the recipe's own `output_dir`.
        recipe_checkpoint: a saved step to resume from, such as "step_000100"; None takes the newest complete one.
        resume_from_checkpoint: same as the recipe's parameter of that name, as older configs have it here.
        safe_serialization: weights are written as safetensors; anything else is refused.
        adapter_checkpoint: folder of a LoRA adapter in PEFT layout to go on from; None begins new ones.

    Raises:
        ConfigError: `safe_serialization` is false, or `adapter_checkpoint` is empty.
    """

    WRITES_META = False

    def __init__(
        self,
        checkpoint_dir: str = "",
        checkpoint_files: list[str] | None = None,
        model_type: str | None = None,
        output_dir: str = "",
        recipe_checkpoint: str | None = None,
        resume_from_checkpoint: bool = False,
        safe_serialization: bool = True,
        adapter_checkpoint: str | None = None,
    ) -> None:
        if not safe_serialization:
            raise ConfigError(
                "checkpointer.safe_serialization is false, but weights are only written as safetensors: pickled "
                "files can run code when loaded. Remove the setting."
            )
        if adapter_checkpoint == "":
            raise ConfigError(
                "checkpointer.adapter_checkpoint is empty: give the adapter's folder, or remove it."
            )
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_files = checkpoint_files
        self.model_type = model_type
        self.output_dir = expand_path(output_dir)
        self.recipe_checkpoint = recipe_checkpoint
        self.resume_from_checkpoint = resume_from_checkpoint
        self.adapter_checkpoint = None if adapter_checkpoint is None else expand_path(adapter_checkpoint)
        self._start_dir: Path | None = None

    def find_model_dir(self) -> Path | None:
        """Return the folder with the weights to start from, or None when training from scratch.

        Raises:
            CheckpointError: `checkpoint_dir` leads to no model.
        """
        self._start_dir = find_model_dir(self.checkpoint_dir) if self.checkpoint_dir else None
        return self._start_dir

    def find_tokenizer_dir(self) -> Path | None:
        """Return the folder with the tokenizer: the model's, or that of an adapter which has one of its own.

        Raises:
            CheckpointError: as `find_model_dir`, or there is no adapter to go on from.
        """
        model_dir = self.find_model_dir()
        return model_dir and adapter_tokenizer_dir(model_dir, self.adapter_checkpoint)

    def load_into(self, model: TransformerDecoder, model_dir: Path, *, device: torch.device) -> None:
        """Fill a model built on the meta device, one tensor at a time.

        Args:
            model: its parameters keep their dtype.
            model_dir: from `find_model_dir`, or a saved step's `model/`, which is read whole.
            device: where the parameters go.

        Raises:
            CheckpointError: files cannot be read, or hold another model's weights.
        """
        if self.checkpoint_files and model_dir == self._start_dir:
            source = open_weights([model_dir / name for name in self.checkpoint_files])
        else:
            source = open_weights(model_dir)
        self._check_type(model)
        check_against_config(model, model_dir)
        load_into(model, source, device=device)

    def save_model(self, model: TransformerDecoder, directory: Path, tokenizer: Any) -> None:
        """Write weights, config and tokenizer into `directory`/model, in Hugging Face layout."""
        save_model(model, directory / "model", tokenizer=tokenizer)
        if self.WRITES_META:
            save_meta(model, directory / "meta")

    def _check_type(self, model: TransformerDecoder) -> None:
        if self.model_type is None or model.family is None:
            return
        wanted, actual = _letters(self.model_type), _letters(model.family.name)
        if not (wanted.startswith(actual) or actual.startswith(wanted)):
            raise CheckpointError(
                f"checkpointer.model_type is {self.model_type}, but the model is of the family {model.family.name}. "
                "Remove model_type, or choose the model that belongs to the checkpoint."
            )


class FullModelHFCheckpointer(FullModelCheckpointer):
    """`FullModelCheckpointer`, under the name torchtune's configs use for Hugging Face weights."""


class FullModelTorchTuneCheckpointer(FullModelCheckpointer):
    """`FullModelCheckpointer`, under the name torchtune's configs use for weights in its own files.

    `tune convert-ckpt SRC DEST --to tune` writes such a file.
    """


class FullModelMetaCheckpointer(FullModelCheckpointer):
    """`FullModelCheckpointer` that also writes Meta's layout: each saved step gets `meta/` beside `model/`."""

    WRITES_META = True


def _letters(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalpha())
