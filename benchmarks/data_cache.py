"""What it takes to tokenize many rows once, and to start again: time, memory, disk.

    python -m benchmarks.data_cache --tokenizer DIR --rows 1000000 --num-proc 2 --pack 2048 --output data_cache.json

Each start is a process of its own. The first finds no cache and fills it; the second maps what the first has written,
and must find the same examples. Memory is what a process holds of its own at most (`peak_rss_mb`, pages of mapped files
included) and at the end (`own_mb`, without them); workers count for themselves.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.setting import describe_machine, write_figures
from tune.datasets import PackedDataset, instruct_dataset
from tune.datasets.tokenizing import preparing
from tune.tokenizers import from_checkpoint
from tune.utils.worker_pool import num_cores

_WORDS = "the answer question of apple river seven twelve green walk model data learns".split()  # noqa: SIM905


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.start:
        sys.stdout.write(json.dumps(start(options)) + "\n")
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        file = Path(folder) / "rows.jsonl"
        write_rows(file, options.rows)
        again = [*(arguments if arguments is not None else sys.argv[1:]), "--start", folder]
        starts = {
            name: run([sys.executable, "-m", "benchmarks.data_cache", *again]) for name in ("first", "second")
        }
        num_bytes = sum(path.stat().st_size for path in (Path(folder) / "cache").rglob("*") if path.is_file())
        if starts["first"]["examples"] != starts["second"]["examples"]:
            sys.exit(f"the starts did not find the same examples: {starts}")
        figures = {
            "setting": {
                "rows": options.rows,
                "num_proc": options.num_proc,
                "file_mb": file.stat().st_size / 1e6,
            },
            "machine": describe_machine("cpu"),
            "cache_mb": num_bytes / 1e6,
            "results": starts,
        }
    write_figures(figures, options.output)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", default="recipes/bundled/tiny_llama", help="Folder of a tokenizer.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--num-proc", type=int, default=num_cores())
    parser.add_argument("--pack", type=int, default=2048, help="Tokens of a packed sequence.")
    parser.add_argument("--folder", help="Where rows and cache are written, and removed.")
    parser.add_argument("--output", help="Also write the figures to this file.")
    parser.add_argument("--start", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def write_rows(file: Path, num_rows: int) -> None:
    """Write questions and answers of a few words each, no two alike."""
    rng = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for number in range(num_rows):
            question = " ".join(rng.choices(_WORDS, k=6))
            answer = " ".join(rng.choices(_WORDS, k=8))
            out.write(json.dumps({"question": f"{question} {number}?", "answer": answer}) + "\n")


def run(command: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Make the dataset as a run does, pack it, and return what that took."""
    tokenizer = from_checkpoint(options.tokenizer)
    clock, used = time.perf_counter(), processor_seconds()
    with preparing(options.num_proc, f"{options.start}/cache"):
        dataset = instruct_dataset(tokenizer, source=f"{options.start}/rows.jsonl", max_seq_len=options.pack)
    seconds, processor = time.perf_counter() - clock, processor_seconds() - used
    own = own_megabytes()
    clock = time.perf_counter()
    packed = PackedDataset(dataset)
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "rows_per_s": options.rows / seconds,
        "own_mb": own,
        "pack_seconds": time.perf_counter() - clock,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "examples": [len(dataset), len(packed), packed[len(packed) - 1]["tokens"][-8:]],
    }


def processor_seconds() -> float:
    """Return what this process and its workers have used."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def own_megabytes() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))) / 1024


if __name__ == "__main__":
    sys.exit(main())
