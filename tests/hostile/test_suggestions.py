"""Suggestions a machine may apply: done as they say, the problem is gone, and no key is unknown or there twice."""

from __future__ import annotations

import random

import pytest

from tune.config import Diagnostic, fields_of, resolve
from tune.config.foreign_names import foreign_names
from tune.recipes.params.full_finetune import FullFinetuneParams
from tune.recipes.params.generate import GenerateParams
from tune.recipes.params.lora_finetune import LoraFinetuneParams

TRAINING = """\
output_dir: out
model_checkpoint: ck
dataset:
  _component_: instruct
  source: a.json
lr_scheduler:
  _component_: cosine
  num_warmup_steps: 3
optimizer:
  _component_: AdamW
  lr: 1e-4
"""
KINDS = {
    "full": (FullFinetuneParams, TRAINING),
    "lora": (LoraFinetuneParams, TRAINING),
    "generate": (GenerateParams, "model_checkpoint: ck\nprompt: hello\n"),
}
VALUES = [
    "1",
    "3",
    "0.1",
    "true",
    "false",
    "cosine",
    "adamw_torch",
    "bfloat16",
    "a/b",
    "[q_proj]",
    "1_0",
    "null",
]
SECTIONS = {"dataset:": "  _component_: instruct", "optimizer:": "  _component_: AdamW"}
NEVER = ("duplicate-key", "unknown-key", "unknown-argument", "conflict")


def misspell(name: str, rng: random.Random) -> str:
    place = rng.randrange(len(name))
    return rng.choice([name[:place] + name[place + 1 :], name.upper(), name.replace("_", "-"), name + "s"])


def make_wrong(kind: str, rng: random.Random) -> str:
    """Return a configuration with one to three keys that there are not, at the top or in a component."""
    params, text = KINDS[kind]
    foreign = [*foreign_names().renamed, *foreign_names().absent]
    lines = text.splitlines()
    for _ in range(rng.randint(1, 3)):
        name = (
            rng.choice(foreign) if rng.random() < 0.7 else misspell(rng.choice(list(fields_of(params))), rng)
        )
        entry = f"{name}: {rng.choice(VALUES)}"
        head = rng.choice([section for section in SECTIONS if section in lines] or [None])
        if head is not None and rng.random() < 0.3:
            lines.insert(lines.index(SECTIONS[head]) + 1, f"  {entry}")
        else:
            lines.append(entry)
    if rng.random() < 0.5:
        lines.append(
            rng.choice(["batch_size: 4", "seed: 1", "dtype: fp32", "epochs: 2", "max_new_tokens: 4"])
        )
    return "\n".join(lines) + "\n"


def apply(text: str, item: Diagnostic) -> tuple[str, list[str]]:
    """Return the text, and what goes onto the command line, after doing as a suggestion says."""
    assert item.suggestion is not None
    assert item.source.line is not None
    assert item.source.col is not None
    lines = text.splitlines()
    line, start = lines[item.source.line - 1], item.source.col - 1
    if item.code not in ("unknown-key", "unknown-argument"):  # a value for a value
        new = line[:start] + item.suggestion + line[start + item.source.length :]
    elif "." in item.suggestion.partition(": ")[0] and ": " in item.suggestion:
        # An entry of the section that it names.
        del lines[item.source.line - 1]
        return "\n".join(lines) + "\n", [item.suggestion.replace(": ", "=", 1)]
    elif ": " in item.suggestion:  # an entry for an entry
        new = line[:start] + item.suggestion
    else:  # a key for a key
        key, _, value = line.strip().partition(": ")
        if "." in item.suggestion:  # in the section that it names
            del lines[item.source.line - 1]
            return "\n".join(lines) + "\n", [f"{item.suggestion}={value}"]
        new = line.replace(key, item.suggestion, 1)
    lines[item.source.line - 1] = new
    return "\n".join(lines) + "\n", []


def kinds_of(errors: list[Diagnostic]) -> list[tuple[str, str]]:
    return sorted((item.code, item.path) for item in errors if item.code in NEVER)


@pytest.mark.parametrize("kind", KINDS)
def test_an_applied_suggestion_mends_and_breaks_nothing(kind: str) -> None:
    rng = random.Random(kind)
    num_applied = 0
    for _ in range(120):
        text = make_wrong(kind, rng)
        errors = resolve(KINDS[kind][0], text=text).errors
        for item in errors:
            if item.suggestion is None:
                continue
            mended, overrides = apply(text, item)
            after = resolve(KINDS[kind][0], text=mended, overrides=overrides).errors
            expected = kinds_of([other for other in errors if other is not item])
            assert set(kinds_of(after)) <= set(expected), (text, str(item), mended)
            assert (item.code, item.path, item.message) not in {(e.code, e.path, e.message) for e in after}
            num_applied += 1
    assert num_applied > 20  # the test has looked at something


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_all_suggestions_together_name_no_key_twice(kind: str) -> None:
    rng = random.Random(7)
    for _ in range(60):
        text = make_wrong(kind, rng)
        errors = resolve(KINDS[kind][0], text=text).errors
        named = [e.suggestion.partition(":")[0] for e in errors if e.suggestion and e.code == "unknown-key"]
        assert len(named) == len(set(named)), text


@pytest.mark.parametrize("name", ["learning_rate", "max_lr", "LR", "optimizer.lr"])
def test_a_rate_beside_a_rate_is_not_suggested_twice(name: str) -> None:
    text = f"output_dir: out\nmodel_checkpoint: ck\ndataset: alpaca\nlr: 1e-4\n{name}: 2e-5\n"
    (error,) = resolve(FullFinetuneParams, text=text).errors
    assert (error.code, error.suggestion) == ("unknown-key", None)
    assert "is set already, in line 4: keep one of the two" in error.message
