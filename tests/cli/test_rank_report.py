"""Which rank ended a run, out of what all of them left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune.cli.rank_report import (
    RankEnd,
    RankStart,
    end_of_process,
    explain,
    find_first,
    is_lost_connection,
    read_end,
    read_tail,
    write_record,
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
        # ended by the agent, after it saw the failure: with SIGTERM, and with SIGKILL half a minute later
        ([end(0, 5.1, "killed", 143), end(1, 5.0, "failed")], 1),
        ([end(0, 35.1, "killed", 137), end(1, 5.0, "lost")], 1),
        ([end(0, 5.2, "killed", 137), end(1, 5.1, "failed")], 1),
        ([end(0, 5.2, "lost"), end(1, 5.1, "aborted", 130)], 1),
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


def test_a_process_that_left_no_record(tmp_path: Path) -> None:
    log = tmp_path / "rank_1.log"
    log.write_text("old run\n" + "".join(f"line {i}\n" for i in range(40)) + "10%\r20%\r\n" + NCCL + "\n")
    start = RankStart(1, 4, 123, str(log), log_offset=len("old run\n"))
    assert end_of_process(start, 3.0, -9) == end(1, 3.0, "killed", 137)
    assert end_of_process(start, 3.0, 5) == end(1, 3.0, "failed", 5)
    # torch's watchdog aborts a process whose peer has gone; the log says that this is all it was
    assert end_of_process(start, 3.0, -6) == end(1, 3.0, "lost", 134)
    log.write_text("old run\nassertion failed\n")
    assert end_of_process(start, 3.0, -6) == end(1, 3.0, "killed", 134)
    assert read_tail(start) == "assertion failed"


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    record = end(3, 1234.5678901, "failed", 70, "ä\n\udcff")
    write_record(tmp_path / "3.ended", record)
    assert read_end(tmp_path / "3.ended") == record
    assert [path.name for path in tmp_path.iterdir()] == ["3.ended"]


def test_what_the_user_reads(tmp_path: Path) -> None:
    log = tmp_path / "rank_2.log"
    log.write_text("step 1\nstep 2\r100%\n")
    start = RankStart(2, 4, 123, str(log))
    killed = explain(end(2, 1.0, "killed", 137), [end(2, 1.0, "killed", 137)], start, "node7")
    assert killed.split("\n") == [
        "error: rank 2 of 4 on node7 was killed by SIGKILL: often the kernel's out-of-memory killer "
        "(`dmesg` names its victims)",
        "its last lines:",
        "  step 1",
        "  100%",
        f"(its whole output: {log})",
    ]
    cut = end(2, 1.0, "killed", 135)
    assert "was killed by SIGBUS: a file was cut short while it was being read" in explain(
        cut, [cut], start, "node7"
    )
    failed = end(2, 1.0, "failed", 1, "error: no examples\nadd some\n")
    text = explain(failed, [failed, end(3, 1.2, "lost")], start, "node7")
    assert text.startswith("error: no examples\nadd some\n(rank 2 of 4 on node7 failed first; exit code 1; ")
    same = [failed, end(3, 1.1, "failed", 1, failed.text)]
    assert "(all 2 ranks on node7 ended with this; " in explain(failed, same, start, "node7")
    lost = end(2, 1.0, "lost", 1, "Traceback\nRuntimeError: " + GLOO)
    assert "on another machine" in explain(lost, [lost], start, "node7")
    assert explain(lost, [lost], RankStart(2, 1, 123, None), "node7").startswith("Traceback")
