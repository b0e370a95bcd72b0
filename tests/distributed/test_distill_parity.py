"""Two processes distil as one: with shards of both models, with a teacher of their own, and writing themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_parity import SGD, assert_same_weights, bases, data_file, rows_of  # noqa: F401  # fixtures

from tests.distributed.launching import launch
from tune.recipes.distill import recipe_main
from tune.recipes.params.distill import DistillParams

SHARDED = {"data_parallel_shard_dim": 2}
# What they learn, and how two processes are to hold the two models: whole where it is left open, as they are tiny.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sharded": ({"gradient_accumulation_steps": 2, "clip_grad_norm": 0.5}, SHARDED),
    "four_bits": ({"quantize_teacher": True}, SHARDED),
    "lora": ({"lora_rank": 3, "kd_loss": "jensen_shannon"}, {}),
    "writing_together": ({"on_policy": True, "max_new_tokens": 6}, SHARDED),
    "writing_alone": ({"on_policy": True, "max_new_tokens": 6, "lora_rank": 3}, {}),
}
LOSSES = {"loss", "kd_loss", "ce_loss", "val_loss", "val_kd_loss", "val_ce_loss"}


def test_two_processes_distil_as_one(
    bases: dict[str, Path],  # noqa: F811
    data_file: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    dataset = {"_component_": "tune.datasets.instruct_dataset", "source": str(data_file)}
    listed = []
    for name, (changes, split) in CASES.items():
        values: dict[str, Any] = {
            "dataset": dataset,
            "dataset_val": {**dataset, "split": "train[:5]"},
            "model_checkpoint": str(bases["tied"]),
            "teacher_checkpoint": str(bases["untied"]),
            "max_steps": 4,
            "optimizer": SGD,
            "dtype": "fp32",
            "device": "cpu",
            "seed": 3,
            "log_level": "WARNING",
            **changes,
        }
        if "lora_rank" in changes:
            values["save_adapter_weights_only"] = True
        one = {**values, "batch_size": 4, "output_dir": str(tmp_path / f"{name}_1")}
        assert recipe_main(DistillParams(**one)) == 0
        two = {**values, **split, "batch_size": 2, "output_dir": str(tmp_path / f"{name}_2")}
        listed.append({"recipe": "distill", "values": two})
    (tmp_path / "runs.json").write_text(json.dumps(listed))
    done = launch(2, Path(__file__).with_name("many_runs.py"), str(tmp_path / "runs.json"))
    assert done.returncode == 0, done.stderr
    for name in CASES:
        one, two = tmp_path / f"{name}_1", tmp_path / f"{name}_2"
        assert_same_weights(one, two, 3e-6)
        ours, theirs = rows_of(two), rows_of(one)
        assert len(ours) == len(theirs) == 4
        for our, their in zip(ours, theirs, strict=True):
            assert our.keys() == their.keys() >= {"kd_loss", "ce_loss"}
            assert our["num_trained_tokens"] == their["num_trained_tokens"]
            for key in our.keys() & LOSSES:
                assert our[key] == pytest.approx(their[key], rel=1e-5, abs=1e-6), key
        assert ours[-1].keys() >= LOSSES
