"""From a checkpoint's own files to the model they describe."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from tune.checkpoints import find_model_dir, load_into, open_weights, read_json
from tune.errors import CheckpointError
from tune.models.llama2 import LLAMA
from tune.models.mistral import MISTRAL
from tune.models.outer import find_part, tied_as_stored
from tune.modules import DecoderConfig, Family, TransformerDecoder
from tune.modules.score import scoring_family
from tune.utils import get_device, get_dtype


def auto(checkpoint_dir: str = "", may_score: bool = False) -> TransformerDecoder:
    """Return a randomly initialised model of the kind and sizes a checkpoint describes; no weights are read.

    Built on torch's current default device and dtype.

    Args:
        checkpoint_dir: a model's directory, or a saved step or output directory of a run.
        may_score: it may be a reward model, which gives texts a score and writes none.

    Raises:
        CheckpointError: no model there, or one that is not supported; the message names the field.
    """
    if not checkpoint_dir:
        raise CheckpointError(
            "model: auto needs a checkpoint to look at: set checkpointer.checkpoint_dir (or model_checkpoint), or "
            "name a model such as llama2_7b"
        )
    folder = find_model_dir(checkpoint_dir)
    family, config = read_model_config(folder)
    if family.has_score and not may_score:
        raise CheckpointError(
            f"{folder} holds a reward model ({family.classifier}), which gives texts a score and writes none. "
            "reward_finetune trains it further; tune.models.from_checkpoint gives its scores (docs/preference.md)"
        )
    return TransformerDecoder(config, family)


def from_checkpoint(
    directory: str | Path, dtype: torch.dtype | str = torch.float32, device: torch.device | str = "cpu"
) -> TransformerDecoder:
    """Return the model of a checkpoint with its weights, in eval mode; on tokens [b, s] it gives logits [b, s, v].

    A reward model gives scores [b, s, 1], of which that of a text's last token is the text's.

    Built on the meta device and filled one tensor at a time: the peak is one copy of the weights.

    Args:
        directory: a model in Hugging Face or Meta layout, or a saved step or output directory of a run.
        dtype: what the weights become, a torch dtype or its name in configs ("bf16").
        device: where they go.

    Raises:
        CheckpointError: no model there, an unsupported one, or weights that do not fit it.
        TrainingError: no such dtype, or no such device here.
    """
    if isinstance(dtype, str):
        dtype = get_dtype(dtype)
    if isinstance(device, str):
        device = get_device(device)
    folder = find_model_dir(directory)
    family, config = read_model_config(folder)
    source = open_weights(folder)
    with torch.device("meta"):
        model = TransformerDecoder(config, family)
    load_into(model, source, dtype=dtype, device=device)
    return model.eval()


def read_model_config(folder: Path) -> tuple[Family, DecoderConfig]:
    """Return the family and the sizes that a model directory's config.json or params.json describes.

    Raises:
        CheckpointError: neither file is there, or it describes something unsupported.
    """
    try:
        if (folder / "config.json").is_file():
            content = read_json(folder / "config.json")
            family = find_family(content)
            config = family.read_hf_config(content)
            return family, tied_as_stored(folder, family, content, config)
        if (folder / "params.json").is_file():
            content = read_json(folder / "params.json")
            # Meta gives rules for the feed-forward's width, Mistral the width.
            family = MISTRAL if "hidden_dim" in content else LLAMA
            if family.read_meta_config is not None:
                return family, family.read_meta_config(content, open_weights(folder).shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    raise CheckpointError(
        f"{folder} holds neither config.json (Hugging Face) nor params.json (Meta, Mistral), so the model's sizes are "
        "not known: copy that file from where the weights came from"
    )


@cache
def all_families() -> tuple[Family, ...]:
    """Return every `Family` that a file of this package defines, in the order of its file's name."""
    names = sorted(info.name for info in pkgutil.iter_modules([str(Path(__file__).parent)]))
    modules = [import_module(f"{__package__}.{name}") for name in names]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, Family)]
    return tuple({family.name: family for family in found}.values())  # files share one with their kin


def find_family(content: Mapping[str, Any]) -> Family:
    """Return the family whose files a config.json is of, or raise CheckpointError."""
    families = all_families()
    architectures = content.get("architectures")
    if isinstance(architectures, list) and architectures:
        known = list(dict.fromkeys(name for family in families for name in family.architectures))
        if found := [family for family in families if str(architectures[0]) in family.architectures]:
            return find_part(found, content)
        if scored := [family for family in families if architectures[0] == family.classifier != ""]:
            return scoring_family(scored[0])
        raise CheckpointError(
            f"config.json: `architectures` is {str(architectures[:3])[:200]}, which is not supported: only "
            f"{', '.join(known)} is"
        )
    kinds: dict[str, list[Family]] = {}
    for family in families:
        outers = [layout.outer.model_type for layout in family.hf_variants if layout.outer]
        for kind in dict.fromkeys((family.name, *outers)):
            kinds.setdefault(kind, []).append(family)
    if str(content.get("model_type")) in kinds:
        return find_part(kinds[str(content["model_type"])], content)
    raise CheckpointError(
        f"config.json: `model_type` is {content.get('model_type')!r:.200} and `architectures` is missing; supported "
        f"is {', '.join(kinds)}"
    )
