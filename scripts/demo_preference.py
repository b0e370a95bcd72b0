"""The demo of preference tuning: a parrot that says a thing over and over learns to say it once.

    python scripts/demo.py --preference

Everything lands in ./out/tiny_dpo; the exit code is 1 if it says fewer than eight in ten of the held-out rows of words
once, and right to the letter.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from demo import BASE_MODEL, BUNDLED, _make_room, _run, _title

HELD_OUT = BUNDLED / "manners" / "held_out.jsonl"
OUTPUT = Path("out/tiny_dpo")
GOAL = 0.8
MAX_NEW_TOKENS = 96
_NUM_SHOWN = 4


def run() -> int:
    """Answer held-out prompts, tune, answer them again, and show the difference; return the exit code."""
    started = time.monotonic()
    if not _make_room(OUTPUT):
        return 1
    from tune.utils.logging import get_logger

    get_logger("WARNING")
    rows = [json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    _title("1. Before: the parrot as it comes")
    before = _answer_all(BASE_MODEL, rows)
    _print_answers(rows, before)

    _title("2. Preference tuning, with the ordinary command")
    if _run(["run", "preference_finetune", "--config", "tiny/dpo"]) != 0:
        print("\nThe training stopped with the error above; nothing more to show.", file=sys.stderr)
        return 1

    _title("3. After: the same rows of words")
    after = _answer_all(OUTPUT / "latest" / "model", rows)
    _print_answers(rows, after)
    scores = [_count_once(rows, answers) / len(rows) for answers in (before, after)]
    lines = (OUTPUT / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    print(
        f"\nMargin between the two ways to go on: {first['margin']:.2f} at first, {last['margin']:.2f} at last."
    )
    metrics = {
        "said_once_before": scores[0],
        "said_once_after": scores[1],
        "times_said_before": _mean_times(rows, before),
        "times_said_after": _mean_times(rows, after),
        "total_seconds": round(time.monotonic() - started, 1),
    }
    (OUTPUT / "demo.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    _title(f"Done in {metrics['total_seconds']:.0f} seconds. Now you:")
    print("  tune cat tiny/dpo")
    print("  tune preview tiny/dpo")
    print("  tune run preference_finetune --config tiny/dpo loss.sft_weight=0 output_dir=out/way_around")
    if scores[1] < GOAL:
        print(f"It says {scores[1]:.0%} once; the demo promises {GOAL:.0%}.", file=sys.stderr)
        return 1
    return 0


def _answer_all(model_folder: Path, rows: Sequence[dict[str, str]]) -> list[str]:
    from tune.generation import generate_batch
    from tune.models import from_checkpoint
    from tune.tokenizers import from_checkpoint as tokenizer_from_checkpoint

    tokenizer = tokenizer_from_checkpoint(model_folder)
    prompts = [tokenizer.encode(row["prompt"], add_eos=False) for row in rows]
    stop_ids = sorted(tokenizer.stop_ids)
    ids = generate_batch(
        from_checkpoint(model_folder), prompts, max_new_tokens=MAX_NEW_TOKENS, stop_ids=stop_ids
    )
    return [tokenizer.decode(answer).strip() for answer in ids]


def _count_once(rows: Sequence[dict[str, str]], answers: Sequence[str]) -> int:
    return sum(answer == row["chosen"].strip() for row, answer in zip(rows, answers, strict=True))


def _mean_times(rows: Sequence[dict[str, str]], answers: Sequence[str]) -> float:
    """Return how often a row of words is said, on average."""
    said = [row["chosen"].strip().removesuffix(". Squawk!") for row in rows]
    return sum(answer.count(words) for words, answer in zip(said, answers, strict=True)) / len(rows)


def _print_answers(rows: Sequence[dict[str, str]], answers: Sequence[str]) -> None:
    for row, answer in list(zip(rows, answers, strict=True))[:_NUM_SHOWN]:
        print(f"  {row['prompt']}\n    -> {' '.join(answer.split())}")
    once, times = _count_once(rows, answers), _mean_times(rows, answers)
    print(f"\nSaid once, and right to the letter: {once} of {len(rows)}; {times:.2f} times on average.")
