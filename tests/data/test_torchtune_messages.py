"""Messages, tokenizers and batches as torchtune's users call them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tune import data
from tune.data import Message
from tune.errors import DataError
from tune.models.llama2 import llama2_tokenizer


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"role": "user", "content": "hi"}, Message("user", "hi")),
        (
            {"role": "assistant", "content": "yes", "masked": True, "ipython": False, "eot": True},
            Message("assistant", "yes", masked=True),
        ),
        (
            {
                "role": "user",
                "content": [{"type": "text", "content": "a "}, {"type": "text", "content": "b"}],
            },
            Message("user", "a b"),
        ),
        ({"role": "ipython", "content": "42", "eot": False}, Message("ipython", "42")),
    ],
)
def test_messages_are_made_from_dicts(row: dict, message: Message) -> None:
    before = dict(row)
    made = Message.from_dict(row)
    assert made == message
    assert row == before
    assert made.text_content == made.content == message.content


def test_what_to_dict_writes_is_read_back() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    message = Message("assistant", "", tool_calls=(call,), reasoning_content="hm", name="n", tool_call_id="7")
    assert Message.from_dict(message.to_dict()) == message


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"role": "user"}, "no content"),
        ({"content": "hi"}, "no role"),
        ({"role": "user", "content": "hi", "weight": "0"}, "weight '0'"),
        ({"role": "user", "content": "hi", "lovely": 0}, "'lovely'"),
        ({"role": "user", "content": [{"type": "image", "content": "x.png"}]}, "'image'"),
        ({"role": "assistant", "content": "f()", "ipython": True}, "tool_calls"),
        ({"role": "assistant", "content": "f()", "eot": False}, "tool_calls"),
    ],
)
def test_nothing_of_a_message_is_dropped(row: dict, word: str) -> None:
    with pytest.raises(DataError, match=word):
        Message.from_dict(row)


def test_a_tokenizer_is_called_with_a_row(spm_file: Path) -> None:
    tokenizer = llama2_tokenizer(str(spm_file))
    messages = [Message("user", "Add 1 and 2.", masked=True), Message("assistant", "It is 3.")]
    row = {"messages": messages, "id": 7}
    tokens, mask = tokenizer.tokenize_messages(messages)
    assert tokenizer(row) is row
    assert row == {"id": 7, "tokens": tokens, "mask": mask}
    assert tokens[-1] == tokenizer.eos_id
    left_open = tokenizer({"messages": messages}, inference=True)
    assert left_open["tokens"] == tokens[:-1]
    assert tokenizer.stop_tokens == list(tokenizer.stop_ids)


def test_packed_rows_keep_their_documents_apart() -> None:
    packs = [
        {"tokens": [1, 2, 3], "labels": [2, 3, -100], "input_pos": [0, 0, 1], "seq_lens": [1, 2]},
        {"tokens": [4, 5, 6], "labels": [4, 5, 6], "input_pos": [0, 1, 2], "seq_lens": [3]},
    ]
    packs = [{key: torch.tensor(value) for key, value in pack.items()} for pack in packs]
    batch = data.padded_collate_packed(packs)
    assert batch["tokens"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert batch["labels"].tolist() == [[2, 3, -100], [4, 5, 6]]
    assert batch["input_pos"].tolist() == [[0, 0, 1], [0, 1, 2]]
    apart = torch.block_diag(torch.ones(1, 1), torch.ones(2, 2).tril()).bool()
    assert torch.equal(batch["mask"], torch.stack((apart, torch.ones(3, 3).tril().bool())))
