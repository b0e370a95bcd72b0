"""Prompts as people hand them over: a file of lines, or of JSON objects."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tune.errors import DataError, GenerationError
from tune.tokenizers import Message, Tokenizer, show_tokens
from tune.tokenizers.chat_template import apply_chat_template, stop_ids_of, template_for
from tune.tokenizers.templates import AnyTemplate, PromptTemplate, check_variables
from tune.utils.paths import expand_path

__all__ = ["Prompt", "Question", "ask", "read_prompts"]

COLUMN = "prompt"


@dataclass(frozen=True)
class Prompt:
    """One prompt and what else stood beside it.

    Args:
        text: The prompt.
        source: The other columns of its JSON object, to be handed on with the answer.
    """

    text: str
    source: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A prompt as a model reads it, and what ends its answer beside the tokenizer's own stop ids.

    Args:
        prompt: Text, or ids where a chat template's special tokens are in it.
        stop: Texts.
        stop_ids: Tokens.
    """

    prompt: str | list[int]
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()


def ask(
    tokenizer: Tokenizer,
    template: AnyTemplate | None,
    text: str,
    *,
    system: str = "",
    variables: Mapping[str, Any] | None = None,
) -> Question:
    """Return what a model reads that is asked ``text`` in a template, the same as in training; None is the bare text.

    Args:
        tokenizer: The model's.
        template: Writes the question.
        text: What the user says.
        system: What the system says before, if anything.
        variables: Further names that a chat template reads, such as ``enable_thinking``.

    Raises:
        ConfigError: The template reads no such variable.
        DataError: The chat template refuses the question.
        GenerationError: The chat template writes tokens that the model has no row for.
        TokenizerError: The template does not fit the tokenizer.
    """
    if template is None:
        return Question(text)
    bound = template_for(template, tokenizer)
    check_variables(bound, variables or {}, "chat_template_kwargs")
    if isinstance(bound, PromptTemplate):
        # What training put after every answer ends one here, even if the model does not go on to say EOS.
        end = bound.assistant[1].strip()
        return Question(bound.prompt(text, system), (end,) if end else ())
    written = [text for text in getattr(tokenizer, "tokens_without_row", {}) if text in bound.source]
    if written:
        raise GenerationError(
            f"the chat template writes tokens that the model has no row for: {show_tokens(written)}. It would read "
            "them as pieces of other text; ask it with another prompt_template"
        )
    messages = [*([Message("system", system)] if system else []), Message("user", text)]
    ids = apply_chat_template(
        tokenizer, messages, template=bound, add_generation_prompt=True, **dict(variables or {})
    )
    return Question(ids, stop_ids=stop_ids_of(tokenizer, bound))


def read_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """Return the prompts of a file: ``.jsonl`` holds an object with a ``prompt`` a line, others a prompt a line.

    Lines of only white space are skipped. A byte order mark and Windows line ends are taken off.

    Raises:
        DataError: The file cannot be read, is not UTF-8, a line is not as expected, or there is no prompt in it.
    """
    file = expand_path(path)
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"the prompts in {file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file}, line {line}: byte {error.object[error.start]:#04x} is not UTF-8. Save the file as UTF-8."
        ) from error
    is_json = file.suffix.lower() in (".jsonl", ".ndjson")
    # Not splitlines(): it would also cut at the form feeds and line separators inside a prompt.
    lines = [
        (number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()
    ]
    if not lines:
        raise DataError(f"{file} holds no prompt: every line is empty.")
    return [
        _read_object(line, f"{file}, line {number}") if is_json else Prompt(line) for number, line in lines
    ]


def _read_object(line: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise DataError(f"{where}: not JSON ({reason}). A .jsonl file holds one object a line.") from error
    if isinstance(row, str):
        return Prompt(row)
    if not isinstance(row, dict):
        raise DataError(
            f'{where}: expected an object such as {{"{COLUMN}": "..."}}, found {type(row).__name__}.'
        )
    if COLUMN not in row:
        raise DataError(
            f"{where}: there is no column {COLUMN!r}; it has {', '.join(map(repr, row)) or 'none'}."
        )
    if not isinstance(row[COLUMN], str):
        raise DataError(f"{where}: column {COLUMN!r} is {type(row[COLUMN]).__name__}; it must be text.")
    return Prompt(row[COLUMN], {key: value for key, value in row.items() if key != COLUMN})
