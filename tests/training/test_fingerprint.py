"""Weight files are recognised as others when their names, sizes or ends differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tune.config import Component
from tune.errors import CheckpointError
from tune.training import hash_weight_files
from tune.training.saving.fingerprint import check_fingerprint, describe_component


def write(folder: Path, name: str = "model.safetensors", size: int = 300_000, last: bytes = b"\1") -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\0" * (size - 1) + last)


def test_equal_folders_are_equal_whatever_else_they_hold(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    (tmp_path / "b" / "README.md").write_text("notes")
    assert hash_weight_files(tmp_path / "a") == hash_weight_files(tmp_path / "b")
    assert hash_weight_files(tmp_path / "a").startswith("1 files, 300000 bytes, ")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: write(folder, name="model-00001-of-00001.safetensors"),
        lambda folder: write(folder, size=300_001),
        lambda folder: write(folder, last=b"\2"),
        lambda folder: [write(folder), write(folder, name="second.bin", size=5)],
    ],
)
def test_other_weights_are_others(tmp_path: Path, change: Callable[[Path], object]) -> None:
    write(tmp_path / "a")
    change(tmp_path / "b")
    assert hash_weight_files(tmp_path / "a") != hash_weight_files(tmp_path / "b")


def test_of_a_component_the_arguments_that_changed_are_named() -> None:
    saved, current = (
        {"builder": describe_component(Component("tune.models.x", arguments)), "seed": "3"}
        for arguments in ({"a": 1, "b": [2, "c"], "d": None}, {"a": 1, "b": [2], "e": True})
    )
    with pytest.raises(CheckpointError) as error:
        check_fingerprint(saved, current, "step")
    assert str(error.value).splitlines()[1:-1] == [
        '  builder.b: was [2, "c"], is [2] (tune.models.x)',
        "  builder.d: was null, is not set (tune.models.x)",
        "  builder.e: was not set, is true (tune.models.x)",
    ]
    other = {**saved, "builder": describe_component(Component("tune.models.y", {"a": 1}))}
    with pytest.raises(
        CheckpointError, match=r'builder: was tune\.models\.x \{"a": 1.*, is tune\.models\.y \{'
    ):
        check_fingerprint(saved, other, "step")


def test_another_program_is_not_a_matter_of_last_digits(caplog: pytest.LogCaptureFixture) -> None:
    saved = {"code": "tune 0.1.0, recipe 0a", "threads": "2", "seed": "3"}
    assert check_fingerprint(saved, {**saved, "code": "tune 0.1.0, recipe 0b"}, "step_7") == []
    assert "step_7 was saved by another program" in caplog.text
    assert "may train otherwise" in caplog.text
    assert "code: was tune 0.1.0, recipe 0a, is tune 0.1.0, recipe 0b" in caplog.text
    assert "last digits" not in caplog.text
    assert check_fingerprint(saved, {**saved, "threads": "1"}, "step_7") == []
    assert "last digits:\n  threads: was 2, is 1" in caplog.text


def test_an_empty_list_is_as_good_as_null() -> None:
    saved = {"freeze": "None", "lora_attn_modules": "None", "seed": "3"}
    now = {"freeze": "[]", "lora_attn_modules": "['q_proj', 'v_proj']", "seed": "3"}
    for one, other in ((saved, now), (now, saved)):
        assert check_fingerprint(one, other, "step") == []
    with pytest.raises(CheckpointError, match=r"lora_attn_modules: was \['q_proj', 'v_proj'\], is \[\]"):
        check_fingerprint(now, {**now, "lora_attn_modules": "[]"}, "step")
    with pytest.raises(CheckpointError, match=r"freeze: was None, is \['norm'\]"):
        check_fingerprint(saved, {**saved, "freeze": "['norm']"}, "step")
