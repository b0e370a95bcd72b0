from __future__ import annotations

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
            b'\n{"question": "a", "answer": 1}\n',
            "line 2: there is no column 'prompt'; it has 'question'",
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
