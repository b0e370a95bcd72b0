from __future__ import annotations

import json
from pathlib import Path

import pytest

from tune.errors import DataError
from tune.generation import Prompt, read_prompts


def test_a_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffone \r\n\r\n  zwei\u2028drei\x0cvier\n\n".encode())
    assert read_prompts(file) == [Prompt("one "), Prompt("  zwei\u2028drei\x0cvier")]


def test_an_object_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "one\\ntwo", "id": 7, "completion": "x"}\n\n"just text"\n')
    assert read_prompts(str(file)) == [Prompt("one\ntwo", {"id": 7, "completion": "x"}), Prompt("just text")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", b" \n\n", "holds no prompt"),
        ("p.txt", b"fine\n\xff\n", "line 2: byte 0xff is not UTF-8"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "line 2: not JSON"),
        ("p.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("p.jsonl", b"[1]\n", "line 1: expected an object .* found list"),
        (
            "p.jsonl",
            b'\n{"topic": "a", "reply": 1}\n',
            "line 2: there is no column 'prompt', nor one known to hold a prompt; it has",
        ),
        ("p.jsonl", b'{"prompt": 3}\n', "column 'prompt' is int; it must be text"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_prompts(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing.txt cannot be read: No such file"):
        read_prompts(tmp_path / "nothing.txt")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_prompts(tmp_path)


ROWS = [
    ({"question": "a?", "answer": "b"}, Prompt("a?", {"answer": "b"})),
    ({"instruction": "say", "input": "x", "output": "y"}, Prompt("say\n\nx", {"output": "y"})),
    ({"instruction": "say", "input": "", "output": "y"}, Prompt("say", {"input": "", "output": "y"})),
    ({"Question": "a?", "id": 3}, Prompt("a?", {"id": 3})),
    ({"text": "once"}, Prompt("once")),
    ({"prompt": "a?", "question": "no", "answer": "b"}, Prompt("a?", {"question": "no", "answer": "b"})),
]
TURNS = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]


@pytest.mark.parametrize(("row", "prompt"), ROWS)
def test_rows_as_training_reads_them(tmp_path: Path, row: dict[str, object], prompt: Prompt) -> None:
    for name, content in (("p.jsonl", json.dumps(row)), ("p.json", json.dumps([row]))):
        (tmp_path / name).write_text(content)
        assert read_prompts(tmp_path / name) == [prompt]


def test_a_csv_has_a_header_and_answers(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('question,answer\n"one, two?",3\nfour?,5\n')
    assert read_prompts(tmp_path / "p.csv") == [
        Prompt("one, two?", {"answer": "3"}),
        Prompt("four?", {"answer": "5"}),
    ]
    (tmp_path / "q.csv").write_text("x,y\n1,2\n")
    with pytest.raises(DataError, match=r"q.csv:2: there is no column 'prompt'"):
        read_prompts(tmp_path / "q.csv")


@pytest.mark.parametrize(
    ("column", "role", "content"), [("messages", "role", "content"), ("conversations", "from", "value")]
)
def test_a_conversation_up_to_its_last_question(tmp_path: Path, column: str, role: str, content: str) -> None:
    names = {"user": "human", "assistant": "gpt"} if role == "from" else {}
    turns = [{role: names.get(who, who), content: said} for who, said in TURNS]
    (tmp_path / "p.jsonl").write_text(json.dumps({column: turns, "id": 1}))
    (prompt,) = read_prompts(tmp_path / "p.jsonl")
    assert prompt.text == "c"
    assert [(message.role, message.content) for message in prompt.before] == TURNS[:3]
    assert prompt.source == {"id": 1, "answer": turns[4:]}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": []}, "the user says nothing"),
        ({"messages": [3]}, "message 1: expected an object"),
        ({"messages": [{"role": "user", "content": None}]}, "role and content must be texts"),
        ({"messages": [{"role": "king", "content": "x"}]}, "there is no role 'king'"),
        ({"question": 5, "answer": "x"}, "column 'question' is int"),
        ({"question": "a", "instruction": "b", "response": "c"}, "can be read in 2 ways"),
    ],
)
def test_rows_that_hold_no_prompt(tmp_path: Path, row: dict[str, object], words: str) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=words):
        read_prompts(tmp_path / "p.jsonl")
