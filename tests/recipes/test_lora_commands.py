"""The commands that people type for LoRA, as they type them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import tune.models
from tune.checkpoints import save_model
from tune.cli.main import main
from tune.datasets import alpaca_dataset
from tune.models.llama2 import llama2
from tune.tokenizers import SentencePieceTokenizer

QUESTIONS = ["the river", "seven apples", "walk green", "twelve", "the answer of seven"]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, spm_file: Path) -> Path:
    """A small Llama 2 as it comes from the hub: two weight files, config.json, tokenizer.model."""
    torch.manual_seed(2)
    directory = tmp_path_factory.mktemp("llama")
    save_model(llama2(600, 2, 4, 24, 192, num_kv_heads=2, intermediate_dim=40), directory)
    whole = directory / "model.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    for name, part in (("a", names[:7]), ("b", names[7:])):
        save_file({key: tensors[key] for key in part}, directory / f"{name}.safetensors", {"format": "pt"})
    whole.unlink()
    shutil.copy(spm_file, directory / "tokenizer.model")
    return directory


@pytest.fixture(scope="module")
def published(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as `transformers` writes it."""
    directory = tmp_path_factory.mktemp("published")
    tensors = load_file(sharded / "a.safetensors") | load_file(sharded / "b.safetensors")
    shutil.copy(sharded / "config.json", directory)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.save_pretrained(directory)
    shutil.copy(sharded / "tokenizer.model", directory)
    return directory


@pytest.fixture
def single_device(sharded: Path, tmp_path: Path) -> list[str]:
    """The command of torchtune's tutorials, and what makes it end soon."""
    return [
        *("run", "lora_finetune_single_device", "--config", "llama2/7B_lora_single_device"),
        f"checkpointer.checkpoint_dir={sharded}",
        "checkpointer.checkpoint_files=[a.safetensors,b.safetensors]",
        f"tokenizer.path={sharded / 'tokenizer.model'}",
        *(f"output_dir={tmp_path / 'out'}", "device=cpu", "max_steps_per_epoch=1"),
        *("gradient_accumulation_steps=1", "dtype=fp32"),
    ]


def write_rows(file: Path, rows: list[dict[str, object]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"dataset.source={file}"


def test_the_single_device_config_on_shards_and_own_tokenizer(
    single_device: list[str], tmp_path: Path
) -> None:
    rows: list[dict[str, object]] = [{"instruction": text, "input": "", "output": text} for text in QUESTIONS]
    assert main([*single_device, write_rows(tmp_path / "rows.jsonl", rows)]) == 0
    step = tmp_path / "out" / "latest"
    assert (step / "model" / "model.safetensors").is_file()
    settings = json.loads((step / "adapter" / "adapter_config.json").read_text())
    assert settings["r"] == 8
    assert settings["target_modules"] == sorted(
        f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")
    )


def test_another_dataset_in_its_place_with_an_argument(
    single_device: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [
        {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "green"}]}
        for text in QUESTIONS
    ]
    command = [*single_device, write_rows(tmp_path / "rows.jsonl", rows)]
    command += ["dataset=tune.datasets.slimorca_dataset", "dataset.train_on_input=True"]
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "(conversations, template llama2_chat)" in said
    share = float(said.split("% of them trained on")[0].rpartition(" ")[2])
    assert share > 90  # all but each BOS
    # The name of torchtune's own package stands for this one.
    other = [f"output_dir={tmp_path / 'second'}", "dataset=torchtune.datasets.slimorca_dataset"]
    assert main([*command, *other]) == 0


def test_a_builder_of_other_sizes_is_refused_with_both(
    single_device: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [{"instruction": text, "output": text} for text in QUESTIONS]
    command = [*single_device, write_rows(tmp_path / "rows.jsonl", rows), "model=llama2_7b"]
    assert main(command) == 1
    assert "num_heads is 32 in the model, 4 in the checkpoint" in capsys.readouterr().err


def test_a_new_optimizer_drops_the_old_ones_arguments(
    single_device: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [{"instruction": text, "output": text} for text in QUESTIONS]
    command = [*single_device, write_rows(tmp_path / "rows.jsonl", rows)]
    assert main([*command, "optimizer=torch.optim.SGD", "~optimizer.foreach", "optimizer.lr=0.25"]) == 0
    said = capsys.readouterr().err
    assert "drops lr, weight_decay" in said
    assert "torch.optim.SGD" in (tmp_path / "out" / "config.yaml").read_text()
    assert main([*command, "optimizer=torch.optim.SGD", "~optimizer.forech"]) == 2


def test_a_builder_with_own_sizes_resumes_only_as_it_was(
    sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dropout is in no size of the model and in no value of the adapter: only the builder's arguments tell."""
    rows: list[dict[str, object]] = [{"instruction": text, "output": text} for text in QUESTIONS]
    config = tmp_path / "mine.yaml"
    config.write_text(
        "recipe: lora_finetune\n"
        "model:\n"
        "  _component_: torchtune.models.llama2.lora_llama2\n"
        "  lora_attn_modules: [q_proj, v_proj]\n"
        "  vocab_size: 600\n  num_layers: 2\n  num_heads: 4\n  num_kv_heads: 2\n  embed_dim: 24\n"
        "  intermediate_dim: 40\n  max_seq_len: 192\n"
        "  lora_rank: 3\n  lora_alpha: 6\n  lora_dropout: 0.25\n"
        f"checkpointer: {{_component_: tune.training.FullModelHFCheckpointer, checkpoint_dir: {sharded}, "
        "checkpoint_files: [a.safetensors, b.safetensors]}\n"
        "dataset: alpaca\nbatch_size: 2\noptimizer: {_component_: torch.optim.SGD, lr: 0.5}\n"
        "epochs: 1\nseed: 4\ndevice: cpu\ndtype: fp32\nsave_every_n_steps: 1\n"
    )
    command = ["run", "lora_finetune", "--config", str(config), write_rows(tmp_path / "rows.jsonl", rows)]
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert main([*command, f"output_dir={whole}"]) == 0
    part.mkdir()
    shutil.copytree(whole / "step_000002", part / "step_000002")
    resumed = [*command, f"output_dir={part}", "resume_from_checkpoint=true"]
    capsys.readouterr()
    assert main([*resumed, "model.lora_dropout=0.5"]) == 1
    said = capsys.readouterr().err
    assert "builder.lora_dropout: was 0.25, is 0.5 (tune.models.llama2.lora_llama2)" in said
    assert "lora_rank" not in said
    assert [path.name for path in part.glob("step_*")] == ["step_000002"]
    # As it was it goes on, and is the run that was never interrupted.
    assert main(resumed) == 0
    file = Path("latest", "adapter", "adapter_model.safetensors")
    assert (whole / file).read_bytes() == (part / file).read_bytes()
    assert (whole / file).read_bytes() != (
        part / "step_000002" / "adapter" / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    "settings", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"]
)
def test_an_adapter_of_peft_goes_through_every_command_and_back(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, bool]
) -> None:
    torch.manual_seed(9)
    theirs = get_peft_model(
        AutoModelForCausalLM.from_pretrained(published),
        LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "o_proj", "down_proj"], **settings),
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    theirs.save_pretrained(tmp_path / "theirs")
    weights = [f"model_checkpoint={published}", f"adapter_checkpoint={tmp_path / 'theirs'}", "device=cpu"]

    # It generates what it generates there.
    tokenizer = SentencePieceTokenizer(published / "tokenizer.model")
    prompt = torch.tensor([tokenizer.encode("the river", add_eos=False)])
    greedy = {"input_ids": prompt, "do_sample": False, "max_new_tokens": 9, "eos_token_id": None}
    answer = theirs.generate(**greedy)[0]
    with theirs.disable_adapter():
        assert not torch.equal(theirs.generate(**greedy)[0], answer)
    plain = [*weights, "prompt=the river", "max_new_tokens=9", "temperature=0", "ignore_eos=true"]
    capsys.readouterr()
    assert main(["run", "generate", *plain, "dtype=fp32"]) == 0
    said = capsys.readouterr().out
    whole = tokenizer.decode(answer.tolist())
    assert whole.removeprefix("the river").strip() == said.removeprefix("the river").strip() != ""

    # It is trained on from where it stands: the loss of the first step is the one it has there.
    rows: list[dict[str, object]] = [{"instruction": text, "output": text} for text in QUESTIONS]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    command = ["run", "lora_finetune", *weights, source, "dataset=alpaca", f"output_dir={tmp_path / 'out'}"]
    command += ["optimizer=SGD", "lr=0.5", f"batch_size={len(QUESTIONS)}", "epochs=2", "dtype=fp32"]
    assert main(command) == 0
    first, last = (json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    total, num_targets = 0.0, 0
    for item in alpaca_dataset(tokenizer, source=str(tmp_path / "rows.jsonl")):
        labels = torch.tensor(item["labels"])[1:]
        with torch.no_grad():
            logits = theirs(torch.tensor([item["tokens"]])).logits[0, :-1]
        total += float(F.cross_entropy(logits, labels, reduction="sum"))
        num_targets += int((labels != -100).sum())
    assert first["loss"] == pytest.approx(total / num_targets, rel=1e-5)
    assert last["loss"] < first["loss"]

    # What is saved, peft reads beside the untouched base.
    step = tmp_path / "out" / "latest"
    back = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(published), step / "adapter").eval()
    tokens = torch.randint(3, 600, (2, 23))
    with torch.no_grad():
        logits = back(tokens).logits
        torch.testing.assert_close(tune.models.from_checkpoint(step)(tokens), logits, rtol=1e-4, atol=1e-4)
        assert (logits - theirs(tokens).logits).abs().max() > 1e-3
    before, after = (
        load_file(d / "adapter_model.safetensors") for d in (tmp_path / "theirs", step / "adapter")
    )
    assert before.keys() == after.keys()
    moved = {name.rpartition("lora_")[2] for name in after if not torch.equal(before[name], after[name])}
    assert moved == {"A.weight", "B.weight"} | ({"magnitude_vector"} if settings.get("use_dora") else set())


def test_an_adapter_that_is_named_by_nothing_is_refused(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not taken for the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    command = ["run", "generate", f"model_checkpoint={published}", "prompt=x", "adapter_checkpoint="]
    assert main(command) == 2
    assert "checkpointer.adapter_checkpoint is empty" in capsys.readouterr().err
