"""Conversions into a folder, each killed one change of a folder later than the one before; the last one is not.

    python killed_conversions.py OLD NEW OUT

Writes after each, as JSON, how it began, which model is found in OUT, and which one once the next attempt has begun.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import tune.models
from tune.checkpoints import staged_directory
from tune.errors import CheckpointError
from tune.models.conversion import convert_checkpoint

OLD, NEW, OUT = map(Path, sys.argv[1:4])
CHANGES = {"os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "shutil.rmtree"}


def convert_until_killed(num_changes: int, kind: str) -> None:
    """Convert, and die instead of making one change more than `num_changes` to what is in OUT."""
    num_left = num_changes

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal num_left
        if event in CHANGES and str(OUT) in str(arguments):
            if num_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            num_left -= 1
        if event == "os.link" and kind == "no links":
            raise PermissionError(1, "Operation not permitted")

    sys.addaudithook(watch)
    convert_checkpoint(NEW, OUT, max_shard_bytes=12_000, force=kind != "empty")


def find_model(models: dict[str, dict[str, torch.Tensor]]) -> str:
    """Return which of the models is in OUT, to the last bit."""
    try:
        weights = tune.models.from_checkpoint(OUT).state_dict()
    except CheckpointError:
        return "none"
    for name, others in models.items():
        if all(torch.equal(weights[key], other) for key, other in others.items()):
            return name
    return "mixed"


def main() -> None:
    os.fsync = lambda descriptor: None  # it waits for the disk, which only a power cut would tell from memory
    models = {
        name: tune.models.from_checkpoint(path).state_dict() for name, path in (("old", OLD), ("new", NEW))
    }
    for kind in ("plain", "no links", "empty"):
        status, num_changes, stride = -1, 0, 6
        while status != 0:
            shutil.rmtree(OUT, ignore_errors=True)
            if kind != "empty":
                shutil.copytree(OLD, OUT)
                (OUT / "diary.txt").write_text("mine")
            child = os.fork()
            if child == 0:
                convert_until_killed(num_changes, kind)
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            assert status in (0, signal.SIGKILL), status
            if stride > 1 and (OUT / ".converting" / ".whole").exists():
                # The place to look closely at began since the last kill.
                num_changes, stride = num_changes - stride + 1, 1
                continue
            num_changes += stride
            found = find_model(models)
            with suppress(KeyboardInterrupt), staged_directory(OUT, force=kind != "empty" or found == "new"):
                raise KeyboardInterrupt
            assert not (OUT / ".converting").exists()
            after = find_model(models)
            if kind != "empty":
                assert (OUT / "diary.txt").read_text() == "mine"
                assert (OUT / "tokenizer.json").exists() == (after == "old")
            sys.stdout.write(json.dumps([kind, found, after]) + "\n")


if __name__ == "__main__":
    main()
