"""A run is killed at random moments, again and again, and must end as if nothing had happened.

    make soak KILLS=100          or: python -m tests.distributed.soak --kills 100 --processes 1 2

Each run is killed with SIGKILL, all of it or one of its processes, at a moment drawn from its training and saving, then
resumed, and killed again, until it comes through; then its weights must be those of the run that nothing happened to,
byte for byte, and its metrics have each step once. Runs save in the foreground and in the background in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.distributed.launching import PATIENCE, children_of, start

WORDS = ["mill", "basket", "goose", "crab", "forest"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="for each number of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "orders.jsonl"
        rows = [
            {
                "instruction": "Say it.",
                "input": " ".join(WORDS[: 1 + i % 5]),
                "output": " ".join(WORDS[: 1 + i % 3]),
            }
            for i in range(58)
        ]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for processes in options.processes:
            bad += soak(Path(folder), data, processes, options.kills, random.Random(options.seed))
    return 1 if bad else 0


def soak(folder: Path, data: Path, processes: int, kills: int, rng: random.Random) -> int:
    """Kill runs of so many processes until there were `kills`; return how many runs ended otherwise."""
    common = [
        *("--config", "tiny/full_finetune", f"dataset.source={data}", "batch_size=3", "epochs=3"),
        *(
            "log_every_n_steps=1",
            "lr_scheduler.num_warmup_steps=2",
            "save_every_n_steps=1",
            "log_level=WARNING",
        ),
        *("keep_last_n_checkpoints=3", "gradient_accumulation_steps=2"),
    ]
    whole = folder / f"whole_{processes}"
    killed, _ = attempt(processes, common, whole, None)
    assert not killed
    num_kills = num_runs = bad = 0
    while num_kills < kills:
        out = folder / f"run_{processes}_{num_runs}"
        extra = [
            f"enable_async_checkpointing={'true' if num_runs % 2 else 'false'}",
            f"num_workers={num_runs % 3}",
        ]
        times = []
        while True:
            # A kill that may come after the end, or else no run would ever come through.
            after = rng.uniform(0.0, 2.0) if len(times) < 6 else None
            killed, took = attempt(
                processes, [*common, *extra], out, (rng, after) if after is not None else None
            )
            if not killed:
                break
            num_kills += 1
            times.append(round(took, 2))
        num_runs += 1
        same = weights_of(out) == weights_of(whole) and losses_of(out) == losses_of(whole)
        bad += not same
        print(
            f"{processes} processes, run {num_runs}: killed {len(times)} times, after {times} s of training; "
            f"{'the same run' if same else 'ANOTHER RUN'} ({num_kills} kills so far)",
            flush=True,
        )
    return bad


def attempt(
    processes: int, common: list[str], out: Path, kill: tuple[random.Random, float] | None
) -> tuple[bool, float]:
    """Start or resume a run; return whether it was killed, and the seconds it had trained."""
    begun = out / "config.yaml"
    begun.unlink(missing_ok=True)
    log = out.with_name(f"{out.name}.log")
    process = start(
        *(processes, "full_finetune", *common, f"output_dir={out}", "resume_from_checkpoint=true"),
        log=log,
        popen=subprocess.Popen,
    )
    deadline = time.monotonic() + PATIENCE
    while not begun.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    began = time.monotonic()
    was_killed = False
    if kill is not None:
        rng, after = kill
        while time.monotonic() < began + after and process.poll() is None:
            time.sleep(0.002)
        if process.poll() is None:
            was_killed = True
            below = children_of(process.pid)
            if processes > 1 and below and rng.random() < 0.5:
                os.kill(rng.choice(below), signal.SIGKILL)
            else:
                for pid in [process.pid, *below]:
                    _kill(pid)
    code = process.wait(timeout=PATIENCE)
    if code != 0 and not was_killed:
        raise SystemExit(f"a run that nobody killed ended with {code}:\n{log.read_text()}")
    return was_killed, time.monotonic() - began


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def weights_of(out: Path) -> bytes:
    return (out / "latest" / "model" / "model.safetensors").read_bytes()


def losses_of(out: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


if __name__ == "__main__":
    sys.exit(main())
