"""A head that gives each text a score in place of logits: what a reward model is, beside its decoder.

As transformers' sequence classification with one label has it: one row, without a bias, whose product with the hidden
state of a text's last token is the score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tune.errors import CheckpointError, ConfigError
from tune.modules.config import DecoderConfig
from tune.modules.decoder import TransformerDecoder
from tune.modules.family import Family, Layout, WeightRule
from tune.modules.peft.lora import LoRALinear

__all__ = ["SCORE", "add_score", "last_hidden", "scoring_family"]

SCORE = "score.weight"


def scoring_family(family: Family) -> Family:
    """Return a family whose models score texts, as files know it: no output matrix, and a score.

    It reads checkpoints of language models as well, whose output matrix is left out. Of a larger model the text part
    alone is read, and saved.

    Raises:
        ConfigError: transformers has no such class, so that nobody could load what is saved.
    """
    if family.has_score:
        return family
    if not family.classifier:
        raise ConfigError(
            f"transformers has no sequence classification for models of the family {family.name}, as which reward "
            "models are saved: take a model of another family"
        )

    def read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
        labels, names = content.get("id2label"), content.get("architectures")
        num_labels = len(labels) if isinstance(labels, Mapping) else content.get("num_labels", 2)
        if isinstance(names, list) and names[:1] == [family.classifier] and num_labels != 1:
            raise CheckpointError(
                f"config.json: it sorts texts into {num_labels} classes (`id2label`); a reward model has one label"
            )
        return replace(family.read_hf_config(content), tie_word_embeddings=True)

    def write_hf_config(config: DecoderConfig) -> dict[str, Any]:
        labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        return {**family.write_hf_config(config), **labels}

    variants = (*family.hf_variants, *(layout for layout in (family.meta, family.torchtune) if layout))
    return replace(
        family,
        architectures=(family.classifier, *family.architectures),
        hf=_scoring_layout(family.hf),
        hf_variants=tuple(_scoring_layout(layout) for layout in variants),
        meta=None,
        torchtune=None,
        read_hf_config=read_hf_config,
        write_hf_config=write_hf_config,
        read_meta_config=None,
        write_meta_config=None,
        has_score=True,
    )


def _scoring_layout(layout: Layout) -> Layout:
    outputs = [rule.theirs for rule in layout.rules if rule.ours == "output.weight"]
    return replace(
        layout,
        rules=(*(rule for rule in layout.rules if rule.ours != "output.weight"), WeightRule(SCORE, SCORE)),
        ignored=(*layout.ignored, *layout.carried, *outputs, *filter(None, [layout.tied_output])),
        tied_output="",
        carried=(),
        outer=None,
    )


def add_score(model: TransformerDecoder) -> None:
    """Put a score in the place of a language model's output matrix, in place; a model that has one is left as it is.

    Beside adapters it is trained whole (`tune.checkpoints.add_adapters` brings it to their precision).

    Args:
        model: on the meta device, before it is wrapped or compiled. The score gets its values when weights are loaded:
            those of the checkpoint, or new ones.

    Raises:
        ConfigError: as `scoring_family`; or the output matrix, which goes, has an adapter.
    """
    if model.score is not None:
        return
    if model.family is None:
        raise ConfigError("the model has no family, so nobody would know how to save it with a score")
    if isinstance(model.output, LoRALinear):
        raise ConfigError(
            "a reward model has no output matrix that could be adapted: set apply_lora_to_output to false"
        )
    weight = model.tok_embeddings.weight
    model.family = scoring_family(model.family)
    model.config = replace(model.config, tie_word_embeddings=True)
    model.output = None
    model.score = nn.Linear(model.config.embed_dim, 1, bias=False, device=weight.device, dtype=weight.dtype)
    model.score_is_new = True


def last_hidden(hidden: Tensor, tokens: Tensor, answers: Tensor, num_answers: int, pad_id: int) -> Tensor:
    """Return the hidden state of each text's last token, [n, d].

    The last one is the last that does not pad, as transformers' sequence classification finds it: where a tokenizer
    pads with the token that closes a text, it is the one before that.

    Args:
        hidden: [b, s, d].
        tokens: [b, s].
        answers: the number of the text that a token belongs to, -1 for none. [b, s]
        num_answers: n.
        pad_id: the token that pads.
    """
    flat, owners = tokens.flatten(), answers.flatten()  # [b * s]
    places = torch.arange(flat.shape[0], device=flat.device)
    first = torch.full((num_answers,), flat.shape[0], device=flat.device)
    owned = owners >= 0
    first = first.scatter_reduce(0, owners.clamp(min=0), torch.where(owned, places, flat.shape[0]), "amin")
    known = torch.where(owned & (flat != pad_id), places, -1)
    last = first.clamp(max=flat.shape[0] - 1).scatter_reduce(0, owners.clamp(min=0), known, "amax")  # [n]
    return hidden.flatten(0, 1)[last]
