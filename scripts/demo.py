"""The demo: fine-tune the bundled tiny Llama on this machine's CPU, and see what it learnt.

    python scripts/demo.py        (or `make demo`, which makes the environment first)
    python scripts/demo.py --lora    the same with LoRA: the model stays as it is, small adapters beside it learn
    python scripts/demo.py --preference    another lesson: of two ways to go on, which is better

It types the ordinary commands for you and shows them: `tune run full_finetune` (or `lora_finetune`), then `tune run
generate`. In between it gives the model 300 held-out orders, before and after, and counts the answers that are right
to the letter. Everything lands in ./out/tiny (or ./out/tiny_lora); the exit code is 1 if fewer than nine answers in
ten are right, with LoRA fewer than eight.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "recipes" / "bundled"
BASE_MODEL = BUNDLED / "tiny_llama"
HELD_OUT = BUNDLED / "orders" / "held_out.jsonl"
# Longer than the longest answer, shorter than the patience for a base model that never stops.
MAX_NEW_TOKENS = 24
BATCH = 100


class Lesson(NamedTuple):
    """How the model is taught: the recipe and its config, where that writes to, and the score it promises."""

    recipe: str
    config: str
    output: Path
    goal: float
    variation: str  # an override to try next
    variation_output: str


FULL = Lesson("full_finetune", "tiny/full_finetune", Path("out/tiny"), 0.9, "lr=1e-4", "out/slower")
LORA = Lesson("lora_finetune", "tiny/lora_finetune", Path("out/tiny_lora"), 0.8, "lora_rank=2", "out/smaller")


class Exercise(NamedTuple):
    """One held-out order: its columns in the data file, and the ids of the prompt exactly as training has it."""

    kind: str
    instruction: str
    row: str
    answer: str
    prompt_ids: list[int]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fine-tune the bundled tiny Llama, and see what it learnt.")
    parser.add_argument("--lora", action="store_true", help="train small adapters beside the frozen model")
    parser.add_argument("--preference", action="store_true", help="teach it manners, by pairs of answers")
    given = parser.parse_args(arguments)
    if given.preference:
        import demo_preference

        return demo_preference.run()
    lesson = LORA if given.lora else FULL
    output = lesson.output
    started = time.monotonic()
    if not _make_room(output):
        return 1
    _print_introduction(output)
    output.mkdir(parents=True, exist_ok=True)

    from tune.utils.logging import get_logger

    get_logger("WARNING")
    exercises = _read_exercises()
    _title("1. Before: the model as it comes")
    print("It has only ever read what a parrot says, so an order makes it chatter.\n")
    before = _answer_all(BASE_MODEL, exercises)
    print(f"Right to the letter: {_count(exercises, before)} of {len(exercises)} held-out orders.")

    _title("2. Fine-tuning, with the ordinary command")
    training_started = time.monotonic()
    if _run(["run", lesson.recipe, "--config", lesson.config]) != 0:
        print("\nThe training stopped with the error above; nothing more to show.", file=sys.stderr)
        return 1
    training_seconds = time.monotonic() - training_started

    tuned_model = output / "latest" / "model"
    after = _answer_all(tuned_model, exercises)
    _title("3. After: the same orders again")
    _print_examples(exercises, before, after)
    scores = _print_scores(exercises, before, after)

    _title("4. The saved model, asked with the ordinary command")
    exit_code = _ask_by_command(tuned_model, exercises)

    losses = _read_losses(output / "metrics.jsonl")
    metrics = {
        "score_before": scores[0],
        "score_after": scores[1],
        "held_out_orders": len(exercises),
        "score_by_kind": _by_kind(exercises, after),
        "training_seconds": round(training_seconds, 1),
        "steps": losses[-1][0] if losses else 0,
        "first_loss": losses[0][1] if losses else None,
        "last_loss": losses[-1][1] if losses else None,
        "total_seconds": round(time.monotonic() - started, 1),
        "answers": [
            {"instruction": e.instruction, "input": e.row, "expected": e.answer, "before": b, "after": a}
            for e, b, a in zip(exercises, before, after, strict=True)
        ],
    }
    (output / "demo.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    _print_ending(lesson, training_seconds)
    if scores[1] < lesson.goal:
        print(
            f"The score after tuning is {scores[1]:.1%}; the demo promises {lesson.goal:.0%}.",
            file=sys.stderr,
        )
        return 1
    return exit_code


def _make_room(output: Path) -> bool:
    """Remove what an earlier demo left; refuse to touch anything else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return True
    if output.is_dir() and ((output / "metrics.jsonl").exists() or (output / "demo.json").exists()):
        print(f"(replacing {output}, left by an earlier run)")
        shutil.rmtree(output)
        return True
    print(f"{output} exists and does not look like this demo's output. Move it away first.", file=sys.stderr)
    return False


def _print_introduction(output: Path) -> None:
    sizes = {
        path: sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) for path in BUNDLED.iterdir()
    }
    examples = sum(1 for _ in (BUNDLED / "orders" / "train.jsonl").open(encoding="utf-8"))
    print("Teaching a tiny Llama, a parrot so far, to follow orders, on this machine's CPU.\n")
    print(
        f"  model  {_short(BASE_MODEL)}  ({sizes[BASE_MODEL] / 1e6:.1f} MB, pre-trained on a parrot's words)"
    )
    print(f"  data   {_short(HELD_OUT.parent)}     ({examples:,} orders about rows of words, with answers)")
    print(f"  output {output}")


def _read_exercises() -> list[Exercise]:
    """Read the held-out orders, and tokenize their prompts with the dataset that training uses."""
    from tune.datasets import instruct_dataset
    from tune.tokenizers import from_checkpoint

    template = "question_answer"
    items = instruct_dataset(from_checkpoint(BASE_MODEL), source=str(HELD_OUT), prompt_template=template)
    exercises = []
    for index, line in enumerate(HELD_OUT.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        tokens, labels = items[index]["tokens"], items[index]["labels"]
        prompt_ids = [token for token, label in zip(tokens, labels, strict=True) if label < 0]
        exercises.append(Exercise(row["kind"], row["instruction"], row["input"], row["output"], prompt_ids))
    return exercises


def _answer_all(model_folder: Path, exercises: Sequence[Exercise]) -> list[str]:
    """Answer every order greedily with the model in this folder."""
    from tune.generation import generate_batch
    from tune.models import from_checkpoint
    from tune.tokenizers import from_checkpoint as tokenizer_from_checkpoint

    model = from_checkpoint(model_folder)
    tokenizer = tokenizer_from_checkpoint(model_folder)
    answers = []
    for start in range(0, len(exercises), BATCH):
        prompts = [exercise.prompt_ids for exercise in exercises[start : start + BATCH]]
        ids = generate_batch(
            model, prompts, max_new_tokens=MAX_NEW_TOKENS, stop_ids=sorted(tokenizer.stop_ids)
        )
        answers += [tokenizer.decode(row).strip() for row in ids]
    return answers


def _count(exercises: Sequence[Exercise], answers: Sequence[str]) -> int:
    return sum(answer == exercise.answer for exercise, answer in zip(exercises, answers, strict=True))


def _by_kind(exercises: Sequence[Exercise], answers: Sequence[str]) -> dict[str, float]:
    right: dict[str, list[bool]] = {}
    for exercise, answer in zip(exercises, answers, strict=True):
        right.setdefault(exercise.kind, []).append(answer == exercise.answer)
    return {kind: sum(hits) / len(hits) for kind, hits in right.items()}


def _run(arguments: Sequence[str], stdin: str | None = None) -> int:
    """Show a `tune` command as a person would type it, and run it."""
    print(f"$ tune {shlex.join(arguments)}\n", flush=True)
    done = subprocess.run([sys.executable, "-m", "tune", *arguments], input=stdin, text=True, check=False)
    return done.returncode


def _print_examples(exercises: Sequence[Exercise], before: Sequence[str], after: Sequence[str]) -> None:
    """Print the first held-out order of each kind, with the answers before and after."""
    kinds = [exercise.kind for exercise in exercises]
    shown = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    rows = [("order", "words", "before", "after")]
    rows += [(exercises[i].instruction, exercises[i].row, _shorten(before[i], 24), after[i]) for i in shown]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    print("Words it has never seen in a row:\n")
    for number, row in enumerate(rows):
        mark = " " if number == 0 else _mark(row[3] == exercises[shown[number - 1]].answer)
        cells = "   ".join(cell.ljust(width) for cell, width in zip(row, widths))
        print(f"  {cells}   {mark} {row[3]}")
        if number == 0:
            print("  " + "   ".join("-" * width for width in [*widths, 30]))


def _print_scores(
    exercises: Sequence[Exercise], before: Sequence[str], after: Sequence[str]
) -> tuple[float, float]:
    right_before, right_after = _count(exercises, before), _count(exercises, after)
    total = len(exercises)
    print(f"\nRight to the letter, over all {total} held-out orders:\n")
    for when, right in (("before", right_before), ("after", right_after)):
        bar = "#" * round(40 * right / total)
        print(f"  {when:<6}  {bar:<40}  {right:>3} of {total}  {right / total:6.1%}")
    for kind, score in _by_kind(exercises, after).items():
        print(f"          {kind:<10} {score:6.1%}")
    wrong = [(e, answer) for e, answer in zip(exercises, after, strict=True) if answer != e.answer]
    if wrong:
        print("\nWhat it still gets wrong, for example:\n")
    for exercise, answer in wrong[:2]:
        print(f"    {exercise.row} | {exercise.instruction}  ->  {answer}  (should be: {exercise.answer})")
    return right_before / total, right_after / total


def _ask_by_command(model_folder: Path, exercises: Sequence[Exercise]) -> int:
    exercise = next(e for e in exercises if e.kind == "backwards")
    prompt = f"{exercise.instruction}\n\n{exercise.row}"
    return _run(
        ["run", "generate", f"model_checkpoint={model_folder}", "prompt_template=question_answer"]
        + ["temperature=0", "max_new_tokens=24", f"prompt={prompt}"]
    )


def _read_losses(metrics_file: Path) -> list[tuple[int, float]]:
    """Read (step, loss) from the run's own metrics."""
    rows = [json.loads(line) for line in metrics_file.read_text(encoding="utf-8").splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def _print_ending(lesson: Lesson, training_seconds: float) -> None:
    output = lesson.output
    _title(f"Done. Training took {training_seconds:.0f} seconds from start to saved model. What is where:")
    rows = [
        (str(output / "latest" / "model"), "the tuned model, in Hugging Face layout"),
        (str(output / "report.html"), "the run on one page, to open in a browser"),
        (str(output / "loss_curve.png"), "the loss curve: each point is the mean since the one before"),
        (str(output / "metrics.jsonl"), "each logged line: loss, rate, tokens per second"),
        (str(output / "config.yaml"), "the full configuration, and where each value came from"),
        (str(output / "demo.json"), "the scores, and every held-out order with its answers"),
    ]
    adapter = output / "latest" / "adapter"
    if adapter.is_dir():
        size = (adapter / "adapter_model.safetensors").stat().st_size
        rows.insert(1, (str(adapter), f"what was learnt alone, {size / 1e6:.1f} MB, as `peft` has it"))
    width = max(len(path) for path, _ in rows)
    for path, what in rows:
        print(f"  {path:<{width}}   {what}")
    print("\nNow you:\n")
    if shutil.which("tune") is None:
        print(f"  . {_short_from_here(Path(sys.executable).parent / 'activate')}")
    for command in (
        f"tune cat {lesson.config}",
        f"tune run {lesson.recipe} --config {lesson.config} {lesson.variation} output_dir={lesson.variation_output}",
        f"tune cp {lesson.recipe} my_recipe.py",
        "tune ls",
    ):
        print(f"  {command}")


def _title(text: str) -> None:
    print(f"\n{text}\n{'=' * len(text)}\n", flush=True)


def _shorten(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3].rstrip() + "..."


def _mark(right: bool) -> str:
    # A terminal that cannot show the tick must not end the demo.
    encoding = (sys.stdout.encoding or "ascii").lower()
    fancy = encoding.startswith("utf")
    return ("✓" if fancy else "+") if right else ("✗" if fancy else "x")


def _short(path: Path) -> str:
    return os.path.relpath(path, ROOT)


def _short_from_here(path: Path) -> str:
    short = os.path.relpath(path)
    return str(path) if short.startswith("..") else short


if __name__ == "__main__":
    sys.exit(main())
