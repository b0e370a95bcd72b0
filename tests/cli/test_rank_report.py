"""Which rank ended a run, out of what all of them left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from tune.cli.rank_report import (
    RankEnd,
    explain,
    find_first,
    is_lost_connection,
    read_end,
    read_tail,
    write_end,
)

GLOO = "[pair.cc:537] Read error [127.0.0.1]:43947: Connection reset by peer."
NCCL = "NCCL error: remote process exited or there was a network error, NCCL version 2.27"


def end(rank: int, time: float, kind: str, code: int = 1, text: str = "") -> RankEnd:
    return RankEnd(rank, time, kind, code, text)


@pytest.mark.parametrize(
    ("ends", "rank"),
    [
        ([end(0, 5.0, "done", 0), end(1, 6.0, "done", 0)], None),
        ([end(0, 5.2, "failed"), end(1, 5.1, "failed")], 1),
        # whoever noticed first that another had gone is not the one that went
        ([end(0, 5.0, "lost"), end(1, 5.1, "killed", 137), end(2, 5.0, "lost")], 1),
        ([end(0, 5.0, "lost"), end(1, 5.3, "failed"), end(2, 5.4, "aborted", 143)], 1),
        # the launcher ends the others, by killing them in the end
        ([end(0, 35.1, "lost", 137), end(1, 5.0, "killed", 143)], 1),
        ([end(0, 35.1, "lost", 137), end(1, 5.0, "lost")], 1),
        ([end(0, 5.2, "killed", 137), end(1, 5.1, "failed")], 1),
        ([end(0, 5.2, "lost"), end(1, 5.1, "aborted", 130)], 1),
        # the agent knows whole seconds of a process that wrote nothing; gloo may abort before the failed one is gone
        ([end(0, 5.0, "killed", 134), end(1, 5.3, "failed")], 1),
        ([end(0, 5.0, "killed", 134), end(1, 5.2, "lost")], 0),
    ],
)
def test_the_first_real_failure_counts(ends: list[RankEnd], rank: int | None) -> None:
    for order in (ends, ends[::-1]):
        first = find_first(order)
        assert (None if first is None else first.rank) == rank


def test_lost_connections_are_told_from_failures() -> None:
    assert is_lost_connection(GLOO)
    assert is_lost_connection(NCCL)
    assert not is_lost_connection("CUDA out of memory. Tried to allocate 2 GiB")
    assert not is_lost_connection("loss is not a number at step 3")


def test_a_process_that_wrote_nothing(tmp_path: Path) -> None:
    log, nothing = tmp_path / "rank_1.log", tmp_path / "error.json"
    old = "--- rank 1 of 4, then\nold run\n"
    log.write_text(
        f"{old}--- rank 1 of 4, now\n" + "".join(f"line {i}\n" for i in range(40)) + f"10%\r20%\r\n{NCCL}\n"
    )
    assert read_end(nothing, 1, log, -9, 3.0) == end(1, 3.0, "killed", 137)
    assert read_end(nothing, 1, log, 5, 3.0) == end(1, 3.0, "failed", 5)
    assert read_end(nothing, 1, log, 0, 3.0) == end(1, 3.0, "done", 0)
    # torch's watchdog aborts a process whose peer has gone; the log says that this is all it was
    assert read_end(nothing, 1, log, -6, 3.0) == end(1, 3.0, "lost", 134)
    assert read_tail(log).split("\n") == [*(f"line {i}" for i in range(27, 40)), "20%", NCCL]
    log.write_text(f"{old}--- rank 1 of 4, now\nassertion failed\n")
    assert read_end(nothing, 1, log, -6, 3.0) == end(1, 3.0, "killed", 134)
    assert read_tail(log) == "assertion failed"


def test_what_a_rank_wrote_counts_more_than_its_exit_code(tmp_path: Path) -> None:
    written = end(3, 1234.5678901, "failed", 70, "ä\n\udcff")
    path = tmp_path / "error.json"
    write_end(path, written)
    assert [file.name for file in tmp_path.iterdir()] == ["error.json"]
    assert read_end(path, 3, None, -14, 1.0) == written
    # torch's agent reads the file, too
    assert ProcessFailure(0, 123, 1, str(path)).timestamp == 1234


def test_what_the_user_reads(tmp_path: Path) -> None:
    log = tmp_path / "rank_2.log"
    log.write_text("step 1\nstep 2\r100%\n")
    gone = end(2, 1.0, "killed", 137)
    assert explain(gone, [gone], 4, log, "node7").split("\n") == [
        "error: rank 2 of 4 on node7 was killed by SIGKILL: often the kernel's out-of-memory killer "
        "(`dmesg` names its victims)",
        "its last lines:",
        "  step 1",
        "  100%",
        f"(its whole output: {log})",
    ]
    cut = end(2, 1.0, "killed", 135)
    assert "was killed by SIGBUS: a file was cut short while it was being read" in explain(
        cut, [cut], 4, log, "node7"
    )
    failed = end(2, 1.0, "failed", 1, "error: no examples\nadd some\n")
    text = explain(failed, [failed, end(3, 1.2, "lost")], 4, log, "node7")
    assert text.startswith("error: no examples\nadd some\n(rank 2 of 4 on node7 failed first; exit code 1; ")
    same = [failed, end(3, 1.1, "failed", 1, failed.message)]
    assert "(all 2 ranks on node7 ended with this; " in explain(failed, same, 4, log, "node7")
    lost = end(2, 1.0, "lost", 1, "Traceback\nRuntimeError: " + GLOO)
    assert "on another machine" in explain(lost, [lost], 4, log, "node7")
    assert explain(lost, [lost], 1, None, "node7").startswith("Traceback")
