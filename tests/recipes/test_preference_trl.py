"""Ten steps of each preference loss, beside TRL's trainers of the pinned version: losses, metrics and all gradients."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForSequenceClassification,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from tune.checkpoints import save_model
from tune.datasets import preference_dataset, unpaired_dataset
from tune.models import from_checkpoint
from tune.models.llama2 import llama2, llama2_tokenizer
from tune.modules.score import add_score
from tune.recipes.params.preference_finetune import PreferenceFinetuneParams
from tune.recipes.params.reward_finetune import RewardFinetuneParams
from tune.recipes.preference_finetune import PreferenceFinetuneRecipe
from tune.recipes.reward_finetune import RewardFinetuneRecipe
from tune.tokenizers import from_checkpoint as tokenizer_from

STEPS, PAIRS = 10, 3
WORDS = ["apple", "river", "seven", "twelve", "green", "walk"]
SIZES = {
    "vocab_size": 600,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embed_dim": 24,
    "intermediate_dim": 40,
    "max_seq_len": 64,
}
LR = 0.1
# Their names for ours.
METRICS = {
    "rewards/chosen": "rewards_chosen",
    "rewards/rejected": "rewards_rejected",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "logps/chosen": "logps_chosen",
    "logps/rejected": "logps_rejected",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, spm_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    model = llama2(**SIZES)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(5.0)  # answers then differ by more than noise
    save_model(model, folder, tokenizer=llama2_tokenizer(str(spm_file)))
    return folder


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts with answers of unequal length, a step's worth for each of ten steps of 2 x 3."""
    rng = random.Random(1)
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = []
    for _ in range(STEPS * 2 * PAIRS):
        prompt, chosen, rejected = (
            " ".join(rng.choices(WORDS, k=rng.randint(low, high))) for low, high in ((2, 6), (1, 4), (1, 6))
        )
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def judged_file(tmp_path_factory: pytest.TempPathFactory, pairs_file: Path) -> Path:
    """Each prompt with one of its answers, and whether it is the better one."""
    rng = random.Random(2)
    path = tmp_path_factory.mktemp("judged") / "judged.jsonl"
    rows = []
    for line in pairs_file.read_text().splitlines():
        pair, good = json.loads(line), rng.random() < 0.5
        answer = pair["chosen" if good else "rejected"]
        rows.append({"prompt": pair["prompt"], "completion": answer, "label": good})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Taken(TrainerCallback):
    """The gradients of each step, before it is taken."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **others: Any
    ) -> None:
        self.gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})


def run_ours(
    checkpoint: Path,
    dataset: dict[str, Any],
    loss: dict[str, Any],
    batch: tuple[int, int],
    out: Path,
    params_cls: Any = PreferenceFinetuneParams,
    recipe_cls: Any = PreferenceFinetuneRecipe,
) -> tuple[list[dict[str, Any]], list[dict[str, torch.Tensor]]]:
    """Return what is logged of each step, and its gradients by their names in a Hugging Face checkpoint."""
    params = params_cls(
        output_dir=str(out),
        model_checkpoint=str(checkpoint),
        dataset=dataset,
        loss=loss,
        shuffle=False,
        batch_size=batch[0],
        gradient_accumulation_steps=batch[1],
        max_steps=STEPS,
        optimizer={"_component_": "torch.optim.SGD", "lr": LR},
        dtype="fp32",
        device="cpu",
        seed=3,
        log_level="WARNING",
    )
    recipe = recipe_cls(params)
    gradients: list[dict[str, torch.Tensor]] = []

    def keep(*_: Any) -> None:
        shell = copy.deepcopy(recipe.model)
        for mine, weight in zip(shell.parameters(), recipe.model.parameters(), strict=True):
            mine.data = weight.grad.clone()
        folder = out / f"gradients_{len(gradients)}"
        save_model(shell, folder)
        gradients.append(load_file(folder / "model.safetensors"))

    try:
        recipe.setup()
        recipe.optimizer.register_step_pre_hook(keep)
        recipe.train()
    finally:
        recipe.cleanup()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return rows, gradients


def processing_class() -> PreTrainedTokenizerFast:
    """Something that knows what pads; what is learnt from has been tokenized already."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 2, "<s>": 1}, "<pad>")),
        pad_token="<pad>",
        eos_token="</s>",
    )


def run_theirs(
    trainer_cls: type, config_cls: type, checkpoint: Path, dataset: Dataset, out: Path, **settings: Any
) -> tuple[list[dict[str, Any]], list[dict[str, torch.Tensor]]]:
    num_threads = torch.get_num_threads()
    config = config_cls(
        output_dir=str(out),
        max_steps=STEPS,
        learning_rate=LR,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        logging_steps=1,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=3,
        **settings,
    )
    model_cls = AutoModelForSequenceClassification if trainer_cls is ScoresOnTokens else LlamaForCausalLM
    model = model_cls.from_pretrained(checkpoint, dtype=torch.float32)
    if trainer_cls in (OnTokens, JudgedOnTokens):
        settings = {"ref_model": LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)}
    else:
        settings = {}
    taken = Taken()
    trainer = trainer_cls(
        model=model,
        args=config,
        train_dataset=dataset,
        processing_class=processing_class(),
        callbacks=[taken],
        **settings,
    )
    torch.set_num_threads(num_threads)  # the trainer has taken all cores
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row], taken.gradients


class OnTokens(DPOTrainer):
    """TRL's trainer on tokens that are there already."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class JudgedOnTokens(KTOTrainer):
    """TRL's trainer on tokens that are there already; what it does with them stays its own."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, name: str) -> Any:
        def rotate(examples: dict[str, Any]) -> dict[str, Any]:
            return {"KL_completion_ids": [examples["completion_ids"][-1], *examples["completion_ids"][:-1]]}

        return dataset.map(rotate, batched=True, batch_size=args.per_device_train_batch_size)


class ScoresOnTokens(RewardTrainer):
    """TRL's trainer of reward models on tokens that are there already."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def row_of_tokens(row: dict[str, Any]) -> dict[str, Any]:
    """Return what the trainers without a reference make of a row."""
    found: dict[str, Any] = {"prompt_input_ids": row["prompt_ids"]}
    for side in ("chosen", "rejected"):
        ids = row["prompt_ids"] + row[f"{side}_ids"]
        found[f"{side}_input_ids"] = ids
        found[f"{side}_attention_mask"] = [1] * len(ids)
        found[f"{side}_labels"] = [-100] * len(row["prompt_ids"]) + row[f"{side}_ids"]
    return found


class ORPOOnTokens(ORPOTrainer):
    def tokenize_row(self, feature: Any, model: Any = None) -> dict[str, Any]:
        return row_of_tokens(feature)


class CPOOnTokens(CPOTrainer):
    def tokenize_row(self, feature: Any, model: Any = None) -> dict[str, Any]:
        return row_of_tokens(feature)


def asked(labels: list[int]) -> int:
    return next(place for place, label in enumerate(labels) if label >= 0)


@pytest.fixture(scope="module")
def their_pairs(pairs_file: Path, checkpoint: Path) -> Dataset:
    rows = []
    for item in preference_dataset(tokenizer_from(checkpoint), source=str(pairs_file)):
        end = item["input_pos"].index(0, 1)
        prompt = asked(item["labels"])
        rows.append(
            {
                "prompt_ids": item["tokens"][:prompt],
                "chosen_ids": item["tokens"][prompt:end],
                "rejected_ids": item["tokens"][end + prompt :],
                "prompt": "",
                "chosen": "",
                "rejected": "",
            }
        )
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def their_judged(judged_file: Path, checkpoint: Path) -> Dataset:
    rows = []
    for item in unpaired_dataset(tokenizer_from(checkpoint), source=str(judged_file)):
        prompt = asked(item["labels"])
        tokens = item["tokens"]
        rows.append(
            {"prompt_ids": tokens[:prompt], "completion_ids": tokens[prompt:], "label": item["verdict"] > 0}
        )
    return Dataset.from_list(rows)


Compare = Callable[..., None]


@pytest.fixture
def compare(checkpoint: Path, tmp_path: Path) -> Compare:
    """Run both for ten steps, and compare all that they say of each."""

    def run(
        ours: tuple[dict[str, Any], dict[str, Any]],
        theirs: tuple[type, type, Dataset, dict[str, Any]],
        batch: tuple[int, int] = (PAIRS, 2),
        metrics: dict[str, str] = METRICS,
        recipe: tuple[Any, Any] = (PreferenceFinetuneParams, PreferenceFinetuneRecipe),
        start: Path = checkpoint,
    ) -> None:
        rows, gradients = run_ours(start, *ours, batch, tmp_path / "ours", *recipe)
        trainer, config, dataset, settings = theirs
        sizes = {"per_device_train_batch_size": batch[0], "gradient_accumulation_steps": batch[1]}
        their_rows, their_gradients = run_theirs(
            trainer, config, start, dataset, tmp_path / "theirs", **sizes, **settings
        )
        assert len(rows) == len(their_rows) == len(gradients) == len(their_gradients) == STEPS
        for step, (mine, other) in enumerate(zip(rows, their_rows, strict=True), start=1):
            for theirs_name, name in {"loss": "loss", **metrics}.items():
                # They log four digits of some numbers.
                assert mine[name] == pytest.approx(float(other[theirs_name]), rel=2e-4, abs=2e-4), (
                    step,
                    name,
                )
        for step, (mine, other) in enumerate(zip(gradients, their_gradients, strict=True), start=1):
            assert mine.keys() == other.keys()
            for name, gradient in other.items():
                torch.testing.assert_close(
                    mine[name],
                    gradient,
                    rtol=1e-3,
                    atol=2e-5,
                    msg=f"step {step}, {name}",
                )
        assert abs(rows[-1]["margin"] - rows[0]["margin"]) > 1e-2, "nothing was learnt"

    return run


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        ({"_component_": "dpo", "beta": 0.1}, {"loss_type": "sigmoid"}),
        ({"_component_": "ipo", "beta": 0.3}, {"loss_type": "ipo", "beta": 0.3}),
        ({"_component_": "hinge", "beta": 0.2}, {"loss_type": "hinge", "beta": 0.2}),
        (
            {"_component_": "robust", "beta": 0.2, "label_smoothing": 0.15},
            {"loss_type": "robust", "beta": 0.2, "label_smoothing": 0.15},
        ),
        ({"_component_": "sigmoid_norm", "beta": 2.0}, {"loss_type": "sigmoid_norm", "beta": 2.0}),
    ],
    ids=lambda value: value.get("_component_"),
)
def test_losses_with_a_reference(
    compare: Compare, pairs_file: Path, their_pairs: Dataset, loss: dict[str, Any], settings: dict[str, Any]
) -> None:
    dataset = {"_component_": "preference", "source": str(pairs_file)}
    compare((dataset, loss), (OnTokens, DPOConfig, their_pairs, settings))


def test_an_added_sft_term(compare: Compare, pairs_file: Path, their_pairs: Dataset) -> None:
    """One pair to a micro-batch: theirs is the mean over all tokens of a batch, ours over those of each answer."""
    compare(
        ({"_component_": "preference", "source": str(pairs_file)}, {"_component_": "dpo", "sft_weight": 0.7}),
        (OnTokens, DPOConfig, their_pairs, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}),
        batch=(1, 3),
    )


def test_orpo(compare: Compare, pairs_file: Path, their_pairs: Dataset) -> None:
    """One pair to a micro-batch, for the same reason; they log means per token as logps."""
    compare(
        ({"_component_": "preference", "source": str(pairs_file)}, {"_component_": "orpo", "beta": 0.4}),
        (ORPOOnTokens, ORPOConfig, their_pairs, {"beta": 0.4}),
        batch=(1, 3),
        metrics={theirs: name for theirs, name in METRICS.items() if "logps" not in theirs},
    )


def test_simpo(compare: Compare, pairs_file: Path, their_pairs: Dataset) -> None:
    loss = {"_component_": "simpo", "beta": 2.0, "gamma": 0.6, "label_smoothing": 0.1}
    settings = {
        "loss_type": "simpo",
        "beta": 2.0,
        "simpo_gamma": 0.6,
        "label_smoothing": 0.1,
        "cpo_alpha": 0.0,
    }
    compare(
        ({"_component_": "preference", "source": str(pairs_file)}, loss),
        (CPOOnTokens, CPOConfig, their_pairs, settings),
        metrics={theirs: name for theirs, name in METRICS.items() if "logps" not in theirs},
    )


def test_kto(compare: Compare, judged_file: Path, their_judged: Dataset) -> None:
    loss = {"_component_": "kto", "beta": 0.2, "desirable_weight": 1.1, "undesirable_weight": 0.8}
    settings = {"beta": 0.2, "desirable_weight": 1.1, "undesirable_weight": 0.8}
    compare(
        ({"_component_": "unpaired", "source": str(judged_file)}, loss),
        (JudgedOnTokens, KTOConfig, their_judged, settings),
        metrics={},
    )


@pytest.mark.parametrize("has_margins", [False, True], ids=["pairs", "margins"])
def test_reward_models(
    compare: Compare, checkpoint: Path, pairs_file: Path, tmp_path: Path, has_margins: bool
) -> None:
    """From a reward model with scores of some size; with margins, about 0 as well."""
    torch.manual_seed(5)
    model = from_checkpoint(checkpoint)
    add_score(model)
    with torch.no_grad():
        model.score.weight.normal_(std=0.5)
    save_model(model, tmp_path / "start", tokenizer=tokenizer_from(checkpoint))
    rng = random.Random(6)
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    if has_margins:
        rows = [row | {"margin": rng.choice([0, 0.25, 1.5])} for row in rows]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    theirs = []
    for item in preference_dataset(tokenizer_from(checkpoint), source=str(file)):
        end = item["input_pos"].index(0, 1)
        margins = {"margin": item["margins"][0]} if has_margins else {}
        theirs.append({"chosen_ids": item["tokens"][:end], "rejected_ids": item["tokens"][end:], **margins})
    centre = 0.05 if has_margins else 0.0
    compare(
        (
            {"_component_": "preference", "source": str(file)},
            {"_component_": "bradley_terry", "center_rewards_coefficient": centre},
        ),
        (
            ScoresOnTokens,
            RewardConfig,
            Dataset.from_list(theirs),
            {"center_rewards_coefficient": centre or None},
        ),
        metrics={"accuracy": "accuracy", "margin": "margin"},
        recipe=(RewardFinetuneParams, RewardFinetuneRecipe),
        start=tmp_path / "start",
    )
