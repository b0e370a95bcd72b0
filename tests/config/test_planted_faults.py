"""A good configuration with faults planted in it: each is reported once, with its code, path and line."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tune.config import resolve
from tune.config.params import ParamInfo, fields_of
from tune.recipes.params.full_finetune import FullFinetuneParams

GOOD = """\
output_dir: out
model: llama2_7b
checkpointer:
  _component_: tune.training.FullModelHFCheckpointer
  checkpoint_dir: ck
tokenizer:
  _component_: tune.models.llama2.llama2_tokenizer
  path: ck/tokenizer.model
dataset:
  _component_: tune.datasets.alpaca_dataset
  packed: False
optimizer:
  _component_: torch.optim.AdamW
  lr: 2e-5
lr_scheduler:
  _component_: tune.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 100
metric_logger:
  _component_: tune.training.metric_logging.DiskLogger
"""
# What one field cannot be, by what it is.
WRONG = {
    "bool": ("yes", "1", '"true"', "[true]"),
    "int": ("two", "1.5", "010", "1_000", '"3"', "true", "[1]", "{a: 1}"),
    "float": ("fast", "1,5", ".inf", "true", "[1]", "'1.0'"),
    "str": ("[a, b]", "{a: b}"),
    "list": ("one", "{a: b}"),
    "literal": ("wrong", "[a]"),
    "union": ("wrong", "[a]", "1.5", "{a: b}"),
}
# Line in a section, what to put below the section's name, and the code it has to lead to.
SECTIONS = {
    "checkpointer": (("checkpoint_files: 3", "wrong-type"), ("zzz: 1", "unknown-argument")),
    "tokenizer": (("max_seq_len: long", "wrong-type"), ("zzz: 1", "unknown-argument")),
    "dataset": (("tokenizer: x", "colliding-argument"), ("train_on_input: 2", "wrong-type")),
    "optimizer": (
        ("betas: 0.9", "wrong-type"),
        ("params: []", "colliding-argument"),
        ("fussed: 1", "unknown-argument"),
    ),
    "lr_scheduler": (("optimizer: x", "colliding-argument"), ("num_cycles: x", "wrong-type")),
    "metric_logger": (("log_dir: [a]", "wrong-type"), ("zzz: 1", "unknown-argument")),
}
PLAIN = [info for info in fields_of(FullFinetuneParams).values() if info.slot is None and not info.short_for]

Fault = tuple[str, str, str]  # the line, the code, the path


def wrong_type(info: ParamInfo, draw: random.Random) -> Fault | None:
    code = "not-a-choice" if info.spec.kind == "literal" else "wrong-type"
    return f"{info.name}: {draw.choice(WRONG[info.spec.kind])}", code, info.name


def null(info: ParamInfo, draw: random.Random) -> Fault | None:
    if info.spec.nullable:
        return None
    return f"{info.name}: {draw.choice(['null', '~', ''])}", "null-not-allowed", info.name


def out_of_range(info: ParamInfo, draw: random.Random) -> Fault | None:
    lowest = info.above if info.above is not None else info.minimum
    return None if lowest is None else (f"{info.name}: {lowest - 1:g}", "out-of-range", info.name)


def misspelt(info: ParamInfo, draw: random.Random) -> Fault | None:
    at = draw.randrange(1, len(info.name) - 1)
    name = info.name[:at] + info.name[at + 1 :]
    return None if len(name) < 5 else (f"{name}: null", "unknown-key", name)


def dangling(info: ParamInfo, draw: random.Random) -> Fault | None:
    return f"{info.name}: x${{nowhere}}", "dangling-reference", info.name


def tagged(info: ParamInfo, draw: random.Random) -> Fault | None:
    return f"{info.name}: !!python/object:os.system x", "yaml-tag", info.name


KINDS: tuple[Callable[[ParamInfo, random.Random], Fault | None], ...] = (
    wrong_type,
    null,
    out_of_range,
    misspelt,
    dangling,
    tagged,
)


def judge(lines: list[str], wanted: list[tuple[str, str, str]], ending: str = "\n") -> None:
    text = ending.join(lines) + ending
    found = {
        (item.code, item.path, item.source.line) for item in resolve(FullFinetuneParams, text=text).errors
    }
    expected = {(code, path, lines.index(line) + 1) for line, code, path in wanted}
    assert found == expected, text


def plant(lines: list[str], name: str, fault: Fault) -> None:
    lines[:] = [line for line in lines if not line.startswith(f"{name}:")]
    lines.append(fault[0])


@pytest.mark.parametrize("info", PLAIN, ids=lambda info: info.name)
def test_every_kind_of_fault_in_every_field(info: ParamInfo) -> None:
    draw = random.Random(info.name)
    for kind in KINDS:
        fault = kind(info, draw)
        if fault is not None and not (kind is misspelt and info.name == "output_dir"):
            lines = GOOD.splitlines()
            plant(lines, info.name if kind is not misspelt else "-", fault)
            judge(lines, [fault])


@pytest.mark.parametrize("seed", range(40))
def test_a_dozen_faults_at_once(seed: int) -> None:
    draw = random.Random(seed)
    lines = GOOD.splitlines()
    wanted: list[Fault] = []
    for info in draw.sample([info for info in PLAIN if info.name != "output_dir"], 8):
        fault = draw.choice(KINDS)(info, draw)
        if fault is not None and fault[0] not in lines:
            plant(lines, "-", fault)
            wanted.append(fault)
    for section, faults in draw.sample(sorted(SECTIONS.items()), 4):
        text, code = draw.choice(faults)
        line = f"  {text}" + " " * len(wanted)  # no two lines alike
        lines.insert(lines.index(f"{section}:") + 1, line)
        wanted.append((line, code, f"{section}.{text.partition(':')[0]}"))
    judge(lines, wanted, draw.choice(["\n", "\r\n"]))
