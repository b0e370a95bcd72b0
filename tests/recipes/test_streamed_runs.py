"""Runs on streamed data: they begin at once, resume exactly, and say what cannot be known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.components import with_arguments
from tests.recipes.test_full_finetune import assert_equal, metrics_of, train, weights_of
from tune.config import Component
from tune.errors import ConfigError, DataError
from tune.recipes import lora_finetune
from tune.recipes.params.lora_finetune import LoraFinetuneParams

STREAMED = {"streaming": True, "shuffle_buffer": 7}


@pytest.fixture
def streamed(make_params) -> Any:
    def make(*, dataset: dict[str, Any] | None = None, **changes: Any) -> Any:
        data = with_arguments(make_params().dataset, **{"max_seq_len": 64, **STREAMED, **(dataset or {})})
        return make_params(**{"dataset": data, "max_steps": 9, "save_every_n_steps": 3, **changes})

    return make


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_a_resumed_stream_goes_on_where_it_was(
    streamed, tmp_path: Path, packed: bool, num_workers: int
) -> None:
    make = {"dataset": {"packed": packed}, "num_workers": num_workers}
    train(streamed(**make, output_dir=str(tmp_path / "whole")))
    params = streamed(**make, output_dir=str(tmp_path / "parts"))
    for max_steps in (4, 7, 9):  # 6 rows a step, 23 a pass
        train(replace(params, max_steps=max_steps, resume_from_checkpoint=max_steps > 4))
    assert_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))
    losses = [[row["loss"] for row in metrics_of(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 9


def test_unshuffled_it_learns_what_a_map_of_the_rows_does(streamed, make_params, tmp_path: Path) -> None:
    train(streamed(shuffle=False, max_steps=3, output_dir=str(tmp_path / "streamed")))
    plain = {"shuffle": False, "max_steps": 3, "output_dir": str(tmp_path / "plain")}
    train(make_params(**plain, dataset=with_arguments(make_params().dataset, max_seq_len=64)))
    assert_equal(weights_of(tmp_path / "streamed"), weights_of(tmp_path / "plain"))


def test_adapters_learn_from_a_stream(make_params, streamed, tmp_path: Path) -> None:
    base = train(make_params(max_steps=1, output_dir=str(tmp_path / "base")))
    model_dir = str(tmp_path / "base" / "latest" / "model")
    values = {
        "checkpointer": {"_component_": "tune.training.FullModelCheckpointer", "checkpoint_dir": model_dir},
        "dataset": streamed().dataset,
        "optimizer": base.params.optimizer,
        "lora_rank": 2,
        "max_steps": 5,
        "batch_size": 3,
        "device": "cpu",
        "dtype": "fp32",
        "seed": 1,
    }
    whole, parts = (
        LoraFinetuneParams(**values, output_dir=str(tmp_path / name)) for name in ("whole", "parts")
    )
    assert lora_finetune.recipe_main(whole) == 0
    for max_steps in (2, 5):
        again = replace(parts, max_steps=max_steps, resume_from_checkpoint=max_steps == 5)
        assert lora_finetune.recipe_main(again) == 0
    left, right = (
        load_file(tmp_path / name / "latest" / "adapter" / "adapter_model.safetensors")
        for name in ("whole", "parts")
    )
    assert_equal(left, right)


def test_streams_are_mixed_by_weight(streamed, tmp_path: Path, capfd) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"river {number} green"}) + "\n" for number in range(500)))
    packed = {**STREAMED, "max_seq_len": 32, "packed": True}
    asked = with_arguments(streamed().dataset, **packed, weight=3)
    plain = Component("tune.datasets.text_completion_dataset", {**packed, "source": str(texts), "weight": 1})
    recipe = train(replace(streamed(max_steps=4, log_level="INFO"), dataset=(asked, plain)))
    assert recipe.loader.sampler.place.counts == (18, 6)
    assert "the examples are mixed" in capfd.readouterr().err
    with pytest.raises(ConfigError, match=r"dataset\.1\.streaming must be streamed"):
        replace(recipe.params, dataset=(asked, with_arguments(plain, streaming=False)))


def test_what_is_not_known_is_said(streamed, tmp_path: Path, capfd) -> None:
    many = tmp_path / "many.jsonl"
    many.write_text(
        "".join(json.dumps({"question": f"river {n}", "answer": "seven"}) + "\n" for n in range(3000))
    )
    recipe = train(streamed(dataset={"source": str(many)}, max_steps=2, log_level="INFO"))
    assert "only the first 200 rows were looked at" in capfd.readouterr().err
    assert recipe.dataset.report().longest_kept == 64  # what memory is planned for
    assert (tmp_path / "out" / "preview.txt").read_text().count("--- example") == 5


def test_other_data_is_not_gone_on_with(streamed, make_params, tmp_path: Path, data_file: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_text(data_file.read_text())
    params = streamed(dataset={"source": str(copy)}, max_steps=2)
    train(params)
    again = replace(params, max_steps=4, resume_from_checkpoint=True)
    with copy.open("a") as file:
        file.write('{"question": "river", "answer": "green"}\n')
    with pytest.raises(DataError, match=r"sources was .* bytes"):
        train(replace(again, allow_changes_on_resume=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": None}, "max_steps is required: streamed data has no known end"),
        ({"val_split": 0.1}, "val_split needs all rows"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(streamed, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        streamed(**changes)


def test_a_length_is_needed(streamed) -> None:
    with pytest.raises(ConfigError, match="how long a sequence may be"):
        train(streamed(dataset={"max_seq_len": None}))
