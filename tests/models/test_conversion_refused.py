"""Conversions refused, interrupted, killed or starved leave nothing that looks like a model; odd places work."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cases import CASES
from conversion_checkpoints import assert_same, assert_untouched, build, save_sharded
from transformers import AutoModelForCausalLM

import tune.models
from tests import warm_python
from tune.checkpoints import save_model
from tune.errors import CheckpointError, ConfigError
from tune.models import conversion
from tune.models.conversion import convert_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    return save_sharded(tmp_path / "hf")


# ---- Refused before anything is written --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        ({"to": "gguf"}, ConfigError, "no layout 'gguf': only hf, meta, tune"),
        ({"dtype": "int8"}, ConfigError, "no dtype 'int8'"),
        ({"dest": "hf"}, CheckpointError, "is the source itself"),
        ({"dest": "hf/inside"}, CheckpointError, "lie in one another"),
        ({"dest": "."}, CheckpointError, "lie in one another"),
        ({"dest": "full"}, CheckpointError, r"full holds model\.safetensors already.*--force"),
        ({"dest": "notes"}, CheckpointError, r"notes holds n0, n1, n2, n3 and 3 more already"),
        ({"dest": "file"}, CheckpointError, "file is a file"),
        ({"dest": "file/below"}, CheckpointError, r"cannot be written: Not a directory"),
        ({"src": "nowhere"}, CheckpointError, "no folder"),
        ({"src": "notes"}, CheckpointError, "no model was found"),
    ],
)
def test_what_cannot_be_meant(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: dict[str, str], error: type, said: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model.safetensors").touch()
    (tmp_path / "notes").mkdir()
    for number in range(7):
        (tmp_path / "notes" / f"n{number}").touch()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said):
        convert_checkpoint(**{"src": "hf", "dest": "out", **words})
    assert sorted(tmp_path.rglob("*")) == before


def test_a_family_without_that_layout_says_which_it_has(hf: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from dataclasses import replace

    from tune.models.llama2 import LLAMA

    monkeypatch.setattr(
        conversion,
        "read_model_config",
        lambda folder: (
            replace(LLAMA, meta=None, torchtune=None),
            tune.models.loading.read_model_config(folder)[1],
        ),
    )
    for to, name in (("meta", "Meta"), ("tune", "torchtune")):
        with pytest.raises(CheckpointError, match=rf"llama family has no {name} layout.*converted to hf$"):
            convert_checkpoint(hf, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


def test_a_model_that_a_layout_cannot_describe_is_refused(tmp_path: Path) -> None:
    reference = AutoModelForCausalLM.from_config(CASES["llama-biases"]())
    reference.save_pretrained(tmp_path / "biased")
    with pytest.raises(CheckpointError, match=r"no place for layers\.N\.attn\.q_proj\.bias"):
        convert_checkpoint(tmp_path / "biased", tmp_path / "out", "meta")
    assert not (tmp_path / "out").exists()
    save_model(build(), tmp_path / "stretched")
    config = json.loads((tmp_path / "stretched" / "config.json").read_text())
    scaling = {"rope_type": "linear", "factor": 2.0}
    (tmp_path / "stretched" / "config.json").write_text(json.dumps({**config, "rope_scaling": scaling}))
    with pytest.raises(CheckpointError):
        convert_checkpoint(tmp_path / "stretched", tmp_path / "out", "meta")
    assert not (tmp_path / "out").exists()


def test_a_configuration_that_lies_about_sizes_is_caught_at_once(hf: Path, tmp_path: Path) -> None:
    config = json.loads((hf / "config.json").read_text())
    for change, said in (
        ({"num_hidden_layers": 10**9}, "num_layers is 1000000000"),
        ({"num_hidden_layers": 900}, "speaks of 900 layers"),
        ({"vocab_size": 10**12}, "do not fit the model"),
        ({"num_hidden_layers": 0}, "num_layers is 0"),
        ({"num_hidden_layers": 2}, "unknown to the model"),
    ):
        (hf / "config.json").write_text(json.dumps({**config, **change}))
        started = time.monotonic()
        with pytest.raises(CheckpointError, match=said):
            convert_checkpoint(hf, tmp_path / "out")
        assert time.monotonic() - started < 5
    assert not (tmp_path / "out").exists()


def test_room_on_the_disk_is_looked_at_first(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"need 2\.21e-05 GB and .*/out has 1e-06 GB free"):
        convert_checkpoint(hf, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- Ended on the way --------------------------------------------------------------------------------------


class Stopping:
    """Raises when the conversion has come to some place."""

    def __init__(self, phase: str, error: BaseException) -> None:
        self.phase, self.error, self.now = phase, error, ""

    def __call__(self, phase: str, num_bytes: int) -> Callable[[int], None]:
        self.now = phase
        return self.advance

    def advance(self, num_bytes: int) -> None:
        if self.now == self.phase:
            raise self.error


@pytest.mark.parametrize("phase", ["write", "verify"])
@pytest.mark.parametrize("to", ["hf", "meta", "tune"])
@pytest.mark.parametrize("exists", [False, True])
def test_an_interrupted_conversion_can_be_repeated(
    hf: Path, tmp_path: Path, to: str, phase: str, exists: bool
) -> None:
    if exists:
        (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(hf, tmp_path / "out", to, progress=Stopping(phase, KeyboardInterrupt()))
    assert (tmp_path / "out").exists() is exists
    assert_untouched(tmp_path / "out")
    convert_checkpoint(hf, tmp_path / "out", to)
    tune.models.from_checkpoint(tmp_path / "out")


def test_a_full_disk_is_said_and_leaves_nothing(hf: Path, tmp_path: Path) -> None:
    # Files may not grow beyond a limit, which fails like a full disk: at once, or after some tensors.
    code = (
        "import resource\n"
        "from tune.errors import CheckpointError\n"
        "from tune.models.conversion import convert_checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "for to in ('hf', 'meta'):\n"
        f"    try: convert_checkpoint({str(hf)!r}, {str(tmp_path / 'out')!r}, to)\n"
        "    except CheckpointError as error: print(error)"
    )
    done = warm_python.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert "cannot be written" in lines[0], done.stderr
    assert "File too large" in lines[0]
    assert "cannot be written: is the disk full?" in lines[1]
    assert not (tmp_path / "out").exists()


def test_a_killed_conversion_is_no_model_and_can_be_repeated(hf: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys; from tune.models.conversion import convert_checkpoint\n"
        "def killer(phase, num_bytes):\n"
        "    def advance(num_bytes):\n"
        f"        if phase == 'verify': os.kill(os.getpid(), {signal.SIGKILL:d})\n"
        "    return advance\n"
        f"convert_checkpoint({str(hf)!r}, {str(tmp_path / 'out')!r}, progress=killer)"
    )
    done = warm_python.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".converting"]
    with pytest.raises(CheckpointError, match="no model was found"):
        tune.models.from_checkpoint(tmp_path / "out")
    convert_checkpoint(hf, tmp_path / "out")
    assert_same(hf, tmp_path / "out")
    assert not (tmp_path / "out" / ".converting").exists()


def test_killed_anywhere_the_old_model_is_there_or_the_new_one(hf: Path, tmp_path: Path) -> None:
    """A process is killed before one change of a folder after another, until none is left to come."""
    save_model(build(), tmp_path / "old", max_shard_bytes=30_000)
    (tmp_path / "old" / "tokenizer.json").write_text("the old model's")
    done = warm_python.run(
        [
            sys.executable,
            Path(__file__).with_name("killed_conversions.py"),
            tmp_path / "old",
            hf,
            tmp_path / "out",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[tuple[str, str]]] = {}
    for kind, *models in map(json.loads, done.stdout.splitlines()):
        found.setdefault(kind, []).append((models[0], models[1]))
    # At each moment there is the old model or the new one, and from some moment on the new one.
    assert set(found["plain"]) == {("old", "old"), ("new", "new")}
    assert set(found["empty"]) == {("none", "none"), ("new", "new")}
    # Where a file cannot have two names, they are hidden while they are moved; the next attempt brings them forth.
    assert set(found["no links"]) == {("old", "old"), ("new", "new"), ("none", "new")}
    for pairs in found.values():
        assert [after for _, after in pairs] == sorted(
            (after for _, after in pairs), key="none old new".index
        )
        assert len(pairs) > 12


def test_two_conversions_into_one_folder_do_not_mix(hf: Path, tmp_path: Path) -> None:
    def second(phase: str, num_bytes: int) -> Callable[[int], None]:
        with pytest.raises(CheckpointError, match="another conversion is writing"):
            convert_checkpoint(hf, tmp_path / "out", "meta")
        return lambda num_bytes: None

    convert_checkpoint(hf, tmp_path / "out", progress=second)
    assert_same(hf, tmp_path / "out")


def test_force_replaces_a_model_and_nothing_else(hf: Path, tmp_path: Path) -> None:
    save_model(build(), tmp_path / "out", max_shard_bytes=3000)
    (tmp_path / "out" / "diary.txt").write_text("mine")
    (tmp_path / "out" / "tokenizer.json").write_text("the old model's")
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(
            hf, tmp_path / "out", "meta", force=True, progress=Stopping("verify", KeyboardInterrupt())
        )
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3  # the old one is still whole
    tune.models.from_checkpoint(tmp_path / "out")
    convert_checkpoint(hf, tmp_path / "out", "meta", force=True)
    held = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert held == ["consolidated.00.pth", "diary.txt", "params.json"]


def test_what_does_not_read_back_the_same_is_not_kept(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = conversion.write_shards

    def write_badly(folder: Path, *rest: Any) -> None:
        write(folder, *rest)
        file = folder / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)

    monkeypatch.setattr(conversion, "write_shards", write_badly)
    with pytest.raises(CheckpointError, match="reads back with other values"):
        convert_checkpoint(hf, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- Odd surroundings --------------------------------------------------------------------------------------


def test_a_source_that_may_only_be_read_is_enough(hf: Path, tmp_path: Path) -> None:
    for path in [*hf.iterdir(), hf]:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
    try:
        convert_checkpoint(hf, tmp_path / "out", "meta")
        assert sorted(path.name for path in hf.iterdir()) == sorted(
            ["config.json", "model.safetensors.index.json", *(file.name for file in hf.glob("*.safetensors"))]
        )
    finally:
        hf.chmod(0o755)


@pytest.mark.parametrize("name", ["a b'c\"", "ünï 模型", "-dash", "new\nline", "*?[x]"])
def test_names_of_folders_may_be_anything(hf: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(hf, tmp_path / name / "in")
    convert_checkpoint(tmp_path / name / "in", tmp_path / name / "out", "meta")
    convert_checkpoint(tmp_path / name / "out", tmp_path / "back")
    assert_same(hf, tmp_path / "back")


def test_links_into_a_cache_are_followed(hf: Path, tmp_path: Path) -> None:
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for path in hf.iterdir():
        (linked / path.name).symlink_to(path)
    convert_checkpoint(linked, tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert_same(hf, tmp_path / "out")
