"""What becomes of examples longer than the limit: cut, dropped, an error, or split with nothing lost."""

from __future__ import annotations

import json

import pytest

from tune.datasets import (
    alpaca_dataset,
    chat_dataset,
    grammar_dataset,
    instruct_dataset,
    text_completion_dataset,
    tokenized_dataset,
    wikitext_dataset,
)
from tune.errors import ConfigError, DataError
from tune.tokenizers import SentencePieceTokenizer, from_checkpoint

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}<|sep|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|sep|>{% endif %}"
)
SYSTEM = {"role": "system", "content": "apple"}


def exchange(number):
    answer = "twelve seven " * (number + 1)
    return [
        {"role": "user", "content": f"question {number}"},
        {"role": "assistant", "content": f"{answer}{number}"},
    ]


@pytest.fixture
def tokenizer(spm_file):
    return SentencePieceTokenizer(spm_file)


@pytest.fixture
def write(tmp_path):
    def write(*rows):
        file = tmp_path / "data.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    return write


def learnt(tokenizer, dataset):
    return [
        tokenizer.decode([label for label in item["labels"] if label >= 0], skip_special=False)
        for item in dataset
    ]


def read(tokenizer, dataset):
    return [tokenizer.decode(item["tokens"], skip_special=False) for item in dataset]


def test_a_conversation_is_parted_where_the_user_speaks(chat_folder, write):
    tokenizer = from_checkpoint(chat_folder(TEMPLATE))
    turns = [SYSTEM, *(message for number in range(7) for message in exchange(number))]
    source = write({"messages": turns})
    whole = chat_dataset(tokenizer, source=source)
    limit = len(whole[0]["tokens"]) // 2
    split = chat_dataset(tokenizer, source=source, max_seq_len=limit, on_too_long="split")
    assert len(split) > 1
    assert all(len(item["tokens"]) <= limit for item in split)
    assert all(
        text.startswith("<|start|>system<|sep|>apple<|end|><|start|>user") for text in read(tokenizer, split)
    )
    assert "".join(learnt(tokenizer, split)) == learnt(tokenizer, whole)[0]
    report = split.report()
    assert (report.num_split, report.num_truncated, report.num_examples) == (1, 0, len(split))
    assert report.num_target_tokens == whole.report().num_target_tokens
    assert "1 examples are longer" in str(report)
    assert "(on_too_long=split)" in str(report)
    # What fits is the same, and one exchange by itself comes in pieces of tokens.
    fits = chat_dataset(tokenizer, source=source, max_seq_len=5000, on_too_long="split")
    assert list(fits) == list(whole)
    tight = chat_dataset(tokenizer, source=source, max_seq_len=16, on_too_long="split")
    assert "".join(learnt(tokenizer, tight)) == learnt(tokenizer, whole)[0]
    assert all(any(label >= 0 for label in item["labels"][1:]) for item in tight)


def test_an_answer_of_one_exchange_comes_in_pieces(tokenizer, write):
    row = {"question": "the river", "answer": "seven green apples walk " * 9}
    source = write(row, {"question": "walk", "answer": "x"})
    whole = instruct_dataset(tokenizer, source=source)
    split = instruct_dataset(tokenizer, source=source, max_seq_len=20, on_too_long="split")
    tokens = whole[0]["tokens"]
    pieces = [item["tokens"] for item in split][:-1]
    assert pieces[0] == tokens[:20]
    assert [token for piece in pieces for token in piece[1:]] == tokens[
        1 : 1 + sum(len(p) - 1 for p in pieces)
    ]
    labels = [label for item in split for label in item["labels"][1:] if label >= 0]
    assert labels == [label for item in whole for label in item["labels"][1:] if label >= 0]
    assert split[len(split) - 1] == whole[1]


BUILDERS = [
    (instruct_dataset, {"question": "the river", "answer": "WORDS"}),
    (alpaca_dataset, {"instruction": "the river", "output": "WORDS"}),
    (grammar_dataset, {"input": "the river", "output": "WORDS"}),
    (
        chat_dataset,
        {"messages": [{"role": "user", "content": "walk"}, {"role": "assistant", "content": "WORDS"}]},
    ),
    (text_completion_dataset, {"text": "WORDS"}),
    (tokenized_dataset, {"segments": [{"text": "walk", "label": False}, {"text": "WORDS", "label": True}]}),
    (wikitext_dataset, {"page": "WORDS"}),
]


@pytest.mark.parametrize(("build", "row"), BUILDERS)
def test_every_builder_can_do_each(tokenizer, write, build, row):
    def of(words):
        return json.loads(json.dumps(row).replace("WORDS", words))

    source = write(of("green"), of("seven green apples walk " * 50), of("walk"))
    template = {"prompt_template": "llama2_chat"} if build is chat_dataset else {}
    arguments = {"source": source, "max_seq_len": 100, **template}
    short, long, last = build(tokenizer, **{**arguments, "max_seq_len": 5000})
    assert len(long["tokens"]) > 200
    cut = build(tokenizer, **arguments, on_too_long="cut")
    assert list(cut) == [short, {key: ids[:100] for key, ids in long.items()}, last]
    assert (cut.report().num_truncated, cut.report().num_tokens_cut) == (1, len(long["tokens"]) - 100)
    drop = build(tokenizer, **arguments, on_too_long="drop")
    assert list(drop) == [short, last]
    assert "1 examples are longer than max_seq_len=100" in str(drop.report())
    with pytest.raises(
        DataError, match=r"data\.jsonl:2: [\d,]+ tokens(.|\n)*on_too_long to cut, drop or split"
    ):
        build(tokenizer, **arguments, on_too_long="error", on_bad_rows="drop")
    split = list(build(tokenizer, **arguments, on_too_long="split"))
    assert split[0] == short
    assert split[-1] == last
    targets = [label for item in split[1:-1] for label in item["labels"][1:] if label >= 0]
    assert targets == [label for label in long["labels"][1:] if label >= 0]
    default = "split" if "text" in row or "page" in row else "cut"
    assert list(build(tokenizer, **arguments)) == list(build(tokenizer, **arguments, on_too_long=default))


def test_nothing_left_is_told(tokenizer, write):
    source = write({"question": "the river", "answer": "walk " * 50})
    with pytest.raises(
        DataError, match=r"all 1 examples are longer than max_seq_len=10, and dataset\.on_too_long is"
    ):
        instruct_dataset(tokenizer, source=source, max_seq_len=10, on_too_long="drop")
    with pytest.raises(ConfigError, match="on_too_long is 'trim', expected one of cut, drop, error, split"):
        instruct_dataset(tokenizer, source=source, on_too_long="trim")
