"""Weights of messages in a run: a step computes what plain torch does, packed or not, resumed or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.components import trusting
from tune.errors import ConfigError
from tune.modules.loss import LossFromHidden
from tune.recipes.full_finetune import FullFinetuneRecipe

SGD = {"_component_": "torch.optim.SGD", "lr": 0.3}


class UnweightedCrossEntropyLoss(LossFromHidden):
    """A loss of one's own that was written before there were weights."""

    def forward(self, hidden: Any, weight: Any, labels: Any, softcap: Any = None) -> torch.Tensor:  # type: ignore[override]
        logits = (hidden @ weight.T).flatten(0, 1)
        return nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum")


@pytest.fixture
def weighted(tmp_path: Path) -> dict[str, Any]:
    """13 conversations of unequal length, of which most have a weight that is not 1."""
    words = ["apple", "river", "seven", "twelve", "green", "walk"]
    path = tmp_path / "weighted.jsonl"
    with path.open("w") as file:
        for number in range(13):
            said = [words[(number + place) % 6] for place in range(2 + number % 3)]
            turns = [{"role": "user", "content": said[0]}, {"role": "assistant", "content": " ".join(said)}]
            again = {"role": "assistant", "content": said[-1], "weight": [0.25, 0.5, 1, 0][number % 4]}
            messages = [*turns, {"role": "user", "content": "again"}, again]
            file.write(json.dumps({"messages": messages}) + "\n")
    template = {"user": ["Q: ", "\n"], "assistant": ["A: ", ""]}
    return {"_component_": "tune.datasets.chat_dataset", "source": str(path), "prompt_template": template}


def run(params: Any) -> FullFinetuneRecipe:
    recipe = FullFinetuneRecipe(params)
    try:
        recipe.setup()
        recipe.train()
    finally:
        recipe.cleanup()
    return recipe


def weights_of(recipe: FullFinetuneRecipe) -> list[torch.Tensor]:
    return [weight.detach() for weight in recipe.model.parameters()]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("loss", ["LinearCrossEntropyLoss", "CrossEntropyLoss"])
def test_a_weighted_step_equals_plain_torch(make_params, weighted, loss: str, packed: bool) -> None:
    dataset = weighted | ({"packed": True, "max_seq_len": 60} if packed else {})
    batches = {"batch_size": 3 if packed else 4, "gradient_accumulation_steps": 6, "epochs": 1}
    params = make_params(dataset=dataset, loss=loss, optimizer=SGD, **batches)
    recipe = FullFinetuneRecipe(params)
    recipe.setup()
    model = recipe.model
    total, num_targets = torch.zeros(()), 0
    source = recipe.dataset.documents if packed else recipe.dataset
    for example in (source[index] for index in range(len(source))):
        logits = model(torch.tensor([example["tokens"]]))[0, :-1]
        labels = torch.tensor(example["labels"])[1:]
        losses = nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=-100)
        total = total + losses @ torch.tensor(example.get("weights") or [1.0] * (len(labels) + 1))[1:]
        num_targets += int((labels != -100).sum())
    gradients = torch.autograd.grad(total / num_targets, list(model.parameters()))
    expected = [(w - 0.3 * g).detach().clone() for w, g in zip(model.parameters(), gradients)]
    recipe.train()
    recipe.cleanup()
    assert recipe.state.step == 1
    assert recipe.state.loss == pytest.approx(total.item() / num_targets, rel=1e-5)
    for weight, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(weight, wanted, rtol=0, atol=2e-6)


def test_a_weighted_run_resumes_and_knows_its_weights(make_params, weighted, tmp_path: Path) -> None:
    values = {"dataset": weighted, "dataset_val": weighted, "run_val_every_n_steps": 2}
    whole = run(make_params(**values, output_dir=str(tmp_path / "whole")))
    run(make_params(**values, max_steps=2))
    resumed = run(make_params(**values, resume_from_checkpoint=True))
    for left, right in zip(weights_of(whole), weights_of(resumed), strict=True):
        assert torch.equal(left, right)
    path = Path(weighted["source"])
    path.write_text(path.read_text().replace("0.25", "0.75"))
    with pytest.raises(Exception, match="dataset"):
        run(make_params(**values, resume_from_checkpoint=True, epochs=3, allow_changes_on_resume=False))


def test_a_loss_that_takes_no_weights_is_refused_at_once(make_params, weighted, tmp_path: Path) -> None:
    with trusting(__name__):
        own = {"_component_": f"{__name__}.UnweightedCrossEntropyLoss"}
        for values in ({"dataset": weighted}, {"dataset_val": weighted}):
            recipe = FullFinetuneRecipe(make_params(loss=own, **values))
            with pytest.raises(ConfigError, match=r"UnweightedCrossEntropyLoss cannot take.*weights"):
                recipe.setup()
            recipe.cleanup()
            assert not hasattr(recipe, "model")
