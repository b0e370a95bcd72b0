"""Where one process fails or sees something else, all of them learn of it: none waits for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launching import launch


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outcomes")
    done = launch(2, Path(__file__).with_name("disagreeing.py"), str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    ("mode", "on_first", "on_second"),
    [
        ("fail_with_a_strange_error", "Strange: 3 and 5", "the first process ended with Strange: 3 and 5"),
        ("return_what_cannot_be_sent", "cannot pickle", "cannot pickle"),
        ("keep_a_shard_to_oneself", "__1_0.distcp, written by rank 1", "__1_0.distcp, written by rank 1"),
        ("hold_different_folders", "is not the same folder", "is not the same folder"),
        ("break_the_saving_thread", "KeyError: 'no such key'", "ended with KeyError: 'no such key'"),
        ("have_different_memory", "fine", "fine"),
    ],
)
def test_all_learn_of_it(outcomes: Path, mode: str, on_first: str, on_second: str) -> None:
    assert on_first in (outcomes / f"{mode}.0").read_text()
    assert on_second in (outcomes / f"{mode}.1").read_text()
