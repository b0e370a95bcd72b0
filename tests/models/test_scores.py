"""Reward models of every family against transformers' sequence classification: read, begun anew, saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import CASES
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tune.checkpoints import load_into, open_weights, save_model
from tune.errors import CheckpointError
from tune.models import auto, from_checkpoint
from tune.models.loading import all_families
from tune.modules.score import add_score

# One case of each family, whose config class says which.
FIRST = {each.config_class: name for name, each in reversed(CASES.items())}
CLASSIFIERS = {family.name: family.classifier for family in all_families()}
SCORED = [name for kind, name in FIRST.items() if CLASSIFIERS[kind.model_type]]


@pytest.mark.parametrize("name", SCORED)
def test_scores_are_the_references(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = CASES[name]()
    config.num_labels, config.pad_token_id = 1, None
    reference = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        reference.score.weight.normal_(std=0.5)
    reference.save_pretrained(tmp_path / "theirs")
    assert type(reference).__name__ == CLASSIFIERS[config.model_type]
    tokens = torch.randint(3, 61, (1, 11), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted = reference(input_ids=tokens).logits[0]
        ours = from_checkpoint(tmp_path / "theirs")
        torch.testing.assert_close(ours(tokens)[0, -1], wanted, rtol=1e-5, atol=3e-5)
        save_model(ours, tmp_path / "ours")
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
        torch.testing.assert_close(again(input_ids=tokens).logits[0], wanted, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("name", SCORED)
def test_a_score_begins_on_a_language_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    reference = AutoModelForCausalLM.from_config(CASES[name]()).eval()
    reference.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = auto(str(tmp_path))
        add_score(model)
    load_into(model, open_weights(tmp_path))
    tokens = torch.randint(3, 61, (1, 11), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        hidden = reference.model(input_ids=tokens).last_hidden_state  # [1, s, d]
        torch.testing.assert_close(model.hidden(tokens), hidden, rtol=1e-5, atol=3e-5)
        assert 0.005 < float(model.score.weight.std()) < 0.05
        wanted = hidden @ model.score.weight.t()
        torch.testing.assert_close(model(tokens), wanted, rtol=1e-5, atol=3e-5)


def test_classes_of_several_labels_are_refused(tmp_path: Path) -> None:
    config = CASES["llama"]()
    config.num_labels = 3
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="it sorts texts into 3 classes"):
        from_checkpoint(tmp_path)
