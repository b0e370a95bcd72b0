"""Make the bundled tiny model from nothing: corpus, tokenizer, pre-training, export, fine-tuning data.

    python scripts/tiny/build.py            everything, about two minutes on two cores
    python scripts/tiny/build.py data       only recipes/bundled/orders (seconds)
    python scripts/tiny/build.py pairs      only recipes/bundled/manners (seconds)

Everything random has a fixed seed. Another machine or torch gives the same texts and tokenizer, and weights that
differ in their last digits.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path
from random import Random

from parrot import ORDERS, Task, draw_pair, draw_task, draw_text

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "out" / "tiny_pretrain"
MODEL = ROOT / "recipes" / "bundled" / "tiny_llama"
DATA = ROOT / "recipes" / "bundled" / "orders"
PAIRS = ROOT / "recipes" / "bundled" / "manners"

VOCAB_SIZE = 768
NUM_TEXTS = 24_000
NUM_TRAIN = 16_000
NUM_HELD_OUT = 300
NUM_PAIRS, NUM_PAIRS_HELD_OUT = 1_280, 100


def draw_tasks(seed: int, count: int, held_out: bool) -> Iterator[Task]:
    """Draw orders of all kinds in turn, each about a row of its own."""
    rng = Random(seed)
    for kind in islice(cycle(ORDERS), count):
        yield draw_task(rng, kind, held_out)


def write_data(folder: Path = DATA) -> None:
    """Write train.jsonl and held_out.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_jsonl(folder / "train.jsonl", map(_as_row, draw_tasks(5, NUM_TRAIN, held_out=False)))
    _write_jsonl(folder / "held_out.jsonl", map(_as_row, draw_tasks(7, NUM_HELD_OUT, held_out=True)))


def write_pairs(folder: Path = PAIRS) -> None:
    """Write train.jsonl and held_out.jsonl of the pairs that manners are learnt from."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed, count, held_out in (
        ("train", 11, NUM_PAIRS, False),
        ("held_out", 13, NUM_PAIRS_HELD_OUT, True),
    ):
        rng = Random(seed)
        _write_jsonl(folder / f"{name}.jsonl", (vars(draw_pair(rng, held_out)) for _ in range(count)))


def write_corpus() -> None:
    """Write the texts of pre-training."""
    WORK.mkdir(parents=True, exist_ok=True)
    rng = Random(1)
    _write_jsonl(WORK / "corpus.jsonl", ({"text": draw_text(rng)} for _ in range(NUM_TEXTS)))


def train_tokenizer() -> None:
    """Train a SentencePiece BPE tokenizer of Llama's kind: single digits, bytes for what it has no piece for."""
    from sentencepiece import SentencePieceTrainer

    rng = Random(2)
    model = io.BytesIO()
    lines = [line for _ in range(4_000) for line in draw_text(rng).splitlines()]
    for task in draw_tasks(3, 8_000, held_out=False):
        lines.append(f"Question: {task.instruction} Answer: {task.answer}")
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        # Given a file name, the model would carry this machine's path inside.
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        # Pieces for all of ASCII, so that texts of other people do not fall apart into bytes.
        required_chars="".join(map(chr, range(33, 127))),
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=1,
    )
    (WORK / "tokenizer.model").write_bytes(model.getvalue())


def pretrain() -> None:
    """Run pre-training with the ordinary recipe, from an empty output folder."""
    shutil.rmtree(WORK / "run", ignore_errors=True)
    command = [sys.executable, "-m", "tune", "run", "full_finetune", "--config", "tiny/pretrain"]
    subprocess.run(command, cwd=ROOT, check=True)


def export() -> None:
    """Copy the pre-trained model, as it was saved, to where the bundle is."""
    shutil.rmtree(MODEL, ignore_errors=True)
    shutil.copytree(WORK / "run" / "latest" / "model", MODEL)


def _as_row(task: Task) -> dict[str, str]:
    return {"kind": task.kind, "instruction": task.instruction, "input": task.row, "output": task.answer}


def _write_jsonl(file: Path, rows: Iterable[dict[str, str]]) -> None:
    with file.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"wrote {file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}")


STEPS = {
    "data": write_data,
    "pairs": write_pairs,
    "corpus": write_corpus,
    "tokenizer": train_tokenizer,
    "pretrain": pretrain,
    "export": export,
}


def main(arguments: list[str]) -> int:
    unknown = [name for name in arguments if name not in STEPS]
    if unknown:
        print(f"unknown step: {', '.join(unknown)}. Steps are {', '.join(STEPS)}.", file=sys.stderr)
        return 2
    for name in arguments or STEPS:
        print(f"[{name}]", flush=True)
        STEPS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
