"""A process that opens an entry of the cache of tokenized data, and waits for a line after each step."""

from __future__ import annotations

import sys
from pathlib import Path

from tune.data import DataReport, Examples
from tune.data.cache import DataCache

KEY = "7" * 40


def fill(writer):
    examples = Examples(700)
    examples.append([1, 2, 3, 699], [0.0, 1.0, 0.5, 1.0])
    examples.append([4, 5, 6], [0.0, 1.0, 1.0])
    writer.extend(examples)
    return DataReport(num_examples=2)


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()
    sys.stdin.readline()


def fill_slowly(writer):
    report = fill(writer)
    say("written")
    return report


if __name__ == "__main__":
    store, report = DataCache(Path(sys.argv[1]), 1 << 40).load(KEY, "x", 700, fill_slowly)
    say(len(store), store.example(1), report.num_examples)
