"""Prompts as people hand them over: a file of lines, or of JSON objects."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune.data.rows import file_kind, read_file
from tune.errors import DataError, GenerationError
from tune.generation.prompt_rows import COLUMN, Prompt, prompt_of
from tune.tokenizers import Message, Tokenizer, show_tokens
from tune.tokenizers.chat_template import apply_chat_template, stop_ids_of, template_for
from tune.tokenizers.templates import AnyTemplate, PromptTemplate, check_variables
from tune.utils.paths import expand_path

__all__ = ["Prompt", "Question", "ask", "read_prompts"]


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
    before: Sequence[Message] = (),
) -> Question:
    """Return what a model reads that is asked ``text`` in a template, the same as in training; None is the bare text.

    Args:
        tokenizer: The model's.
        template: Writes the question.
        text: What the user says.
        system: What the system says before, if anything.
        variables: Further names that a chat template reads, such as ``enable_thinking``.
        before: What was said before; a system text in it stands in place of ``system``.

    Raises:
        ConfigError: The template reads no such variable.
        DataError: The chat template refuses the question.
        GenerationError: The chat template writes tokens that the model has no row for.
        TokenizerError: The template does not fit the tokenizer.
    """
    if template is None:
        if before:
            raise GenerationError(
                "a conversation can only be written in a template: set prompt_template, such as chat"
            )
        return Question(text)
    bound = template_for(template, tokenizer)
    check_variables(bound, variables or {}, "chat_template_kwargs")
    if isinstance(bound, PromptTemplate):
        # What training put after every answer ends one here, even if the model does not go on to say EOS.
        end = bound.assistant[1].strip()
        if before:
            ids = apply_chat_template(tokenizer, _conversation(before, system, text), template=bound)
            return Question(ids, (end,) if end else ())
        return Question(bound.prompt(text, system), (end,) if end else ())
    written = [text for text in getattr(tokenizer, "tokens_without_row", {}) if text in bound.source]
    if written:
        raise GenerationError(
            f"the chat template writes tokens that the model has no row for: {show_tokens(written)}. It would read "
            "them as pieces of other text; ask it with another prompt_template"
        )
    messages = _conversation(before, system, text)
    ids = apply_chat_template(
        tokenizer, messages, template=bound, add_generation_prompt=True, **dict(variables or {})
    )
    return Question(ids, stop_ids=stop_ids_of(tokenizer, bound))


def _conversation(before: Sequence[Message], system: str, text: str) -> list[Message]:
    begins = bool(before) and before[0].role == "system"
    first = [Message("system", system)] if system and not begins else []
    return [*first, *before, Message("user", text)]


def read_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """Return the prompts of a file.

    ``.jsonl`` holds an object a line, ``.json``, ``.csv``, ``.tsv`` and ``.parquet`` rows as training reads them (see
    `prompt_of`), any other file a prompt a line.

    Lines of only white space are skipped. A byte order mark and Windows line ends are taken off.

    Raises:
        DataError: The file cannot be read, is not UTF-8, a line is not as expected, or there is no prompt in it.
    """
    file = expand_path(path)
    if (kind := file_kind(file)) not in (None, "txt", "jsonl"):
        return _read_rows(file)
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"the prompts in {file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file}, line {line}: byte {error.object[error.start]:#04x} is not UTF-8. Save the file as UTF-8."
        ) from error
    is_json = kind == "jsonl"
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
    return prompt_of(row, where)


def _read_rows(file: Path) -> list[Prompt]:
    prompts = []
    for row in read_file(file):
        if row.problem:
            raise DataError(f"{row.place}: {row.problem}")
        prompts.append(prompt_of(row.values, row.place))
    if not prompts:
        raise DataError(f"{file} holds no prompt: it has no rows.")
    return prompts
