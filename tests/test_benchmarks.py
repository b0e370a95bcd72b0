"""The benchmarks run, compare equal work, and say what they did."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import checkpoints, data, data_cache, full_finetune, generate, lora, nf4, setting
from tests import warm_python


@pytest.fixture(autouse=True)
def contestants_are_forked() -> Iterator[None]:
    with warm_python.all_starts():
        yield


def test_generate_compares_the_same_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "figures.json"
    words = [
        "--size",
        "tiny",
        "--rounds",
        "2",
        "--prompt-tokens",
        "9",
        "--new-tokens",
        "7",
        "--batch-size",
        "3",
    ]
    assert generate.main([*words, "--output", str(output)]) == 0
    figures = json.loads(output.read_text())
    assert figures == json.loads(capsys.readouterr().out)
    assert set(figures["results"]) == {"tune", "transformers", "tune, no cache"}
    for result in figures["results"].values():
        assert result["same_tokens_as_tune"] == 1.0
        assert result["first_token_s"] > 0
    assert figures["limit_tokens_per_s"] > 0


def test_full_finetune_compares_the_same_work(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--size", "tiny", "--rounds", "2", "--seq-len", "9", "--batch-size", "3", "--turns", "1"]
    assert full_finetune.main(words) == 0
    figures = json.loads(capsys.readouterr().out)
    ours, theirs = figures["results"]["tune"], figures["results"]["transformers"]
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-4)
    assert len(set(ours["losses"])) == 3  # a step was taken each time
    assert ours["tokens_per_s"] > 0
    assert min(ours["peak_memory_gib"], theirs["peak_memory_gib"]) > 0


def test_lora_compares_the_same_work(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--size", "tiny", "--rounds", "2", "--seq-len", "9", "--batch-size", "3"]
    assert lora.main([*words, "--modules", "all", "--base", "dense", "nf4"]) == 0
    figures, quantized = json.loads(capsys.readouterr().out)["runs"]
    ours, theirs = figures["results"]["tune"], figures["results"]["peft"]
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-4)
    assert len(set(ours["losses"])) == 3  # a step was taken each time
    width, hidden, rank, num_layers = 48, 112, 16, 2
    in_block = 4 * (width + width) * rank + 3 * (width + hidden) * rank
    assert figures["work"]["adapter_parameters"] == num_layers * in_block
    for result in (ours, theirs):
        assert result["tokens_per_s"] > 0
        # At least what enters the matrices with adapters: the attention, its last, the feed-forward, its last.
        entering = 3 * 9 * 4 * (3 * width + hidden) / 2**20
        assert entering < result["saved_activations_mib_per_block"] < result["saved_activations_mib"]
    assert ours["saved_activations_mib_per_block"] <= 1.02 * theirs["saved_activations_mib_per_block"]
    # No row of the tiny model is whole blocks of 4-bit numbers, so that tune is alone, bitsandbytes or not.
    assert quantized["losses_apart"] is None
    assert set(quantized["results"]) == {"tune"}
    assert quantized["results"]["tune"]["losses"] == pytest.approx(ours["losses"], abs=0.05)


def test_no_figures_where_the_work_differs() -> None:
    with pytest.raises(SystemExit, match="did not do the same work"):
        setting.check_same_work({"a": [1.0, 2.0], "b": [1.0, 2.5]}, 1e-4)
    with pytest.raises(SystemExit, match="no numbers"):
        setting.check_same_work({"a": [math.nan], "b": [math.nan]}, 1e-4)


def test_checkpoints_are_watched_from_outside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--gigabytes", "0.003", "--rounds", "1", "--folder", str(tmp_path)]
    assert checkpoints.main([*words, "--only", "Meta .pth as bf16"]) == 0
    figures = json.loads(capsys.readouterr().out)
    (result,) = figures["results"].values()
    assert figures["work"]["weights_bytes"] > 2e6
    assert figures["same_weights"]
    assert result["seconds"] > 0
    assert result["peak_rss_copies"] > 0.5  # somebody looked while it worked
    assert not list(tmp_path.iterdir())


def test_checkpoints_ask_for_room_first(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"GB free, and 8000000\.0 GB are needed"):
        checkpoints.main(["--gigabytes", "1e6", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit, match="no contestant has 'gguf'"):
        checkpoints.main(["--only", "gguf"])


def test_nf4_compares_the_same_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    assert nf4.main(["--rows", "96", "--columns", "192", "--rounds", "2", "--tokens", "7"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["bytes_per_parameter"] <= 0.57
    assert 0.05 < figures["relative_error"] < 0.1
    assert {"tune", "plain torch", "copy"} <= set(figures["results"])
    assert all(figure > 0 for result in figures["results"].values() for figure in result.values())


def test_data_compares_the_same_ids(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "NUM_WORDS", 40)
    monkeypatch.setattr(data, "VOCAB_SIZE", 300)
    assert data.main(["--turns", "4", "--words", "3", "--rows", "2", "--rounds", "1"]) == 0
    chatml, thinking = json.loads(capsys.readouterr().out)["runs"]
    assert (chatml["examples_per_row"], thinking["examples_per_row"]) == (1, 2)
    assert set(chatml["results"]) == {"tune, with masks", "apply_chat_template", "datasets.map"}
    assert all(result["ms_per_row"] > 0 for result in chatml["results"].values())


def test_data_cache_finds_the_same_examples_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_cache.write_rows(tmp_path / "rows.jsonl", 300)
    words = ["--rows", "300", "--num-proc", "1", "--pack", "64", "--start", str(tmp_path)]
    assert [data_cache.main(words) for _ in range(2)] == [0, 0]
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["examples"] == second["examples"]
    assert first["examples"][0] == 300
    assert len(list((tmp_path / "cache").glob("*/tokens"))) == 1
