"""Many real processes: they find each other, and when one dies the run ends with its error alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from launch_runs import is_alive

# Two steps of a collective; in between, what the mode says happens on rank 1.
GLOO = """
import os, signal, sys
import torch, torch.distributed as dist
import tune.config
from mine_params import MineParams

@tune.config.parse
def recipe_main(params: MineParams) -> int:
    dist.init_process_group("gloo")
    rank, total = dist.get_rank(), torch.tensor([float(10 ** dist.get_rank())])
    dist.all_reduce(total)
    again = params.resume_from_checkpoint
    threads = int(os.environ["OMP_NUM_THREADS"])
    print("rank", rank, "sum", total.item(), "local", os.environ["LOCAL_RANK"], "again", again, threads, flush=True)
    print("said to stderr by", rank, file=sys.stderr)
    if rank == 1 and params.mode == "killed once" and not again:
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1 and params.mode == "bug":
        raise ValueError("the seventh batch is empty")
    dist.all_reduce(total)
    dist.destroy_process_group()
    return 0

if __name__ == "__main__":
    sys.exit(recipe_main())
"""

ALL_FAIL = """
import os, sys, time
import tune.config
from tune.errors import DataError
from mine_params import MineParams

@tune.config.parse
def recipe_main(params: MineParams) -> int:
    if params.mode == "all":
        raise DataError("questions.jsonl does not exist\\nname a file that does")
    if os.environ["RANK"] == "1":
        print("about to go", flush=True)
        os._exit(5)
    time.sleep(20)

if __name__ == "__main__":
    sys.exit(recipe_main())
"""


def test_a_killed_rank_is_named_and_the_run_can_resume(start, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(GLOO)
    words = ("--nproc_per_node", "2", "--max_restarts", "1")
    code, out, err = start(*words, "./mine.py", "mode=killed once", "resume_from_checkpoint=false").end()
    assert code == 0, err
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    # rank 0 alone has the terminal, in both attempts
    assert out.splitlines() == [f"rank 0 sum 11.0 local 0 again {again} {threads}" for again in (False, True)]
    assert "said to stderr by 0" in err
    assert "\nsaid to stderr by 1" not in err  # but, set in, among the last lines of the rank that died
    log = tmp_path / "out" / "logs" / "rank_1.log"
    assert f"rank 1 sum 11.0 local 1 again False {threads}\n" in log.read_text()
    assert f"rank 1 sum 11.0 local 1 again True {threads}\nsaid to stderr by 1\n" in log.read_text()
    assert "error: rank 1 of 2 on " in err
    assert "was killed by SIGKILL: often the kernel's out-of-memory killer" in err
    assert "Restart 1 (of 1 after failures here)." in err
    # neither what rank 0 met for want of rank 1, nor the agent's own log
    for word in ("onnection", "elastic", "Traceback", "exitcode"):
        assert word not in err
    assert os.listdir(tmp_path / "out") == ["logs"]


def test_the_first_error_alone_is_shown(start, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(GLOO)
    code, _, err = start("run", "mine.py", "--num_gpus", "2", "mode=bug").end()
    assert code == 1
    assert err.count("Traceback") == 1
    assert "ValueError: the seventh batch is empty" in err
    assert "mine.py failed with ValueError" in err
    assert "(rank 1 of 2 on " in err
    assert "failed first; exit code 1; its whole output: out/logs/rank_1.log)" in err
    assert "onnection" not in err
    assert "the seventh batch is empty" in (tmp_path / "out" / "logs" / "rank_1.log").read_text()


def test_an_error_of_all_is_shown_once(start, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(ALL_FAIL)
    code, _, err = start("--nproc_per_node", "3", "mine.py", "mode=all").end()
    assert code == 1
    assert err.count("questions.jsonl does not exist\nname a file that does\n") == 1
    assert err.count("error:") == 1


def test_an_exit_without_a_word(start, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(ALL_FAIL)
    code, _, err = start("--nproc_per_node", "2", "mine.py").end()
    assert code == 5
    assert (
        "ended with exit code 5\nits last lines:\n  about to go\n(its whole output: out/logs/rank_1.log)"
        in err
    )


# Rank 0 stands in a library that heeds no signal, as one that waits for its peer on a GPU.
DEAF = """
import os, pathlib, signal, time
rank = os.environ["RANK"]
pathlib.Path(f"rank_{rank}.txt").write_text(f"pid {os.getpid()}\\n")
if rank == "0":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
time.sleep(300)
"""


def test_a_rank_that_was_sent_sigterm_is_told_of_at_once(start, tmp_path: Path) -> None:
    (tmp_path / "deaf.py").write_text(DEAF)
    run = start("run", "--nproc_per_node", "2", "deaf.py")
    pids = run.pids()
    os.kill(pids[1], signal.SIGTERM)
    shown = ""
    while "was killed by SIGTERM" not in shown:
        shown = run.process.stderr.readline()
        assert shown
    assert is_alive(pids[0])  # it is ended only now
    code, _, err = run.end()
    assert code == 143
    assert "SIGTERM" not in err  # and not told of twice
    assert not any(map(is_alive, pids))


def test_a_failure_on_another_machine_is_no_bug_to_report(start, tmp_path: Path) -> None:
    (tmp_path / "lost.py").write_text(
        "raise RuntimeError('[pair.cc:1] Connection closed by peer [10.0.0.2]:1')"
    )
    code, _, err = start("run", "--nproc_per_node", "2", "lost.py").end()
    assert code == 1
    assert "error: the connection to another rank was lost: [pair.cc:1] Connection closed by peer" in err
    assert "report" not in err
