"""Plain text: every token learnt once, whatever the length of a chunk."""

from __future__ import annotations

import json

import pytest

from tune.datasets import TextCompletionDataset, text_completion_dataset
from tune.errors import ConfigError, DataError
from tune.tokenizers import SentencePieceTokenizer

TEXTS = ["the river of seven apples", "walk", "a green answer\n\nand a question " * 9]


@pytest.fixture(scope="module")
def tokenizer(spm_file):
    return SentencePieceTokenizer(spm_file)


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text(
        "".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(TEXTS))
    )
    return str(file)


def test_documents_between_bos_and_eos_are_learnt_completely(tokenizer, file):
    dataset = text_completion_dataset(tokenizer, source=file)
    assert [item["tokens"] for item in dataset] == [tokenizer.encode(text) for text in TEXTS]
    assert all(item["labels"] == item["tokens"] for item in dataset)
    assert dataset.report().num_target_tokens == sum(len(item["tokens"]) - 1 for item in dataset)
    assert dataset.render_prompt("the") == "the"
    assert text_completion_dataset(tokenizer, source=file, add_eos=False)[1]["tokens"] == tokenizer.encode(
        "walk", add_eos=False
    )


@pytest.mark.parametrize("max_seq_len", [2, 3, 7, 16, 1000])
def test_chunks_learn_every_token_but_the_first_exactly_once(tokenizer, file, max_seq_len):
    dataset = text_completion_dataset(tokenizer, source=file, max_seq_len=max_seq_len)
    learnt = [token for item in dataset for token in item["labels"][1:]]
    assert learnt == [token for text in TEXTS for token in tokenizer.encode(text)[1:]]
    assert all(2 <= len(item["tokens"]) <= max_seq_len for item in dataset)
    assert dataset.report().num_target_tokens == len(learnt)
    assert dataset.report().num_truncated == 0


def test_text_files(tokenizer, tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("the river\nwalk\n\nseven\n")

    def texts(**options):
        dataset = text_completion_dataset(tokenizer, source=str(file), **options)
        return [tokenizer.decode(item["tokens"]) for item in dataset]

    assert texts() == ["the river\nwalk\n\nseven\n"]
    assert texts(text_unit="paragraph") == ["the river\nwalk", "seven"]
    assert texts(text_unit="line") == ["the river", "walk", "seven"]


def test_packed_text_keeps_documents_whole(tokenizer, file):
    dataset = text_completion_dataset(tokenizer, source=file, max_seq_len=40, packed=True)
    assert sum(item["input_pos"].count(0) for item in dataset) == dataset.report().num_examples
    assert dataset.report().num_packs == len(dataset) < dataset.report().num_examples


def test_faulty_texts_are_listed(tokenizer):
    rows = [{"text": "the"}, {"text": " "}, {"text": None}, {"text": "half \ud83d"}]
    with pytest.raises(
        DataError, match=r"3 rows(.|\n)*row 2: column 'text' is empty(.|\n)*row 3: .*null(.|\n)*row 4"
    ):
        TextCompletionDataset(tokenizer, source=rows)
    dataset = TextCompletionDataset(tokenizer, source=rows, on_bad_rows="drop")
    assert len(dataset) == 1
    with pytest.raises(ConfigError, match=r"dataset\.column is 'txt'"):
        TextCompletionDataset(tokenizer, source=rows, column="txt")
