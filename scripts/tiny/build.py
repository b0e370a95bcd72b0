"""Make the bundled tiny model from nothing: corpus, tokenizer, pre-training, export, fine-tuning data.

    python scripts/tiny/build.py            everything, about ten minutes on two cores
    python scripts/tiny/build.py data       only recipes/bundled/stories (seconds)

Everything random has a fixed seed. The same machine and torch give the same bytes again; other ones give the same
text and tokenizer, and weights that differ in their last digits.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path
from random import Random

from questions import Question, ask, kinds_for
from stories import draw_first_text, draw_story, draw_text

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "out" / "tiny_pretrain"
MODEL = ROOT / "recipes" / "bundled" / "tiny_llama"
STORIES = ROOT / "recipes" / "bundled" / "stories"

VOCAB_SIZE = 1024
NUM_FIRST_TEXTS = 16_000  # short ones, which come first
NUM_TEXTS = 80_000
NUM_TRAIN = 6_000
NUM_HELD_OUT = 300
# Far more questions than are kept: the tokenizer is to know the words of all of them.
NUM_TOKENIZER_QUESTIONS = 20_000


def draw_questions(seed: int, count: int, held_out: bool) -> Iterator[Question]:
    """Draw questions of all kinds in turn, each about a story of its own."""
    rng = Random(seed)
    for kind in islice(cycle(kinds_for()), count):
        story = draw_story(rng, held_out)
        while kind not in kinds_for(story):
            story = draw_story(rng, held_out)
        yield ask(rng, story, kind)


def draw_showcase(seed: int) -> Iterator[Question]:
    """Draw one held-out story of three friends with one question of every kind: what the demo shows."""
    rng = Random(seed)
    story = draw_story(rng, held_out=True)
    while len(story.friends) < 3 or kinds_for(story) != kinds_for():
        story = draw_story(rng, held_out=True)
    for kind in kinds_for():
        yield ask(rng, story, kind)


def write_data(folder: Path = STORIES) -> None:
    """Write train.jsonl and held_out.jsonl, whose first lines are the showcase."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_jsonl(folder / "train.jsonl", map(_as_row, draw_questions(11, NUM_TRAIN, held_out=False)))
    held_out = list(draw_showcase(12))
    held_out += draw_questions(13, NUM_HELD_OUT - len(held_out), held_out=True)
    _write_jsonl(folder / "held_out.jsonl", map(_as_row, held_out))


def draw_corpus(rng: Random) -> Iterator[str]:
    """Draw the texts of pre-training, in the order in which they are to be read: the easy ones first."""
    for number in range(NUM_TEXTS):
        yield draw_first_text(rng) if number < NUM_FIRST_TEXTS else draw_text(rng)


def write_corpus() -> None:
    """Write the texts of pre-training."""
    WORK.mkdir(parents=True, exist_ok=True)
    _write_jsonl(WORK / "corpus.jsonl", ({"text": text} for text in draw_corpus(Random(1))))


def train_tokenizer() -> None:
    """Train a SentencePiece BPE tokenizer of Llama's kind: single digits, bytes for what it has no piece for."""
    from sentencepiece import SentencePieceTrainer

    rng = Random(2)
    lines = [draw_text(rng) for _ in range(NUM_TOKENIZER_QUESTIONS)]
    for question in draw_questions(3, NUM_TOKENIZER_QUESTIONS, held_out=False):
        lines += [f"Question: {question.instruction}", f"Answer: {question.answer}"]
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(WORK / "tokenizer"),
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


def pretrain() -> None:
    """Run pre-training with the ordinary recipe, from an empty output folder."""
    shutil.rmtree(WORK / "run", ignore_errors=True)
    command = [sys.executable, "-m", "tune", "run", "full_finetune", "--config", "tiny/pretrain"]
    subprocess.run(command, cwd=ROOT, check=True)


def export() -> None:
    """Copy the pre-trained model, as it was saved, to where the bundle is."""
    shutil.rmtree(MODEL, ignore_errors=True)
    shutil.copytree(WORK / "run" / "latest" / "model", MODEL)


def _as_row(question: Question) -> dict[str, str]:
    return {
        "kind": question.kind,
        "instruction": question.instruction,
        "input": question.story,
        "output": question.answer,
    }


def _write_jsonl(file: Path, rows: Iterable[dict[str, str]]) -> None:
    with file.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"wrote {file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}")


STEPS = {
    "data": write_data,
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
