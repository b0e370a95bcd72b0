"""Where one process fails or sees something else, all of them learn of it: none waits for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launching import launch


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outcomes")
    done = launch(2, Path(__file__).with_name("disagreeing.py"), str(folder))
    # The last of what it does ends the run: who waits for a gather is not left there.
    assert done.returncode == 1, done.stderr
    assert "step 7 has a loss or gradient that is no number, and could not be studied" in done.stderr
    assert "while the weights of all were brought together: the device is lost" in done.stderr
    assert "failed first; exit code 1" in done.stderr
    assert "step 3 could not be kept for study" in done.stderr
    assert ": rank 1: the device is lost\n" in done.stderr
    assert "Traceback" not in done.stderr
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
        ("fail_while_a_bad_step_is_studied", "fine", "fine"),
        ("choose_different_tokens", "fine", "fine"),
        ("save_adapters_of_a_sharded_base", "fine", "fine"),
        ("gather_matrices_as_they_multiply", "fine", "fine"),
    ],
)
def test_all_learn_of_it(outcomes: Path, mode: str, on_first: str, on_second: str) -> None:
    assert on_first in (outcomes / f"{mode}.0").read_text()
    assert on_second in (outcomes / f"{mode}.1").read_text()
