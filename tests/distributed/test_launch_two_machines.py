"""Two machines, as far as one can play two: network namespaces, each with its own addresses, joined by a cable."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launch_runs import ROOT

from tests import warm_python
from tests.distributed.launching import enter_network

ADDRESSES = ("10.231.77.1", "10.231.77.2")

MINE = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
rank, total = dist.get_rank(), torch.tensor([float(10 ** dist.get_rank())])
dist.all_reduce(total)
host = os.environ["HERE"]
word = f"{rank} {dist.get_world_size()} {os.environ['LOCAL_RANK']} {total.item()} {os.environ['MASTER_ADDR']}"
open(f"{host}.txt", "w").write(word)
print("rank", rank, "is here", flush=True)
if os.path.exists("fail") and rank == 1:
    raise ValueError("only here")
dist.all_reduce(total)
dist.destroy_process_group()
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=200)


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """The names of two namespaces that reach each other at ADDRESSES, and nothing else."""
    if shutil.which("ip") is None:
        pytest.skip("needs `ip` (iproute2)")
    names = tuple(f"tune-{os.getpid()}-{side}" for side in "ab")
    made: list[str] = []
    try:
        try:
            for name in names:
                ip("netns", "add", name)
                made.append(name)
            ip(
                "-n",
                names[0],
                "link",
                "add",
                "cable",
                "type",
                "veth",
                "peer",
                "name",
                "cable",
                "netns",
                names[1],
            )
            for name, address in zip(names, ADDRESSES):
                ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
                for device in ("cable", "lo"):
                    ip("-n", name, "link", "set", device, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"needs network namespaces: {error.stderr.strip()}")
        yield names[0], names[1]
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=200)


def launch(machine: str, folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MACHINE": machine,
        "HERE": machine.rsplit("-", 1)[1],
        "GLOO_SOCKET_IFNAME": "cable",
        "OMP_NUM_THREADS": "1",
    }
    return warm_python.Popen(
        [sys.executable, "-m", "tune", "run", "--nnodes", "2", "--nproc_per_node", "1", *words],
        preexec_fn=enter_network,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ends(runs: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    try:
        said = [run.communicate(timeout=100) for run in runs]
        return [(run.returncode, *texts) for run, texts in zip(runs, said)]
    finally:
        for run in runs:
            run.kill()


def test_two_machines_train_as_one(machines: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    meeting = ("--rdzv_backend", "c10d", "--rdzv_endpoint", f"{ADDRESSES[0]}:29411")
    # the one that is to listen comes last
    results = ends([launch(machine, tmp_path, *meeting, "./mine.py") for machine in machines[::-1]])
    assert [code for code, _, _ in results] == [0, 0], results
    notes = sorted((tmp_path / f"{side}.txt").read_text().split() for side in "ab")
    assert [note[:4] for note in notes] == [["0", "2", "0", "11.0"], ["1", "2", "0", "11.0"]]
    assert {note[4] for note in notes} <= set(ADDRESSES)
    assert sorted(out for _, out, _ in results) == ["", "rank 0 is here\n"]  # the other's is in its log
    for _, _, err in results:
        assert err.startswith(f"Waiting for 2 machines at {ADDRESSES[0]}:29411.\n")
        assert "\nStarting rank " in err
        assert "Error" not in err


def test_a_recipe_trains_on_two_machines_as_on_one(machines: tuple[str, str], tmp_path: Path) -> None:
    rows = [{"instruction": "Say it.", "input": "mill " * (1 + i % 5), "output": "goose"} for i in range(18)]
    (tmp_path / "orders.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = ("full_finetune", "--config", "tiny/full_finetune", "epochs=1", "batch_size=3")
    recipe += ("dataset.source=orders.jsonl",)
    meeting = ("--rdzv_endpoint", f"{ADDRESSES[0]}:29413")
    results = ends([launch(name, tmp_path, *meeting, *recipe, "output_dir=two") for name in machines])
    assert [code for code, _, _ in results] == [0, 0], results
    assert (tmp_path / "two" / "logs" / "rank_1.log").is_file()
    alone = warm_python.run(
        [sys.executable, "-m", "tune", "run", "--nproc_per_node", "2", *recipe, "output_dir=one"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,  # a slow machine takes a tenth of it
    )
    assert alone.returncode == 0, alone.stderr
    files = [tmp_path / run / "latest" / "model" / "model.safetensors" for run in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_numbered_machines_and_a_failure_on_one(machines: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "fail").touch()
    meeting = ("--master_addr", ADDRESSES[0], "--master_port", "29412", "--node_rank")
    first, second = ends(
        [launch(machine, tmp_path, *meeting, str(i), "./mine.py") for i, machine in enumerate(machines)]
    )
    assert (tmp_path / "a.txt").read_text() == f"0 2 0 11.0 {ADDRESSES[0]}"
    assert (first[0], second[0]) == (1, 1)
    assert "the failure itself is on another machine" in first[2]
    assert "Traceback" not in first[2]
    assert "ValueError: only here" in second[2]
    assert "rank 1 of 2 on " in second[2]
