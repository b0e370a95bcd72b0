"""Distillation: each step is that of a loop on full logits, whatever way it is cut up; and what a teacher may be."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

import tune.models
from tune.checkpoints import save_model
from tune.cli.preflight_memory import judge_memory
from tune.config import ParamsError, dump_params, fields_of, resolve
from tune.errors import CheckpointError, ConfigError
from tune.models.llama2 import llama2
from tune.models.qwen2 import qwen2
from tune.modules.peft import NF4Weight
from tune.recipes.distill import DistillRecipe, recipe_main
from tune.recipes.full_finetune import FullFinetuneRecipe
from tune.recipes.params.distill import DistillParams
from tune.tokenizers import SentencePieceTokenizer
from tune.training import PlannedRun, count_targets, plan_memory

SGD = {"_component_": "torch.optim.SGD", "lr": 0.1}
LORA = {"lora_rank": 3, "lora_attn_modules": ["q_proj", "output_proj"], "apply_lora_to_mlp": True}
JENSEN_SHANNON = {"_component_": "jensen_shannon", "beta": 0.3, "temperature": 2.0}
VOCABULARY, TEACHER_ROWS = 600, 605


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, spm_file: Path) -> dict[str, Path]:
    """A student, and a teacher of another family, wider and deeper, whose embedding is padded."""
    made = {
        "student": llama2(VOCABULARY, 2, 4, 24, 64, num_kv_heads=2, intermediate_dim=40),
        "teacher": qwen2(TEACHER_ROWS, 3, 4, 2, 32, intermediate_dim=44, max_seq_len=64),
    }
    folders = {}
    for seed, (name, model) in enumerate(made.items()):
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        folders[name] = tmp_path_factory.mktemp(name)
        save_model(model, folders[name], tokenizer=SentencePieceTokenizer(spm_file))
    return folders


@pytest.fixture
def make_distill(run_values: dict[str, Any], folders: dict[str, Path]):
    """Return the params of a run of 8 steps with some of them changed."""
    values = {name: value for name, value in run_values.items() if name != "train_from_scratch"}
    values |= {
        "model": "auto",
        "tokenizer": "auto",
        "model_checkpoint": str(folders["student"]),
        "teacher_checkpoint": str(folders["teacher"]),
        "optimizer": SGD,
    }
    return lambda **changes: DistillParams(**{**values, **changes})


def rows_of(output_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def weights_of(step: Path) -> dict[str, Tensor]:
    files = sorted(step.glob("*/*.safetensors"))
    return {f"{file.parent.name}/{name}": t for file in files for name, t in load_file(file).items()}


def divergence(student: Tensor, teacher: Tensor, kd_loss: Any) -> Tensor:
    """The sum over rows of logits, by torch's own functions."""
    if kd_loss is None:
        p, q = student.log_softmax(-1), teacher.softmax(-1)
        return -(q * p).sum()
    p, q = (student / 2.0).log_softmax(-1), (teacher / 2.0).log_softmax(-1)
    mixture = (0.3 * q.exp() + 0.7 * p.exp()).log()
    one, other = (F.kl_div(mixture, each, reduction="sum", log_target=True) for each in (q, p))
    return 4.0 * (0.3 * one + 0.7 * other)


@pytest.mark.parametrize("kd_loss", [None, JENSEN_SHANNON], ids=["forward", "jensen-shannon"])
@pytest.mark.parametrize("adapters", [{}, LORA], ids=["full", "lora"])
def test_steps_equal_a_loop_on_full_logits(
    make_distill, folders: dict[str, Path], tmp_path: Path, adapters: dict[str, Any], kd_loss: Any
) -> None:
    ratio = 0.7
    changes = {**adapters, "kd_loss": kd_loss, "kd_ratio": ratio, "clip_grad_norm": 0.5}
    params = make_distill(**changes, epochs=1)
    recipe = DistillRecipe(params)
    recipe.setup()
    # The same model, its batches in their order, and a loop that shares nothing else.
    batches = list(recipe.loader)
    model: Any = recipe.model
    teacher = tune.models.from_checkpoint(folders["teacher"])
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    expected = []
    for first in range(0, len(batches), 2):
        parts, count = torch.zeros(2), 0
        for batch in batches[first : first + 2]:
            labels = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
            rows = labels != -100
            logits = model(batch["tokens"])[rows]
            with torch.no_grad():
                taught = teacher(batch["tokens"])[rows][:, :VOCABULARY]
            parts = parts + torch.stack(
                [divergence(logits, taught, kd_loss), F.cross_entropy(logits, labels[rows], reduction="sum")]
            )
            count += count_targets(batch["labels"])
        kd, ce = parts / count
        loss = ratio * kd + (1 - ratio) * ce
        gradients = torch.autograd.grad(loss, trained)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        expected.append((loss.item(), kd.item(), ce.item(), norm.item()))
        with torch.no_grad():
            for weight, gradient in zip(trained, gradients, strict=True):
                weight -= 0.1 * gradient * min(1.0, 0.5 / norm)
    by_hand = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(start[name])
    recipe.train()
    recipe.cleanup()
    rows = [
        tuple(row[key] for key in ("loss", "kd_loss", "ce_loss", "grad_norm"))
        for row in rows_of(tmp_path / "out")
    ]
    assert len(rows) == len(expected) == 4
    *_, last = rows_of(tmp_path / "out")
    assert last["num_trained_tokens"] == sum(count_targets(batch["labels"]) for batch in batches)
    assert "num_trained_pairs" not in last
    torch.testing.assert_close(torch.tensor(rows), torch.tensor(expected), rtol=2e-5, atol=1e-5)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), by_hand[name], rtol=1e-5, atol=2e-6)
        assert torch.equal(weight, start[name]) == (not weight.requires_grad)


@pytest.mark.parametrize("name", ["full", "lora"])
def test_steps_cut_up_otherwise_are_the_same(make_distill, tmp_path: Path, name: str) -> None:
    adapters = LORA if name == "lora" else {}
    data = make_distill().dataset
    dataset = {"_component_": data.path, **data.kwargs}
    common = {**adapters, "dataset_val": dataset, "shuffle": False, "epochs": 1, "max_steps_per_epoch": 2}
    cuts: dict[str, dict[str, Any]] = {
        "small": {"batch_size": 2, "gradient_accumulation_steps": 6},
        "large": {"batch_size": 12, "gradient_accumulation_steps": 1, "batch_size_val": 5},
    }
    for cut, changes in cuts.items():
        recipe_main(make_distill(**common, **changes, output_dir=str(tmp_path / cut)))
    # All in one step, of rows with several documents or one.
    packed = {**dataset, "packed": True, "max_seq_len": 60}
    whole = {**common, "gradient_accumulation_steps": 1, "max_steps_per_epoch": None, "epochs": 2}
    recipe_main(make_distill(**whole, batch_size=40, output_dir=str(tmp_path / "plain")))
    recipe_main(make_distill(**whole, batch_size=40, dataset=packed, output_dir=str(tmp_path / "packed")))
    for one, other in (("small", "large"), ("plain", "packed")):
        ours, theirs = rows_of(tmp_path / one), rows_of(tmp_path / other)
        assert len(ours) == len(theirs) == 2
        for our, their in zip(ours, theirs, strict=True):
            for key in ("loss", "kd_loss", "ce_loss", "grad_norm"):
                assert our[key] == pytest.approx(their[key], rel=1e-5), key
        for key in ("val_loss", "val_kd_loss", "val_ce_loss"):
            assert ours[-1][key] == pytest.approx(theirs[-1][key], rel=1e-5), key
        assert ours[-1]["val_loss"] == pytest.approx(
            (ours[-1]["val_kd_loss"] + ours[-1]["val_ce_loss"]) / 2, rel=1e-6
        )
        left, right = weights_of(tmp_path / one / "latest"), weights_of(tmp_path / other / "latest")
        for key, weight in left.items():
            torch.testing.assert_close(weight, right[key], rtol=1e-5, atol=2e-6)


RESUMED: dict[str, dict[str, Any]] = {
    "full": {"optimizer": {"_component_": "tune.modules.optim.AdamW", "lr": 0.003}, "dtype": "bf16"},
    "lora": {**LORA, "lora_dropout": 0.2, "quantize_teacher": True},
    "on policy": {
        **LORA,
        "on_policy": True,
        "on_policy_share": 0.7,
        "max_new_tokens": 7,
        "lora_dropout": 0.2,
    },
}


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_it_is_the_same_run(make_distill, tmp_path: Path, name: str) -> None:
    changes = {"epochs": 1, "save_every_n_steps": 2, **RESUMED[name]}
    assert recipe_main(make_distill(**changes)) == 0
    out, again = tmp_path / "out", tmp_path / "again"
    shutil.copytree(out, again, symlinks=True)
    steps = sorted(again.glob("step_*"))
    for step in steps[1:]:
        shutil.rmtree(step)
    assert recipe_main(make_distill(**changes, output_dir=str(again), resume_from_checkpoint=True)) == 0
    last = steps[-1].name
    ours, theirs = weights_of(again / last), weights_of(out / last)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    told = [
        [{key: row[key] for key in ("loss", "kd_loss", "ce_loss", "grad_norm")} for row in rows_of(folder)]
        for folder in (out, again)
    ]
    assert told[0] == told[1]
    with pytest.raises(CheckpointError, match=r"kd_ratio: was .*, is 0\.9|on_policy: was"):
        recipe_main(
            make_distill(
                **{
                    **changes,
                    "on_policy": False,
                    "on_policy_share": 1.0,
                    "kd_ratio": 0.9,
                    "epochs": 3,
                    "max_new_tokens": 128,
                },
                output_dir=str(again),
                resume_from_checkpoint=True,
            )
        )


def test_a_teacher_in_4_bits_is_nearly_the_same(make_distill, tmp_path: Path) -> None:
    losses = []
    for name, changes in (("whole", {}), ("four_bits", {"quantize_teacher": True})):
        recipe = DistillRecipe(make_distill(**changes, output_dir=str(tmp_path / name)))
        recipe.setup()
        teacher = recipe.teacher.model
        assert any(isinstance(module, NF4Weight) for module in teacher.modules()) == bool(changes)
        assert not teacher.training
        assert not any(weight.requires_grad for weight in teacher.parameters())
        assert recipe.memory_plan is not None
        (beside,) = (
            sizes[0] for part, sizes in recipe.memory_plan.prediction.parts.items() if "beside" in part
        )
        total, _ = recipe.batch_loss(next(iter(recipe.loader)))
        losses.append((float(total.detach()), beside))
        recipe.cleanup()
    (whole, size), (rounded, size_in_4_bits) = losses
    assert rounded != whole
    assert rounded == pytest.approx(whole, rel=0.02)
    model = tune.models.from_checkpoint(make_distill().teacher_checkpoint)
    tensors = [*model.parameters(), *model.buffers()]
    assert size == sum(tensor.nbytes for tensor in tensors) > size_in_4_bits > size / 8


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_a_teacher_of_a_lora_builder_is_the_model_itself(
    make_distill, spm_file: Path, tmp_path: Path, kind: str
) -> None:
    """As one of torchtune's configs has it: adapters that no checkpoint has, and nobody trains."""
    sizes = {"vocab_size": 600, "num_layers": 2, "num_heads": 4, "embed_dim": 32, "max_seq_len": 64}
    sizes |= {"intermediate_dim": 44, "num_kv_heads": 2}
    torch.manual_seed(9)
    save_model(llama2(**sizes), tmp_path / "base", tokenizer=SentencePieceTokenizer(spm_file))
    builder = {"_component_": "lora_llama2", "lora_attn_modules": ["q_proj"], **sizes}
    builder["quantize_base"] = kind == "qlora"
    totals = []
    for name, changes in (
        ("plain", {"quantize_teacher": kind == "qlora"}),
        ("adapted", {"teacher_model": builder}),
    ):
        folders = {"teacher_checkpoint": str(tmp_path / "base"), "output_dir": str(tmp_path / name)}
        recipe = DistillRecipe(make_distill(**folders, **changes))
        recipe.setup()
        totals.append(recipe.batch_loss(next(iter(recipe.loader)))[0].detach())
        recipe.cleanup()
    assert torch.equal(*totals)


def test_another_vocabulary_is_refused_with_its_first_token(make_distill, spm_file: Path) -> None:
    teachers = {"_component_": "auto", "path": str(spm_file), "add_tokens": ["zebra crossing"]}
    with pytest.raises(
        ConfigError, match=r"token 595 is none for the student and '.u2581zebra.u2581crossing'"
    ):
        DistillRecipe(make_distill(teacher_tokenizer=teachers)).setup()


def test_a_teacher_without_a_tokenizer_is_compared_by_its_rows(
    make_distill, folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("student", "teacher"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "model.safetensors"):
            shutil.copy(folders[name] / file, tmp_path / name / file)
    with pytest.raises(
        ConfigError, match=r"has 605 tokens and the student 600, and there is no tokenizer in"
    ):
        DistillRecipe(make_distill(teacher_checkpoint=str(tmp_path / "teacher"))).setup()
    recipe = DistillRecipe(
        make_distill(teacher_checkpoint=str(tmp_path / "student"), output_dir=str(tmp_path / "same"))
    )
    recipe.setup()
    recipe.cleanup()
    # A student that is its own teacher differs by nothing: what is left is the teacher's entropy.
    params = {"kd_loss": "reverse_kl", "kd_ratio": 1.0, "output_dir": str(tmp_path / "own")}
    recipe = DistillRecipe(make_distill(teacher_checkpoint=str(folders["student"]), **params))
    recipe.setup()
    total, _ = recipe.batch_loss(next(iter(recipe.loader)))
    recipe.cleanup()
    assert float(total.detach()) == pytest.approx(0.0, abs=1e-5)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no teacher": ({"teacher_checkpoint": None}, "teacher_checkpoint is required"),
    "a teacher's adapter": (
        {"teacher_checkpointer": {"_component_": "FullModelHFCheckpointer", "adapter_checkpoint": "ad"}},
        "merge it into the teacher's weights first",
    ),
    "sizes of the teacher": (
        {"teacher_model": {"_component_": "llama2", "vocab_size": 600, "num_layers": 1, "num_heads": 4}},
        "teacher_model",
    ),
    "settings of no adapter": ({"lora_alpha": 3.0}, "every weight is trained: set lora_rank"),
    "nothing of the teacher": ({"kd_ratio": 0.0}, "kd_ratio must be above 0"),
    "answers of its own": ({"on_policy": True, "kd_ratio": 0.5}, "what it says already; set it to 1"),
    "no prompts": (
        {"on_policy": True, "dataset": {"_component_": "alpaca", "source": "x.json"}},
        "leaves nothing to be the prompt",
    ),
    "no writing": ({"sampling_temperature": 0.5}, "has no effect without on_policy"),
    "a loss of tokens": ({"kd_loss": "LinearCrossEntropyLoss"}, "kd_loss"),
    "another label for no target": (
        {"kd_loss": {"_component_": "forward_kl", "ignore_index": 0}},
        "kd_loss.ignore_index must be -100",
    ),
    "a temperature of 0": (
        {"kd_loss": {"_component_": "forward_kl", "temperature": 0.0}},
        "kd_loss.temperature must be between 1e-06 and 1000000, not 0.0",
    ),
    "more than all": (
        {"kd_loss": {"_component_": "jensen_shannon", "beta": 1.5}},
        "kd_loss.beta must be between 0 and 1, not 1.5",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_said_before_anything_starts(make_distill, name: str) -> None:
    changes, message = WRONG[name]
    with pytest.raises(ParamsError, match=message):
        make_distill(**changes)


@pytest.mark.parametrize("changes", [{}, LORA, {"on_policy": True}], ids=["full", "lora", "on_policy"])
def test_the_written_config_reads_back(make_distill, tmp_path: Path, changes: dict[str, Any]) -> None:
    params = make_distill(**changes)
    (tmp_path / "config.yaml").write_text(dump_params(params))
    resolution = resolve(DistillParams, config=tmp_path / "config.yaml")
    assert resolution.ok, resolution.errors
    for name, info in fields_of(DistillParams).items():
        # What is decided elsewhere is a comment, and has its default again.
        expected = info.default if name in params.decided_elsewhere() else getattr(params, name)
        assert getattr(resolution.params, name) == expected, name


DIFFERENT = {
    "__init__": "the type of its parameters",
    "setup": "a second loss is built",
    "_setup_data": "beside adapters the base stays the checkpoint's",
    "_setup_model": "a teacher, adapters if asked, and answers that the student writes",
    "load_checkpoint": "adapters and the teacher are loaded, too",
    "_setup_monitor": "the teacher, the base, and the builder's arguments must stay as they are",
    "batch_loss": "the objective",
    "validate": "its parts are told",
    "_write_model": "adapters are saved, if there are any",
}


def test_the_loop_is_the_text_of_the_other_recipes() -> None:
    own, full = (
        {name: inspect.getsource(method) for name, method in vars(cls).items() if inspect.isfunction(method)}
        for cls in (DistillRecipe, FullFinetuneRecipe)
    )
    assert own.keys() == full.keys()
    assert {name for name in full if own[name] != full[name]} == DIFFERENT.keys()
    assert len(inspect.getsource(inspect.getmodule(DistillRecipe)).splitlines()) <= 300  # type: ignore[arg-type]


def test_preflight_counts_the_teacher_as_the_run_does(
    make_distill, folders: dict[str, Path], tmp_path: Path
) -> None:
    params = make_distill(tokenizer={"_component_": "auto", "max_seq_len": 27})
    judged = judge_memory(params, torch.device("cpu"))
    assert judged is not None
    assert judged.ok
    recipe = DistillRecipe(params)
    recipe.setup()
    recipe.cleanup()
    plan: Any = recipe.memory_plan
    assert f"{plan.peak / 2**30:.2f} GiB predicted" in judged.text
    # Both at the loss: pieces of the logits of both models stand there, beside what cross-entropy alone takes.
    student = tune.models.from_checkpoint(folders["student"])
    run = PlannedRun(student, recipe.loss_fn, recipe.precision, **params.memory_settings())
    alone = plan_memory(run, recipe.dataset.report(), torch.device("cpu"))
    pieces = 4 * VOCABULARY * 2 * 256  # at least one of each model, of two hundred and fifty-six rows at most
    (beside,) = (sizes[0] for part, sizes in plan.prediction.parts.items() if "beside" in part)
    assert beside < plan.prediction.moments[0] - alone.prediction.moments[0] < beside + 6 * pieces
