"""The bundled tiny model: small, loadable by others, honest about what is held out, and able to learn."""

from __future__ import annotations

import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch

from tune.cli.catalogue import find_config, find_recipe
from tune.config import resolve
from tune.datasets import instruct_dataset
from tune.models import from_checkpoint
from tune.recipes.params.preference_finetune import PreferenceFinetuneParams
from tune.tokenizers import from_checkpoint as tokenizer_from_checkpoint

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "recipes" / "bundled"
MODEL = BUNDLED / "tiny_llama"
MAX_BUNDLE_BYTES = 8_000_000

sys.path.insert(0, str(ROOT / "scripts" / "tiny"))
sys.path.insert(0, str(ROOT / "scripts"))
import build  # noqa: E402
import demo  # noqa: E402
import demo_preference  # noqa: E402
import parrot  # noqa: E402


def read_rows(name: str) -> list[dict[str, str]]:
    lines = (BUNDLED / "orders" / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def neighbours(text: str) -> set[tuple[str, str]]:
    """Return the pairs of words that stand side by side, read from the text and not from what generated it."""
    words = re.findall(r"[a-z]+", text)
    return set(pairwise(words))


def test_the_bundle_is_small() -> None:
    sizes = [file.stat().st_size for file in BUNDLED.rglob("*") if file.is_file()]
    assert 0 < sum(sizes) < MAX_BUNDLE_BYTES


def test_held_out_shares_no_prompt_or_neighbour_with_training() -> None:
    train, held_out = read_rows("train.jsonl"), read_rows("held_out.jsonl")
    assert len(train) == build.NUM_TRAIN
    assert len(held_out) == build.NUM_HELD_OUT
    trained = set().union(*(neighbours(row["input"]) for row in train))
    asked = [neighbours(row["input"]) for row in held_out]
    assert all(len(pairs) >= 2 for pairs in asked)  # three words at least: the reader works
    assert len(trained) > 5_000
    assert not trained & set().union(*asked)


def test_pre_training_says_no_held_out_neighbours() -> None:
    held_out = set().union(*(neighbours(row["input"]) for row in read_rows("held_out.jsonl")))
    rng = Random(4)
    for _ in range(2_000):
        text = parrot.draw_text(rng)
        said = re.fullmatch(r"The parrot said:[ \n](.+)\. Squawk!", text, re.DOTALL)
        assert said
        rounds = re.split(r"\. |\n", said[1])
        assert len(rounds) >= 3
        assert len(set(rounds)) == 1
        assert (
            not neighbours(said[1]) & held_out
        )  # the last word of a round and the first of the next among them


def test_pre_training_has_the_words_of_all_orders_but_no_order() -> None:
    orders = {row["instruction"] for row in read_rows("train.jsonl")}
    words = {word for order in orders for word in re.findall(r"\w+", order)}
    words |= {row["output"] for row in read_rows("train.jsonl") if row["kind"] == "count"}
    rng = Random(4)
    texts = [parrot.draw_text(rng) for _ in range(2_000)]
    said = " ".join(texts)
    assert len(orders) == 5
    assert words <= set(re.findall(r"\w+", said))
    assert not any(order.rstrip(".?") in " ".join(text.split()) for order in orders for text in texts)


def test_words_of_orders_differ_to_the_model_before_it_is_tuned() -> None:
    # Embeddings of words it never saw had a cosine of 1.00: adapters beside frozen weights could not tell them apart.
    model, tokenizer = from_checkpoint(MODEL), tokenizer_from_checkpoint(MODEL)
    words = ("first", "last", "again", "backwards", "How", *parrot.NUMBERS)
    ids = [tokenizer.encode(word, add_bos=False, add_eos=False) for word in words]
    assert all(len(pieces) == 1 for pieces in ids)
    rows = torch.nn.functional.normalize(model.tok_embeddings.weight[torch.tensor(ids).squeeze(1)].float())
    cosines = rows @ rows.T - torch.eye(len(words))
    assert cosines.max() < 0.9


def test_every_answer_is_what_the_order_asks_for() -> None:
    for row in read_rows("held_out.jsonl"):
        words = row["input"].split()
        expected = {
            "again": words,
            "backwards": words[::-1],
            "first": words[:1],
            "last": words[-1:],
            "count": [("three", "four", "five", "six")[len(words) - 3]],
        }[row["kind"]]
        assert row["output"].split() == expected, row


def test_the_data_files_are_what_the_script_writes(tmp_path: Path) -> None:
    build.write_data(tmp_path)
    for name in ("train.jsonl", "held_out.jsonl"):
        assert (tmp_path / name).read_bytes() == (BUNDLED / "orders" / name).read_bytes()


def test_manners_are_what_the_script_writes_and_held_out(tmp_path: Path) -> None:
    build.write_pairs(tmp_path)
    rows = {}
    for name in ("train.jsonl", "held_out.jsonl"):
        content = (BUNDLED / "manners" / name).read_bytes()
        assert (tmp_path / name).read_bytes() == content
        rows[name] = [json.loads(line) for line in content.splitlines()]
    trained, asked = (
        set().union(*(neighbours(row["prompt"].removeprefix("The parrot said: ")) for row in rows[name]))
        for name in rows
    )
    assert len(trained) > 3_000
    assert not trained & asked
    for row in rows["train.jsonl"]:
        assert row["rejected"].startswith(row["chosen"].removesuffix(" Squawk!"))
        assert row["rejected"].count(row["chosen"].removesuffix(". Squawk!")) >= 2


def test_the_tokenizer_reads_words_and_any_text_without_loss() -> None:
    tokenizer = tokenizer_from_checkpoint(MODEL)
    for word in parrot.WORDS:
        assert len(tokenizer.encode(word, add_bos=False, add_eos=False)) == 1, word
    for text in (
        "48/2 = <<48/2=24>>24 clips.\n#### 72",
        "Grüße, 世界 🦊",
        "  two  spaces\tand a tab\n\n",
        "</s>",
    ):
        ids = tokenizer.encode(text, add_bos=False, add_eos=False)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_id not in ids


@pytest.mark.filterwarnings("ignore")
def test_transformers_computes_the_same_from_the_same_folder() -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    reference_tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    tokenizer = tokenizer_from_checkpoint(MODEL)
    model = from_checkpoint(MODEL).eval()
    text = f"Question: Say it again.\n\n{read_rows('held_out.jsonl')[0]['input']}\nAnswer:"
    ids = tokenizer.encode(text, add_eos=False)
    assert reference_tokenizer(text)["input_ids"] == ids
    with torch.no_grad():
        logits = model(torch.tensor([ids]))
        torch.testing.assert_close(logits, reference(torch.tensor([ids])).logits, atol=2e-4, rtol=1e-4)


def test_before_tuning_it_does_not_answer() -> None:
    from tune.generation import generate_batch

    model, tokenizer = from_checkpoint(MODEL), tokenizer_from_checkpoint(MODEL)
    data = instruct_dataset(
        tokenizer, source=str(BUNDLED / "orders" / "held_out.jsonl"), prompt_template="question_answer"
    )
    rows = read_rows("held_out.jsonl")[:48]
    prompts = [
        [token for token, label in zip(item["tokens"], item["labels"], strict=True) if label < 0]
        for item in (data[i] for i in range(len(rows)))
    ]
    answers = generate_batch(model, prompts, max_new_tokens=16, stop_ids=tokenizer.stop_ids)
    right = [tokenizer.decode(ids).strip() == row["output"] for ids, row in zip(answers, rows, strict=True)]
    assert sum(right) <= 2


@pytest.mark.parametrize(
    ("recipe", "num_steps", "extra"),
    [
        ("full_finetune", 8, []),
        ("full_finetune", 8, ["batch_size=16", "gradient_accumulation_steps=2"]),
        ("lora_finetune", 30, []),  # what adapters add begins at zero
    ],
)
def test_a_few_steps_of_the_shipped_config_lower_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, num_steps: int, extra: list[str]
) -> None:
    from tune.cli.main import main

    monkeypatch.chdir(tmp_path)  # `bundled:` does not depend on the working directory
    overrides = ["epochs=1", f"max_steps_per_epoch={num_steps}", "log_every_n_steps=1", "output_dir=out"]
    overrides += [f"dataset.limit={32 * (num_steps + 2)}", *extra]
    assert main(["run", recipe, "--config", f"tiny/{recipe}", *overrides]) == 0
    rows = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == num_steps
    assert sum(losses[-2:]) < 0.8 * sum(losses[:2])
    assert Path("out/latest/model/model.safetensors").is_file()


def test_a_few_steps_of_manners_widen_the_margin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tune.cli.main import main

    monkeypatch.chdir(tmp_path)
    overrides = ["max_steps=8", "log_every_n_steps=1", "dataset.limit=128", "output_dir=out"]
    assert main(["run", "dpo", "--config", "tiny/dpo", *overrides]) == 0
    rows = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["margin"] == 0.0
    assert rows[-1]["margin"] > 0.3
    assert rows[-1]["accuracy"] > 0.8
    assert Path(resolve(PreferenceFinetuneParams, config=find_config("tiny/dpo")).params.output_dir) == (
        demo_preference.OUTPUT
    )


@pytest.mark.parametrize("lesson", [demo.FULL, demo.LORA], ids=["full", "lora"])
def test_the_demo_looks_where_its_config_writes(lesson: demo.Lesson) -> None:
    recipe, config = find_recipe(lesson.recipe), find_config(lesson.config)
    assert recipe
    assert config
    values = resolve(recipe.load_params(), config=config).params
    assert Path(values.output_dir) == lesson.output


def test_the_demo_runs_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    few = ("max_steps=2", "dataset.limit=128")
    monkeypatch.setattr(demo, "FULL", demo.FULL._replace(goal=0.0, overrides=few))
    assert demo.main([]) == 0
    out = capfd.readouterr().out
    assert "300 examples of bundled:orders/held_out.jsonl" in out
    assert "What it still gets wrong" in out
    assert "Done. Training took" in out
