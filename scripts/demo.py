"""The demo: fine-tune the bundled tiny Llama on this machine's CPU, and see what it learnt.

    python scripts/demo.py        (or `make demo`, which makes the environment first)
    python scripts/demo.py --lora    the same with LoRA: the model stays as it is, small adapters beside it learn
    python scripts/demo.py --preference    another lesson: of two ways to go on, which is better

It types the ordinary commands for you and shows them: `tune run full_finetune` (or `lora_finetune`), then `tune eval`,
which gives 300 held-out orders to the model as it came and as it is now, then `tune run generate`. Everything lands in
./out/tiny (or ./out/tiny_lora); the exit code is 1 if fewer than nine answers in ten are right to the letter, with
LoRA fewer than eight.
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
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "recipes" / "bundled"
BASE_MODEL = BUNDLED / "tiny_llama"
HELD_OUT = BUNDLED / "orders" / "held_out.jsonl"


class Lesson(NamedTuple):
    """How the model is taught: the recipe and its config, where that writes to, and the score it promises."""

    recipe: str
    config: str
    output: Path
    goal: float
    variation: str  # an override to try next
    variation_output: str
    overrides: tuple[str, ...] = ()


FULL = Lesson("full_finetune", "tiny/full_finetune", Path("out/tiny"), 0.9, "lr=1e-4", "out/slower")
LORA = Lesson("lora_finetune", "tiny/lora_finetune", Path("out/tiny_lora"), 0.8, "lora_rank=2", "out/smaller")


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
    if not _make_room(output):
        return 1
    _print_introduction(output)
    output.mkdir(parents=True, exist_ok=True)

    _title("1. Fine-tuning, with the ordinary command")
    print("The model has only ever read what a parrot says. Now it reads orders, with answers.\n")
    training_started = time.monotonic()
    if _run(["run", lesson.recipe, "--config", lesson.config, *lesson.overrides]) != 0:
        print("\nThe training stopped with the error above; nothing more to show.", file=sys.stderr)
        return 1
    training_seconds = time.monotonic() - training_started

    _title("2. Before and after, on orders that it has not seen")
    scored = _score(output)
    if scored is None:
        print("\nThe scoring stopped with the error above; nothing more to show.", file=sys.stderr)
        return 1
    score, before, after = scored
    _print_examples(before, after)

    _title("3. The saved model, asked with the ordinary command")
    exit_code = _ask_by_command(output, after)
    _print_ending(lesson, training_seconds)
    if score < lesson.goal:
        print(
            f"The score after tuning is {score:.1%}; the demo promises {lesson.goal:.0%}.",
            file=sys.stderr,
        )
        return 1
    return exit_code


def _score(output: Path) -> tuple[float, list[dict[str, Any]], list[dict[str, Any]]] | None:
    """Return the share of held-out orders that a run answers right, the answers before and after; None on failure."""
    scores = output / "evaluations" / "held_out"
    words = [f"model_checkpoint={output}", f"output_dir={scores}", "log_level=WARNING"]
    if _run(["eval", "--config", "tiny/evaluate", *words]) != 0:
        return None
    said = json.loads((scores / "scores.json").read_text(encoding="utf-8"))
    before, after = (_read_rows(scores / name) for name in ("answers_before.jsonl", "answers.jsonl"))
    return said["all"]["scores"]["exact_match"]["value"], before, after


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


def _read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _run(arguments: Sequence[str], stdin: str | None = None) -> int:
    """Show a `tune` command as a person would type it, and run it."""
    print(f"$ tune {shlex.join(arguments)}\n", flush=True)
    done = subprocess.run([sys.executable, "-m", "tune", *arguments], input=stdin, text=True, check=False)
    return done.returncode


def _print_examples(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> None:
    """Print the first held-out order of each kind, with the answers before and after; and what is still wrong."""
    kinds = [row["group"] for row in after]
    shown = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    cells = [("order", "words", "before", "after")]
    cells += [
        (*_order(after[i]), _shorten(before[i].get("answer", ""), 24), after[i].get("answer", ""))
        for i in shown
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    print("\nWords it has never seen in a row:\n")
    for number, line in enumerate(cells):
        mark = " " if number == 0 else _mark(_is_right(after[shown[number - 1]]))
        print(f"  {'   '.join(cell.ljust(width) for cell, width in zip(line, widths))}   {mark} {line[3]}")
        if number == 0:
            print("  " + "   ".join("-" * width for width in [*widths, 30]))
    wrong = [row for row in after if not _is_right(row)]
    if wrong:
        print("\nWhat it still gets wrong, for example:\n")
    for row in wrong[:2]:
        order, words = _order(row)
        print(f"    {words} | {order}  ->  {row['answer']}  (should be: {row['reference']})")


def _order(row: dict[str, Any]) -> tuple[str, str]:
    return row["values"]["instruction"], row["values"]["input"]


def _is_right(row: dict[str, Any]) -> bool:
    return bool(row["scores"]["exact_match"] == 1.0)


def _ask_by_command(output: Path, rows: Sequence[dict[str, Any]]) -> int:
    order, words = _order(next(row for row in rows if row["group"] == "backwards"))
    return _run(["run", "generate", str(output), "max_new_tokens=24", f"prompt={order}\n\n{words}"])


def _print_ending(lesson: Lesson, training_seconds: float) -> None:
    output = lesson.output
    _title(f"Done. Training took {training_seconds:.0f} seconds from start to saved model. What is where:")
    rows = [
        (str(output / "latest" / "model"), "the tuned model, in Hugging Face layout"),
        (str(output / "report.html"), "the run on one page, to open in a browser"),
        (str(output / "loss_curve.png"), "the loss curve: each point is the mean since the one before"),
        (str(output / "metrics.jsonl"), "each logged line: loss, rate, tokens per second"),
        (str(output / "config.yaml"), "the full configuration, and where each value came from"),
        (str(output / "evaluations"), "scores.json, and every held-out order with its answers"),
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
