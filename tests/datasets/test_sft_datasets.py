"""Datasets of instructions and conversations: what is learnt, cut, left out and reported."""

from __future__ import annotations

import json
import pickle

import pytest

from tune.data import CROSS_ENTROPY_IGNORE_IDX, InputOutputToMessages, Source, preview_example
from tune.datasets import (
    ConcatDataset,
    PackedDataset,
    SFTDataset,
    alpaca_cleaned_dataset,
    alpaca_dataset,
    chat_dataset,
    get_dataset,
    instruct_dataset,
)
from tune.errors import ConfigError, DataError
from tune.tokenizers import SentencePieceTokenizer

QA = [
    {"question": "the river", "answer": "green"},
    {"question": "seven apple", "answer": "the answer of seven apples"},
    {"question": "walk", "answer": "twelve"},
]


@pytest.fixture(scope="module")
def tokenizer(spm_file):
    return SentencePieceTokenizer(spm_file)


@pytest.fixture
def write(tmp_path):
    def write(rows, name="data.jsonl"):
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    return write


def learnt(tokenizer, item):
    return tokenizer.decode([label for label in item["labels"] if label != CROSS_ENTROPY_IGNORE_IDX], False)


def read(tokenizer, item):
    return tokenizer.decode(item["tokens"], skip_special=False)


def test_questions_and_answers_need_only_their_file(tokenizer, write):
    dataset = instruct_dataset(tokenizer, source=write(QA))
    assert len(dataset) == 3
    item = dataset[1]
    assert set(item) == {"tokens", "labels"}
    assert read(tokenizer, item) == "<s>Question: seven apple\nAnswer: the answer of seven apples</s>"
    assert learnt(tokenizer, item) == "the answer of seven apples</s>"
    assert dataset.render_prompt("why") == "Question: why\nAnswer:"
    assert "question -> answer, template question_answer" in str(dataset.report())


def test_labels_are_the_tokens_where_they_are_learnt(tokenizer, write):
    for build in (instruct_dataset, alpaca_dataset):
        for item in build(tokenizer, source=write(QA)):
            assert len(item["tokens"]) == len(item["labels"])
            assert all(label in (token, -100) for token, label in zip(item["tokens"], item["labels"]))
            assert item["labels"][0] == -100
            assert item["labels"][-1] == tokenizer.eos_id


def test_alpaca_learns_its_prompt_unless_told_not_to(tokenizer, write):
    file = write([{"instruction": "walk", "input": "the river", "output": "green"}])
    whole = alpaca_dataset(tokenizer, source=file)[0]
    assert whole["labels"] == [-100, *whole["tokens"][1:]]
    answer = alpaca_dataset(tokenizer, source=file, train_on_input=False)[0]
    assert answer["tokens"] == whole["tokens"]
    assert learnt(tokenizer, answer) == "green</s>"
    assert "### Input:\nthe river\n\n### Response:\ngreen</s>" in read(tokenizer, answer)
    cleaned = alpaca_cleaned_dataset(tokenizer, source=file, train_on_input=False)
    assert cleaned[0] == answer
    assert cleaned.render_prompt("walk").endswith("### Instruction:\nwalk\n\n### Response:\n")
    assert instruct_dataset(tokenizer, source=file)[0] == answer


def test_training_reads_what_inference_gives(tokenizer, write):
    for dataset in (
        instruct_dataset(tokenizer, source=write(QA)),
        alpaca_dataset(tokenizer, source=write(QA)),
        instruct_dataset(tokenizer, source=write(QA), prompt_template="llama2_chat"),
    ):
        prompt = tokenizer.encode(dataset.render_prompt("the river"), add_eos=False)
        assert dataset[0]["tokens"][: len(prompt)] == prompt


def test_an_input_column_that_only_later_rows_have(tokenizer, write):
    rows = [{"instruction": "walk", "output": "x"}, {"instruction": "walk", "input": "seven", "output": "y"}]
    dataset = alpaca_dataset(tokenizer, source=write(rows))
    assert "Input" not in read(tokenizer, dataset[0])
    assert "### Input:\nseven" in read(tokenizer, dataset[1])


def test_the_template_is_ones_own_or_the_tokenizers(spm_file, write):
    tokenizer = SentencePieceTokenizer(spm_file, prompt_template="llama2_chat")
    assert (
        read(tokenizer, instruct_dataset(tokenizer, source=write(QA))[0])
        == "<s>[INST] the river [/INST] green </s>"
    )
    template = {"system": ["", "|"], "user": ["U:", "\n"], "assistant": ["A:", ""]}
    dataset = instruct_dataset(
        tokenizer, source=write(QA), prompt_template=template, new_system_prompt="S", train_on_input=True
    )
    assert read(tokenizer, dataset[0]) == "<s>S|U:the river\nA:green</s>"
    assert dataset[0]["labels"][1:] == dataset[0]["tokens"][1:]
    # What every conversation starts with, a prompt at inference needs as well.
    assert dataset.render_prompt("walk") == "S|U:walk\nA:"
    chat = chat_dataset(tokenizer, source=write([{"messages": CHAT}]), new_system_prompt="S")
    prompt = tokenizer.encode(chat.render_prompt("the question"), add_eos=False)
    assert chat[0]["tokens"][: len(prompt)] == prompt


CHAT = [
    {"role": "user", "content": "the question"},
    {"role": "assistant", "content": "seven"},
    {"role": "user", "content": "walk"},
    {"role": "assistant", "content": "green river"},
]


def test_chat_learns_every_answer(tokenizer, write):
    dataset = chat_dataset(tokenizer, source=write([{"messages": CHAT}]))
    assert read(tokenizer, dataset[0]) == (
        "<s>[INST] the question [/INST] seven </s><s> [INST] walk [/INST] green river </s>"
    )
    assert learnt(tokenizer, dataset[0]) == "seven </s> green river </s>"
    names = {"user": "human", "assistant": "gpt"}
    sharegpt = [{"from": names[turn["role"]], "value": turn["content"]} for turn in CHAT]
    for options in ({}, {"conversation_style": "sharegpt"}, {"conversation_column": "conversations"}):
        other = chat_dataset(tokenizer, source=write([{"conversations": sharegpt}]), **options)
        assert other[0] == dataset[0]
    with pytest.raises(DataError, match=r"data\.jsonl:1: message 1 .* expected an object with 'role'"):
        chat_dataset(tokenizer, source=write([{"conversations": sharegpt}]), conversation_style="openai")
    with pytest.raises(ConfigError, match="conversation_style is 'openAI'"):
        chat_dataset(tokenizer, source=write([{"messages": CHAT}]), conversation_style="openAI")


def test_a_cut_example_keeps_its_start_and_has_no_eos(tokenizer, write):
    whole = instruct_dataset(tokenizer, source=write(QA))
    longest = max(len(item["tokens"]) for item in whole)
    dataset = instruct_dataset(tokenizer, source=write(QA), max_seq_len=longest - 2)
    report = dataset.report()
    assert (report.num_truncated, report.num_tokens_cut, report.num_lost) == (1, 2, 0)
    assert report.longest == longest
    assert dataset[1]["tokens"] == whole[1]["tokens"][:-2]
    assert tokenizer.eos_id not in dataset[1]["tokens"]
    assert dataset[0] == whole[0]
    assert "1 of 3 examples are longer than max_seq_len" in str(report)
    assert "1 are cut and end without EOS" in str(report)


def test_an_example_whose_answer_is_cut_away_is_counted(tokenizer, write):
    rows = [*QA, {"question": "the river " * 50, "answer": "green"}]
    dataset = instruct_dataset(tokenizer, source=write(rows), max_seq_len=60)
    assert len(dataset) == 3
    assert dataset.report().num_lost == 1
    assert "1 are left out, their answer lies beyond the cut. Raise max_seq_len" in str(dataset.report())
    with pytest.raises(DataError, match=r"in all 4 examples .* max_seq_len=4 .*dataset\.max_seq_len"):
        instruct_dataset(tokenizer, source=write(rows), max_seq_len=4)


def test_the_smaller_limit_counts(spm_file, write):
    tokenizer = SentencePieceTokenizer(spm_file, max_seq_len=21)
    assert instruct_dataset(tokenizer, source=write(QA)).report().max_seq_len == 21
    assert instruct_dataset(tokenizer, source=write(QA), max_seq_len=20).report().max_seq_len == 20
    assert instruct_dataset(tokenizer, source=write(QA), max_seq_len=999).report().max_seq_len == 21
    with pytest.raises(ConfigError, match=r"max_seq_len is 1, expected at least 2"):
        instruct_dataset(tokenizer, source=write(QA), max_seq_len=1)


BAD = [
    {"question": "a", "answer": "b"},
    {"question": "a", "answer": ""},
    {"question": "a", "answer": None},
    {"question": "a"},
    {"question": "a", "answer": True},
    {"question": "half \ud83d", "answer": "x"},
    {"question": "a", "answer": "c"},
]


def test_all_bad_rows_are_listed_with_their_lines(tokenizer, write):
    file = write(BAD)
    with open(file, "a") as stream:
        stream.write("{broken\n")
    with pytest.raises(DataError) as caught:
        instruct_dataset(tokenizer, source=file)
    text = str(caught.value)
    assert text.startswith(f"6 rows of {file} cannot be learnt from:")
    assert f"{file}:2: the answer is empty" in text
    assert f"{file}:3: column 'answer' is null, expected text" in text
    assert f"{file}:4: has no column 'answer' (it has question)" in text
    assert f"{file}:5: column 'answer' is the boolean true, expected text" in text
    assert f"{file}:6: character 15" in text
    assert "and 1 more" in text
    assert "dataset.on_bad_rows=drop" in text


def test_bad_rows_may_be_dropped_and_are_counted(tokenizer, write):
    dataset = instruct_dataset(tokenizer, source=write(BAD), on_bad_rows="drop")
    assert [learnt(tokenizer, item) for item in dataset] == ["b</s>", "c</s>"]
    report = dataset.report()
    assert (report.num_rows, report.num_examples, report.num_dropped) == (7, 2, 5)
    assert "5 of 7 rows are left out" in str(report)
    assert ":2: the answer is empty" in str(report)
    with pytest.raises(DataError, match="of 5 rows 5 were left out"):
        instruct_dataset(tokenizer, source=write(BAD[1:6]), on_bad_rows="drop")
    with pytest.raises(ConfigError, match="on_bad_rows is 'skip'"):
        instruct_dataset(tokenizer, source=write(BAD), on_bad_rows="skip")


def test_an_empty_answer_may_stay_where_prompts_are_learnt(tokenizer, write):
    dataset = alpaca_dataset(tokenizer, source=write(BAD[:2]))
    assert len(dataset) == 2
    assert dataset.report().num_empty_answers == 1
    with pytest.raises(DataError, match="the answer is empty"):
        alpaca_dataset(tokenizer, source=write(BAD[:2]), train_on_input=False)


def test_a_file_of_broken_lines_tells_them_not_missing_columns(tokenizer, tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("not json\n" * 3)
    with pytest.raises(DataError, match=r"3 rows .*\n.*data\.jsonl:1: broken JSON"):
        instruct_dataset(tokenizer, source=str(file))
    with pytest.raises(DataError, match=r"3 rows"):
        instruct_dataset(tokenizer, source=str(file), on_bad_rows="drop")


def test_reading_stops_early_where_everything_is_wrong(tokenizer, write):
    file = write([{"question": "a", "answer": None}] * 5000)
    with pytest.raises(DataError, match="at least 1,000 rows"):
        instruct_dataset(tokenizer, source=file)


def test_the_report_counts_what_is_there(tokenizer, write):
    dataset = instruct_dataset(tokenizer, source=write(QA))
    report = dataset.report()
    lengths = [len(item["tokens"]) for item in dataset]
    targets = [sum(label != -100 for label in item["labels"]) for item in dataset]
    assert (report.num_rows, report.num_examples, report.longest) == (3, 3, max(lengths))
    assert (report.num_tokens, report.num_target_tokens) == (sum(lengths), sum(targets))
    assert report.share_trained == sum(targets) / sum(lengths)
    assert [dataset.length(index) for index in range(3)] == lengths
    assert dataset[-1] == dataset[2]
    for outside in (3, -4):
        with pytest.raises(IndexError, match="3 examples"):
            dataset[outside]
    assert report.warnings() == []
    assert report.to_dict()["share_trained"] == report.share_trained
    assert f"{report.share_trained:.1%} of them trained on" in str(report)


def test_the_report_names_columns_that_are_not_used(tokenizer, write):
    for build in (alpaca_dataset, instruct_dataset):
        dataset = build(tokenizer, source=write([{"id": 7, "hint": "x", **QA[0]}]))
        assert "not used: column hint (1 time), column id (1 time)" in str(dataset.report())


def test_an_example_can_be_looked_at(tokenizer, write):
    dataset = chat_dataset(tokenizer, source=write([{"messages": CHAT}]))
    assert preview_example(tokenizer, dataset[0]) == [
        ("<s>[INST] the question [/INST]", False),
        (" seven </s>", True),
        ("<s> [INST] walk [/INST]", False),
        (" green river </s>", True),
    ]
    split = {"tokens": tokenizer.encode("a😀b"), "labels": [-100] * 4 + tokenizer.encode("a😀b")[4:]}
    assert "".join(text for text, _ in preview_example(tokenizer, split)) == "<s>a😀b</s>"


def test_a_file_may_be_named_directly(tokenizer, write):
    columns = {"input": "question", "output": "answer"}
    dataset = SFTDataset(
        tokenizer, source=write(QA), message_transform=InputOutputToMessages(column_map=columns)
    )
    assert len(dataset) == 3


def test_rows_may_come_from_a_program(tokenizer):
    dataset = SFTDataset(
        tokenizer,
        source=[{"input": "the river", "output": "green"}],
        message_transform=InputOutputToMessages(),
        prompt_template="question_answer",
    )
    assert learnt(tokenizer, dataset[0]) == "green</s>"
    with pytest.raises(DataError, match="row 1: has no column 'output'"):
        SFTDataset(tokenizer, source=[{"input": "x"}], message_transform=InputOutputToMessages())
    with pytest.raises(DataError, match="the rows given holds no rows"):
        SFTDataset(tokenizer, source=[], message_transform=InputOutputToMessages())


def test_a_dataset_goes_to_a_worker(tokenizer, write):
    dataset = instruct_dataset(tokenizer, source=write(QA))
    copy = pickle.loads(pickle.dumps(dataset))
    assert [*copy] == [*dataset]


def test_several_datasets_are_one_after_another(tokenizer, write):
    first = instruct_dataset(tokenizer, source=write(QA))
    second = instruct_dataset(tokenizer, source=write(QA[1:], "more.jsonl"))
    both = ConcatDataset([first, second])
    assert len(both) == 5
    assert [*both] == [*first, *second]
    assert both[-1] == second[1]
    assert both.length(4) == len(second[1]["tokens"])
    assert both.report().num_tokens == first.report().num_tokens + second.report().num_tokens
    assert both.report().longest == first.report().longest
    assert both.render_prompt("x") == first.render_prompt("x")
    with pytest.raises(IndexError):
        both[5]
    with pytest.raises(ConfigError, match="empty list"):
        ConcatDataset([])
    packed = instruct_dataset(tokenizer, source=write(QA), packed=True, max_seq_len=64)
    with pytest.raises(ConfigError, match="packed and unpacked"):
        ConcatDataset([first, packed])


def test_datasets_by_name(tokenizer, write):
    file = write(QA)
    expected = [*alpaca_dataset(tokenizer, source=file, limit=2)]
    assert [*get_dataset("alpaca", tokenizer, source=file, limit=2)] == expected
    assert [*get_dataset("alpaca_dataset", tokenizer, source=file, limit=2)] == expected
    assert [*get_dataset("tune.datasets.alpaca_dataset", tokenizer, source=file, limit=2)] == expected
    with pytest.raises(ConfigError, match=r"'alpacca'.*did you mean alpaca"):
        get_dataset("alpacca", tokenizer)
    with pytest.raises(ConfigError, match="unexpected keyword argument 'sourc'"):
        get_dataset("alpaca", tokenizer, sourc=file)
    with pytest.raises(ConfigError, match=r"missing a required.*'source'"):
        get_dataset("instruct", tokenizer)


def test_packing_needs_a_length(tokenizer, write):
    with pytest.raises(ConfigError, match=r"dataset\.max_seq_len or tokenizer\.max_seq_len"):
        instruct_dataset(tokenizer, source=write(QA), packed=True)


def test_a_source_object_is_a_source(tokenizer, write):
    dataset = SFTDataset(
        tokenizer,
        source=Source(write(QA), limit=2),
        message_transform=InputOutputToMessages(column_map={"input": "question", "output": "answer"}),
    )
    assert len(dataset) == 2
    assert "first 2 rows" in dataset.report().source
    assert not isinstance(dataset, PackedDataset)
