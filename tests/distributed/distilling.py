"""Distillation on one process and on two: sharded, with a teacher of their own, and writing themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def distil_alone(common: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Run each case in this process, into NAME_1; return the runs that two processes are to make of it, into NAME_2.

    Args:
        common: models, data and optimizer of all cases.
        folder: where the outputs go.
    """
    listed = []
    for name, (changes, split) in CASES.items():
        values = {**common, "max_steps": 4, "save_every_epoch": False, **changes}
        if "lora_rank" in changes:
            values["save_adapter_weights_only"] = True
        one = {**values, "batch_size": 4, "output_dir": str(folder / f"{name}_1")}
        assert recipe_main(DistillParams(**one)) == 0
        two = {**values, **split, "batch_size": 2, "output_dir": str(folder / f"{name}_2")}
        listed.append({"recipe": "distill", "values": two})
    return listed
