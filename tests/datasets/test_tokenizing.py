"""Rows that many processes tokenize: tokens, order and report as one makes them, and who ends a process is named."""

from __future__ import annotations

import json

import pytest
from row_transforms import end_its_worker

from tune.data import Message, Source
from tune.datasets import SFTDataset, chat_dataset, tokenizing
from tune.datasets.tokenizing import preparing
from tune.errors import DataError
from tune.tokenizers import from_checkpoint

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}<|sep|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|sep|>{% endif %}"
)


def conversation(number):
    answer = "twelve seven " * (number % 9 + 1)
    return {
        "messages": [
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": f"{answer}{number}"},
        ]
    }


@pytest.fixture
def write(tmp_path):
    def write(rows):
        file = tmp_path / "data.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    return write


@pytest.fixture
def tokenizer(chat_folder):
    return from_checkpoint(chat_folder(TEMPLATE))


@pytest.fixture
def in_workers(monkeypatch):
    """Start worker processes at once, however little there is to do."""
    monkeypatch.setattr(tokenizing, "ALONE_S", -1.0)


@pytest.mark.usefixtures("in_workers")
def test_many_processes_give_what_one_gives(tokenizer, write):
    rows = [conversation(number) | {"id": number} for number in range(400)]
    rows[310] = {"messages": [{"role": "narrator", "content": "x"}]}
    rows[311] = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]}
    arguments = {"source": write(rows), "max_seq_len": 30, "on_bad_rows": "drop"}
    made = []
    for num_proc in (1, 3):
        with preparing(num_proc, "off"):
            made.append(chat_dataset(tokenizer, **arguments))
    one, many = made
    assert list(many) == list(one)
    assert vars(many.report()) == vars(one.report())
    assert "data.jsonl:311" in one.report().dropped[0]
    assert one.report().num_truncated > 0


@pytest.mark.usefixtures("in_workers")
def test_faulty_rows_are_listed_as_by_one_process(tokenizer, write):
    source = write(
        [{"messages": 7 if number > 70 else conversation(3)["messages"]} for number in range(3000)]
    )
    told = []
    for num_proc in (1, 2):
        with preparing(num_proc, "off"), pytest.raises(DataError) as error:
            chat_dataset(tokenizer, source=source)
        told.append(str(error.value))
    assert told[1] == told[0]
    assert "at least 1,000 rows" in told[0]
    assert "data.jsonl:72: " in told[0]


@pytest.mark.usefixtures("in_workers")
def test_a_row_that_ends_its_process_is_named(tokenizer, write):
    source = Source(write(map(conversation, range(300))))
    with preparing(2, "off"):
        dataset = SFTDataset(
            tokenizer,
            source=source,
            message_transform=end_its_worker,
            prompt_template="chat",
            on_bad_rows="drop",
        )
    assert len(dataset) == 299
    (line,) = dataset.report().dropped
    assert "data.jsonl:151: the chat template in" in line
    assert line.endswith("is stopped: its process was ended by SIGABRT")


def of_a_lambda(values, made=[lambda: Message("user", "x")]):  # noqa: B006
    return {"messages": [made[0](), Message("assistant", values["a"])]}


@pytest.mark.usefixtures("in_workers")
def test_what_cannot_be_handed_over_stays_in_this_process(tokenizer, write):
    source = Source(write({"a": f"apple {number}"} for number in range(200)))
    own = [lambda values: of_a_lambda(values)]
    with preparing(2, "off"):
        dataset = SFTDataset(tokenizer, source=source, message_transform=own[0], prompt_template="chat")
    assert len(dataset) == 200


@pytest.mark.usefixtures("in_workers")
def test_no_process_to_tokenize_in_is_told(tokenizer, write, monkeypatch):
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    source = write(map(conversation, range(300)))
    with (
        preparing(2),
        pytest.raises(DataError, match=r"2 processes \(No such file.*\): set dataset_num_proc to fewer"),
    ):
        chat_dataset(tokenizer, source=source, prompt_template="chatml")
