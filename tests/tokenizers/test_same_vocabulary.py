"""Two models can be compared token by token only where each id means the same text to both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tune.errors import ConfigError
from tune.tokenizers import (
    HFTokenizer,
    SentencePieceTokenizer,
    from_checkpoint,
    require_same_vocabulary,
    with_new_tokens,
)


def test_the_same_tokens_in_files_of_two_kinds(spm_file: Path, tmp_path: Path) -> None:
    ours = SentencePieceTokenizer(spm_file)
    definition = ours.as_tokenizer_json()
    assert definition is not None
    (tmp_path / "tokenizer.json").write_text(definition, encoding="utf-8")
    theirs = from_checkpoint(tmp_path)
    assert isinstance(theirs, HFTokenizer)
    require_same_vocabulary(ours, theirs)
    require_same_vocabulary(theirs, ours)


def test_the_first_token_that_differs_is_named(chat_definition: str, tmp_path: Path) -> None:
    content = json.loads(chat_definition)
    vocabulary = content["model"]["vocab"]
    names = {token_id: token for token, token_id in vocabulary.items()}
    one, other = names[270], names[300]
    vocabulary[one], vocabulary[other] = 300, 270
    for name, text in (("student", chat_definition), ("teacher", json.dumps(content))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(text, encoding="utf-8")
        (tmp_path / name / "tokenizer_config.json").write_text('{"eos_token": "<|eos|>"}')
    student, teacher = (from_checkpoint(tmp_path / name) for name in ("student", "teacher"))
    require_same_vocabulary(student, student)
    with pytest.raises(ConfigError) as refused:
        require_same_vocabulary(student, teacher)
    assert f"token 270 is {one!a} for the student and {other!a} for the teacher" in str(refused.value)


def test_one_token_more_is_another_vocabulary(spm_file: Path) -> None:
    ours = SentencePieceTokenizer(spm_file)
    more = with_new_tokens(SentencePieceTokenizer(spm_file), None, ["<|end of day|>"])
    last = ours.vocab_size
    for student, teacher, told in (
        (ours, more, "none for the student"),
        (more, ours, "none for the teacher"),
    ):
        with pytest.raises(ConfigError, match=told) as refused:
            require_same_vocabulary(student, teacher)
        assert f"token {last} is " in str(refused.value)
