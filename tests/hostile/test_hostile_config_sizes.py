"""However large a configuration is, and whatever it repeats: judged in seconds, with a report one can read."""

from __future__ import annotations

import json
import time

import pytest

from tune.config import resolve
from tune.recipes.params.full_finetune import FullFinetuneParams

BASE = "output_dir: out\ndataset: {_component_: alpaca}\nlr: 1e-3\n"
SIZE = 150_000


def _fill(piece: str, between: str = "") -> str:
    return between.join([piece] * (SIZE // len(piece + between)))


def _lines(line: str) -> str:
    return "".join(line.format(index) + "\n" for index in range(SIZE // (len(line) + 3)))


TEXTS = {
    "references in one text": "seed: " + _fill("${lr}"),
    "a long reference": "seed: ${" + _fill("a", ".") + "}",
    "references to nothing": _lines("k{0}: ${{z{0}}}"),
    "a chain of references": _lines("k{0}: ${{k{0}1}}"),
    "a long key": "a" * SIZE + ": 1",
    "a deep key": _fill("a", ".") + ": 1",
    "many keys": _lines("k{}: 1"),
    "many near keys": _lines("optimizer_{}: 1"),
    "one key many times": _lines("k: {}"),
    "many arguments": "optimizer:\n  _component_: AdamW\n" + _lines("  betas{}: 1"),
    "arguments on one line": "optimizer: {_component_: AdamW, " + _lines("x{}: 1,").replace("\n", " ") + "}",
    "a wrong list": "custom_sharded_layers:\n" + _lines("- [{}]"),
    "text for a list": "sample_prompts: " + _fill("a", ","),
    "anchors": _lines("k{0}: &a{0} 1"),
    "aliases": "x: &a [1, 2]\n" + _lines("k{}: *a"),
    "a long comment": "# " + "c" * SIZE,
    "untyped words": "dataset_val: {_component_: chat, source: x, chat_template_kwargs: {"
    + _lines("c{}: no,").replace("\n", " ")
    + "}}",
    "control characters": 'k: "' + _fill("\\x1b") + '"',
    "a long number": "seed: " + "1" * SIZE,
    "tags": _lines("k{}: !t 1"),
}
ARGUMENTS = {
    "references in one value": ["seed=" + "${lr}" * 20_000],
    "many": [f"k{index}=1" for index in range(20_000)],
    "one many times": ["lr=1"] * 900,
    "a long key": ["a" * SIZE + "=1"],
    "a long bracket": ["sample_prompts=" + "[" * SIZE],
    "a long quote": ["sample_prompts='" + "'" * SIZE + "x"],
    "a long option": ["--" + "a" * SIZE + "=1"],
    "without a sign": ["a" * SIZE],
    "many removals": [f"~k{index}" for index in range(900)],
}


def _judge(text: str, overrides: list[str]) -> None:
    start = time.process_time()
    resolution = resolve(FullFinetuneParams, text=BASE + text, overrides=overrides)
    shown, written = resolution.report(), json.dumps(resolution.to_json())
    assert time.process_time() - start < 20  # quadratic ones took minutes
    found = resolution.errors + resolution.warnings
    assert found
    for item in found:
        assert len(item.message) <= 1500
        assert max(len(text or "") for text in (item.path, item.suggestion, item.shadows)) <= 300
    assert max(len(shown), len(written)) < 200_000


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_a_large_file_is_judged_in_seconds(text: str) -> None:
    _judge(text, [])


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_a_large_command_line_is_judged_in_seconds(arguments: list[str]) -> None:
    _judge("", arguments)


def test_what_is_cut_says_how_much_more_there_is() -> None:
    many = resolve(FullFinetuneParams, text=BASE + "".join(f"k{index}: 1\n" for index in range(1000)))
    assert len(many.errors) == 201
    assert many.errors[-1].code == "more-errors"
    assert many.errors[-1].message.startswith("and 80")  # 1000, and the model that is missing
    repeated = resolve(FullFinetuneParams, text=BASE, overrides=["lr=1"] * 900)
    assert repeated.warnings[-1].message == "and 699 more warnings from here on"
