"""Published data sets under their names: their columns, their templates, any other source in their place."""

from __future__ import annotations

import json

import pytest

from tune.data import CROSS_ENTROPY_IGNORE_IDX
from tune.data.hub import read_hub
from tune.datasets import (
    PackedDataset,
    chat_dataset,
    cnn_dailymail_articles_dataset,
    grammar_dataset,
    instruct_dataset,
    samsum_dataset,
    slimorca_dataset,
    text_completion_dataset,
    wikitext_dataset,
)
from tune.errors import ConfigError, DataError
from tune.tokenizers import SentencePieceTokenizer

TURNS = [
    {"from": "system", "value": "the river"},
    {"from": "human", "value": "seven apples"},
    {"from": "gpt", "value": "green"},
]


@pytest.fixture(scope="module")
def tokenizer(spm_file):
    return SentencePieceTokenizer(spm_file)


@pytest.fixture
def write(tmp_path):
    def to_file(*rows):
        file = tmp_path / "data.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    return to_file


def learnt(tokenizer, item):
    return tokenizer.decode([label for label in item["labels"] if label != CROSS_ENTROPY_IGNORE_IDX], False)


def test_slimorca_is_conversations(tokenizer, write):
    file = write({"conversations": TURNS}, {"conversations": TURNS[1:]})
    dataset = slimorca_dataset(tokenizer, source=file)
    assert [*dataset] == [*chat_dataset(tokenizer, source=file)]
    assert [learnt(tokenizer, item) for item in dataset] == ["green </s>", "green </s>"]
    whole = slimorca_dataset(tokenizer, source=file, train_on_input=True)[0]
    assert whole["labels"] == [CROSS_ENTROPY_IGNORE_IDX, *whole["tokens"][1:]]
    replaced = slimorca_dataset(tokenizer, source=file, new_system_prompt="walk")
    assert "walk" in tokenizer.decode(replaced[1]["tokens"])
    assert isinstance(slimorca_dataset(tokenizer, source=file, packed=True, max_seq_len=50), PackedDataset)


def test_its_column_may_have_another_name(tokenizer, write):
    file = write({"turns": TURNS})
    assert len(slimorca_dataset(tokenizer, source=file, column_map={"conversations": "turns"})) == 1
    assert len(slimorca_dataset(tokenizer, source=file, column_map={"messages": "turns"})) == 1
    with pytest.raises(ConfigError, match="no part 'turns'; parts are messages, answer, system, tools"):
        slimorca_dataset(tokenizer, source=file, column_map={"turns": "turns"})


def test_instructions_have_their_columns_and_templates(tokenizer, spm_file, write):
    chats = write({"id": 3, "dialogue": "seven apples", "summary": "green"})
    samsum = samsum_dataset(tokenizer, source=chats)
    assert tokenizer.decode(samsum[0]["tokens"]) == (
        "Summarize this dialogue:\nseven apples\n---\nSummary:\ngreen"
    )
    assert learnt(tokenizer, samsum[0]) == "green</s>"
    sentences = write({"input": "seven apple", "output": "seven apples"})
    grammar = grammar_dataset(tokenizer, source=sentences)
    assert grammar.report().template == "grammar_error_correction"
    # What is said wins, then what the tokenizer says.
    plain = grammar_dataset(tokenizer, source=sentences, prompt_template="plain")
    assert [*plain] == [*instruct_dataset(tokenizer, source=sentences, prompt_template="plain")]
    other = SentencePieceTokenizer(spm_file, prompt_template="llama2_chat")
    assert grammar_dataset(other, source=sentences).report().template == "llama2_chat"
    # A map of one's own replaces the name of the one column it speaks of.
    mine = write({"talk": "seven apples", "summary": "green"})
    assert [*samsum_dataset(tokenizer, source=mine, column_map={"input": "talk"})] == [*samsum]


@pytest.mark.parametrize(
    ("build", "column"), [(wikitext_dataset, "page"), (cnn_dailymail_articles_dataset, "article")]
)
def test_articles_are_plain_text(tokenizer, write, build, column):
    file = write({column: "the river of seven apples", "highlights": "walk"})
    dataset = build(tokenizer, source=file)
    assert [*dataset] == [*text_completion_dataset(tokenizer, source=file, column=column)]
    assert dataset[0]["labels"] == dataset[0]["tokens"]


def test_a_dataset_that_is_a_script_is_explained(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "corpus.py").write_text("raise SystemExit('run')\n")
    with pytest.raises(DataError, match=r"scripts are no longer supported.*dataset\.source"):
        list(read_hub(str(tmp_path / "corpus"), "train", None, None).unmade())
