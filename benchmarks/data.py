"""What tokenizing a conversation takes, with its mask, beside transformers' `apply_chat_template` and `datasets.map`.

    python -m benchmarks.data --rounds 7 --output benchmarks/results/data_cpu.json

A byte-level BPE tokenizer is trained on made-up words. For each template and number of turns, contestants tokenize the
same conversations in turn, each round beginning with another one; processor time of one process counts. tune derives
which tokens are learnt; transformers gives ids alone, for `datasets.map` into a table. Where a conversation makes one
example, its ids must be those of transformers, or the script ends without figures; where a template rewrites earlier
answers (`thinking`), tune writes one example for each answer, and the tokens of all of them are counted.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.setting import describe_machine, write_figures
from tune.tokenizers import Message, from_checkpoint
from tune.tokenizers.chat_template import ChatTemplate, tokenize_weighted

NUM_WORDS, VOCAB_SIZE = 20_000, 20_000
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    + ASK,
    # Writes a thought, an empty one perhaps, into the last answer alone.
    "thinking": """{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- set said = m.content.split('</think>')[-1].lstrip('\n') %}
    {{- '<|im_start|>' + m.role + '\n' }}
    {%- if m.role == 'assistant' and loop.index0 > ns.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
    {{- said + '<|im_end|>\n' }}
{%- endfor %}"""
    + ASK,
}


def make_words() -> list[str]:
    """Return words of one to four syllables, some more often than others."""
    rng = random.Random(3)
    syllables = [first + second for first in "bcdfghklmnprstvw" for second in "aeiou"]
    return ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(NUM_WORDS)]


def make_tokenizer(folder: Path, words: list[str]) -> None:
    """Write a tokenizer.json with chat tokens into a folder."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS_SPLIT), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    rng = random.Random(1)
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((" ".join(rng.choices(words, k=200)) for _ in range(1000)), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def make_conversations(
    words: list[str], num_rows: int, num_turns: int, num_words: int
) -> list[list[Message]]:
    """Return conversations of so many messages of so many words, those of the user not to be learnt."""
    rng = random.Random(num_turns)
    return [
        [
            Message(role, " ".join(rng.choices(words, k=num_words)).capitalize() + ".", masked=role == "user")
            for _ in range(num_turns // 2)
            for role in ("user", "assistant")
        ]
        for _ in range(num_rows)
    ]


def measure(
    contestants: dict[str, Callable[[], Any]], num_rows: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Return the processor seconds of each contestant for a row: the median of the rounds, and the least."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for index in range(rounds + 1):
        for name in order:
            started = time.process_time()
            contestants[name]()
            if index:
                seconds[name].append((time.process_time() - started) / num_rows)
        order = order[1:] + order[:1]
    return {
        name: {
            "ms_per_row": 1000 * statistics.median(taken),
            "least_ms_per_row": 1000 * min(taken),
            "rows_per_s": 1 / statistics.median(taken),
        }
        for name, taken in seconds.items()
    }


def compare(folder: Path, template: str, rows: list[list[Message]], rounds: int) -> dict[str, Any]:
    """Return what all contestants take for the same conversations.

    Raises:
        SystemExit: their ids differ.
    """
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    datasets.disable_caching()
    ours, theirs = from_checkpoint(folder), AutoTokenizer.from_pretrained(folder)
    chat = ChatTemplate(TEMPLATES[template], template, is_builtin=True)
    theirs.chat_template = TEMPLATES[template]
    plain = [[message.to_dict() for message in row] for row in rows]
    table = datasets.Dataset.from_list([{"messages": row} for row in plain])

    def ids(messages: list[dict[str, Any]]) -> list[int]:
        return list(theirs.apply_chat_template(messages, tokenize=True, return_dict=False))

    examples = [tokenize_weighted(ours, chat, row) for row in rows]
    if any(found[-1][0] != ids(row) for found, row in zip(examples, plain, strict=True)):
        raise SystemExit("the contestants did not do the same work: their ids differ")
    results = measure(
        {
            "tune, with masks": lambda: [tokenize_weighted(ours, chat, row) for row in rows],
            "apply_chat_template": lambda: [ids(row) for row in plain],
            "datasets.map": lambda: table.map(lambda row: {"ids": ids(row["messages"])}),
        },
        len(rows),
        rounds,
    )
    num_tokens = sum(len(tokens) for found in examples for tokens, _ in found)
    ratio = results["tune, with masks"]["ms_per_row"] / results["apply_chat_template"]["ms_per_row"]
    return {
        "template": template,
        "turns": len(rows[0]),
        "examples_per_row": len(examples[0]),
        "tokens_per_row": num_tokens / len(rows),
        "time_over_apply_chat_template": ratio,
        "results": results,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--templates", nargs="+", choices=TEMPLATES, default=list(TEMPLATES))
    parser.add_argument("--turns", type=int, nargs="+", default=[4, 20, 40, 400])
    parser.add_argument("--words", type=int, default=120, help="in a message; a sixth from 100 turns on")
    parser.add_argument("--rows", type=int, default=24, help="conversations of 4 turns; fewer longer ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--note", default="", help="kept with the figures, such as who shares the machine")
    parser.add_argument("--output", help="also write the figures to this JSON file")
    arguments = parser.parse_args(argv)
    words = make_words()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer(Path(folder), words)
        for template in arguments.templates:
            for turns in arguments.turns:
                num_rows = max(1, arguments.rows * 4 // turns)
                num_words = arguments.words if turns < 100 else max(1, arguments.words // 6)
                rows = make_conversations(words, num_rows, turns, num_words)
                runs.append(compare(Path(folder), template, rows, arguments.rounds))
    write_figures(
        {
            "command": f"python -m benchmarks.data {' '.join(sys.argv[1:] if argv is None else argv)}",
            "machine": describe_machine("cpu"),
            "note": arguments.note,
            "runs": runs,
        },
        arguments.output,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
