"""Whether a model computes what its checkpoint was trained to compute: what the shapes of the weights cannot tell."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from tune.checkpoints.config_fields import read_json
from tune.checkpoints.load import require_family
from tune.errors import CheckpointError
from tune.modules import TransformerDecoder

# What loading compares tensor by tensor, and what may differ from run to run.
_SEEN_IN_SHAPES = {
    *("vocab_size", "num_layers", "embed_dim", "intermediate_dim", "tie_word_embeddings"),
    *("attn_bias", "mlp_bias"),
}
_FREE = {"max_seq_len", "attn_dropout", "residual_dropout"}


def check_against_config(model: TransformerDecoder, folder: Path) -> None:
    """Compare a model with the config.json beside the weights it is given, where there is one.

    A builder of the right shape with other constants (rotary base, eps, window, caps) would load every tensor, train,
    and be wrong.

    Args:
        model: built, on any device; its weights are not looked at.
        folder: the checkpoint's.

    Raises:
        CheckpointError: config.json is of another family, says another constant (all are listed), or cannot be
            followed, so that nobody knows.
    """
    path = folder / "config.json"
    if not path.is_file():
        return
    family, content = require_family(model), read_json(path)
    architectures = content.get("architectures")
    if isinstance(architectures, list) and architectures and architectures[0] not in family.architectures:
        raise CheckpointError(
            f"{path} describes a {architectures[0]}, and the model was built as {family.architectures[0]}: "
            "use model: auto, or the builder that belongs to the checkpoint"
        )
    try:
        described = family.read_hf_config(content)
    except CheckpointError as error:
        raise CheckpointError(
            f"the model cannot be compared with its checkpoint: {folder}: {error}"
        ) from error
    names = [field.name for field in fields(described) if field.name not in _SEEN_IN_SHAPES | _FREE]
    different = [
        f"{name} is {getattr(model.config, name)!r} in the model, {getattr(described, name)!r} in the checkpoint"
        for name in names
        if getattr(model.config, name) != getattr(described, name)
    ]
    if different:
        raise CheckpointError(
            f"the model and {path} differ in what its weights were trained with; nothing was loaded.\n  "
            + "\n  ".join(different)
            + "\n  Use model: auto, or the builder that belongs to the checkpoint. If you mean the difference, change "
            "config.json in a copy of the folder."
        )
