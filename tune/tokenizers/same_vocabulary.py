"""Whether two tokenizers have the same tokens, so that one model's numbers can be compared with another's."""

from __future__ import annotations

from tune.errors import ConfigError
from tune.tokenizers.protocol import Tokenizer


def require_same_vocabulary(student: Tokenizer, teacher: Tokenizer) -> None:
    """Refuse two tokenizers that differ in any token: the same id has to mean the same text.

    Files of different kinds write a token differently ("Ġthe" and " the"): there its text is compared.

    Raises:
        ConfigError: they differ; the first token that does is named.
    """
    for token_id in range(max(student.vocab_size, teacher.vocab_size)):
        ours, theirs = _token(student, token_id), _token(teacher, token_id)
        if ours != theirs and _text(student, token_id, ours) != _text(teacher, token_id, theirs):
            sizes = f"{student.vocab_size} tokens and {teacher.vocab_size}"
            raise ConfigError(
                f"student and teacher have different vocabularies ({sizes}): token {token_id} is {_show(ours)} for the "
                f"student and {_show(theirs)} for the teacher, so that what the teacher finds likely would mean "
                "something else to the student. Choose a teacher of the student's family and generation"
            )


def _token(tokenizer: Tokenizer, token_id: int) -> str | None:
    """Return a token as it stands in the vocabulary; None where there is none."""
    if token_id >= tokenizer.vocab_size:
        return None
    token_of = getattr(tokenizer, "token", None)
    token: str = tokenizer.decode([token_id], skip_special=False) if token_of is None else token_of(token_id)
    return token


def _text(tokenizer: Tokenizer, token_id: int, token: str | None) -> str | None:
    """Return what a token stands for; of a special one its name."""
    if token is None or token in tokenizer.special_tokens:
        return token
    return tokenizer.decode([token_id], skip_special=False)


def _show(token: str | None) -> str:
    return "none" if token is None else ascii(token[:40]) if token else "unused"
