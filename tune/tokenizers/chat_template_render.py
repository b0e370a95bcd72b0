"""A chat template: the Jinja text that came with a model, and what it makes of a conversation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tune.errors import DataError, TokenizerError
from tune.utils.paths import expand_path
from tune.utils.workers import Worker, WorkerLimitError

if TYPE_CHECKING:
    from tune.tokenizers.chat_template_prefixes import Beginnings, Cut

R = TypeVar("R")

# The name under which configs and commands ask for the template of the checkpoint itself.
CHECKPOINT_TEMPLATE = "chat"
# Versions before let a template out: CVE-2024-56201, CVE-2024-56326, CVE-2025-27516.
_FIRST_SAFE_JINJA = (3, 1, 6)
_MAX_BYTES = 16_000_000
# What a stranger's template may take to write one conversation; an honest one takes a thousandth.
_worker = Worker(memory_bytes=1 << 30, seconds=10)


class ChatTemplate:
    """A model's chat template, run in a sandbox: a stranger's template can neither run code nor read files.

    What did not come with tune runs in a process of its own, so that it can neither fill the memory nor go on without
    end. Nothing is compiled before the first use, so a broken template hurts nobody who does not need it.

    Args:
        source: the Jinja text.
        name: shown in reports; what `prompt_template` calls it.
        origin: file it was read from, for errors.
        for_tools: the text to use instead where tools are given, if the model has two.
        needs: special tokens without which it means nothing.
        is_builtin: it came with tune.
    """

    def __init__(
        self,
        source: str,
        name: str = CHECKPOINT_TEMPLATE,
        origin: str = "",
        *,
        for_tools: str | None = None,
        needs: Sequence[str] = (),
        is_builtin: bool = False,
    ) -> None:
        self.source = source
        self.name = name
        self.origin = origin
        self.for_tools = for_tools
        self.needs = tuple(needs)
        self.is_builtin = is_builtin
        self.is_checkpoint_s = False
        # Found once for each set of special tokens: the ids by which the template ends an answer.
        self.ends_of_turn: dict[Any, frozenset[int]] = {}
        self._names: dict[str, frozenset[str]] = {}

    @classmethod
    def of_checkpoint(cls) -> ChatTemplate:
        """Return what stands for the template of whichever checkpoint it is used with."""
        template = cls("")
        template.is_checkpoint_s = True
        return template

    @classmethod
    def from_directory(cls, folder: str | Path) -> ChatTemplate | None:
        """Return the chat template in a checkpoint's directory, None where there is none.

        Looked for in `chat_template.jinja`, `tokenizer_config.json` and `chat_template.json`, in this order. Of
        several templates with names, "default" is used, and "tool_use" where tools are given.

        Raises:
            TokenizerError: a file is there but cannot be read.
        """
        folder = expand_path(folder)
        file = folder / "chat_template.jinja"
        if file.is_file():
            template = cls.from_file(file)
            extra = folder / "additional_chat_templates" / "tool_use.jinja"
            template.for_tools = _read_text(extra) if extra.is_file() else None
            return template
        for name in ("tokenizer_config.json", "chat_template.json"):
            file = folder / name
            found = _read_setting(file) if file.is_file() else None
            if found:
                return _from_setting(found, str(file))
        return None

    @classmethod
    def from_file(cls, file: str | Path, name: str = CHECKPOINT_TEMPLATE) -> ChatTemplate:
        """Return the chat template that a `.jinja` file holds.

        Raises:
            TokenizerError: it cannot be read.
        """
        return cls(_read_text(expand_path(file)), name, str(file))

    def __str__(self) -> str:
        where = f" in {self.origin}" if self.origin else ""
        return (
            f"the chat template{where}"
            if self.name == CHECKPOINT_TEMPLATE
            else f"the template {self.name}{where}"
        )

    def __repr__(self) -> str:
        return f"ChatTemplate({self.name!r}, {len(self.source)} characters{f', {self.origin!r}' * bool(self.origin)})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"ends_of_turn": {}}

    def check(self) -> None:
        """Raise TokenizerError where the template is none."""
        self._names_in(self.source)

    def variables(self) -> frozenset[str]:
        """Return the names that the template reads beside the conversation itself.

        Raises:
            TokenizerError: the source is no template.
        """
        names = self._names_in(self.source) | self._names_in(self.for_tools or "")
        return names - {"messages", "tools", "documents", "add_generation_prompt"}

    def reads_tools(self) -> bool:
        """Return whether the template looks at the tools that it is given.

        Raises:
            TokenizerError: the source is no template.
        """
        return "tools" in self._names_in(self.source if self.for_tools is None else self.for_tools)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the conversation as text, special tokens written out.

        Args:
            messages: plain mappings with `role` and `content`.
            add_generation_prompt: end where the assistant's next answer starts.
            tools: schemas of what the assistant may call.
            variables: `bos_token` and whatever else the template reads.

        Raises:
            DataError: the template refuses the conversation.
            TokenizerError: it is no template, or does what none may do.
        """
        _check_jinja()
        from tune.tokenizers.chat_template_sandbox import TemplateFailure, render

        source, given = self._source_for(tools), _given(messages, tools, variables)
        try:
            return self._call(render, source, {**given, "add_generation_prompt": add_generation_prompt})
        except TemplateFailure as failure:
            raise self._refusal(failure, messages) from failure

    def render_beginnings(
        self,
        messages: Sequence[Mapping[str, Any]],
        cuts: Sequence[Cut],
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[Beginnings | None, dict[Cut, str | DataError]]:
        """Return what one run told of all beginnings of a conversation, and texts of further ones, or errors.

        All of it is one call of the worker. Not all cuts need be answered, where texts are long; the first one is.

        Args:
            messages: all of them, as for `render`.
            cuts: for each beginning its number of messages, and whether the assistant's next answer is asked for.
            tools: as for `render`.
            variables: as for `render`.

        Raises:
            TokenizerError: as `render`.
        """
        _check_jinja()
        from tune.tokenizers.chat_template_prefixes import render_beginnings

        given = _given(messages, tools, variables)
        known, texts = self._call(render_beginnings, self._source_for(tools), given, list(cuts))
        return known, {
            cut: text if isinstance(text, str) else self._refusal(text, messages[: cut[0]])
            for cut, text in texts.items()
        }

    def _source_for(self, tools: Sequence[Mapping[str, Any]] | None) -> str:
        return self.for_tools if tools is not None and self.for_tools is not None else self.source

    def _refusal(self, failure: Exception, messages: Sequence[Mapping[str, Any]]) -> DataError:
        """Return the error that says why a conversation could not be written."""
        kind, reason = failure.args
        if kind != "refused":
            return DataError(f"{self} cannot write a conversation of {len(messages)} messages: {reason}")
        roles = ", ".join(str(message.get("role")) for message in messages[:8])
        more = ", ..." if len(messages) > 8 else ""
        return DataError(f"{self} refuses a conversation of {roles}{more}: {reason.rstrip('.')}")

    def _names_in(self, source: str) -> frozenset[str]:
        _check_jinja()
        from tune.tokenizers.chat_template_sandbox import names_in

        if source not in self._names:
            self._names[source] = self._call(names_in, source)
        return self._names[source]

    def _call(self, function: Callable[..., R], *args: Any) -> R:
        """Return what a function of the sandbox returns, called where this template may run.

        Raises:
            TokenizerError: it is no template, or does what none may do.
            TemplateFailure: it wrote nothing, for another reason.
        """
        from tune.tokenizers.chat_template_sandbox import TemplateFailure

        try:
            return function(*args) if self.is_builtin else _worker.call(function, *args)
        except WorkerLimitError as error:
            raise TokenizerError(f"{self} is stopped: {error}") from error
        except OSError as error:
            raise TokenizerError(f"{self} needs a process to run in: {error.strerror}") from error
        except TemplateFailure as failure:
            if failure.kind == "syntax":
                raise TokenizerError(f"{self} is no Jinja template: {failure.reason}") from failure
            if failure.kind == "stopped":
                raise TokenizerError(f"{self} is stopped: {failure.reason}") from failure
            raise


def _given(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any] | None,
) -> dict[str, Any]:
    return {"documents": None, **(variables or {}), "messages": list(messages), "tools": tools}


@cache
def _check_jinja() -> None:
    try:
        version = metadata.version("jinja2")
    except metadata.PackageNotFoundError as error:
        raise TokenizerError("chat templates need jinja2: pip install 'jinja2>=3.1.6'") from error
    if tuple(int(part) for part in version.split(".")[:3] if part.isdigit()) < _FIRST_SAFE_JINJA:
        raise TokenizerError(
            f"jinja2 {version} has ways out of its sandbox, and chat templates come from strangers: "
            "pip install 'jinja2>=3.1.6'"
        )


def _from_setting(found: Any, origin: str) -> ChatTemplate:
    if isinstance(found, str):
        return ChatTemplate(found, origin=origin)
    # Several templates: a list of {"name", "template"}, or a mapping from one to the other.
    pairs = list(found.items()) if isinstance(found, Mapping) else []
    if isinstance(found, list):
        pairs = [(entry.get("name"), entry.get("template")) for entry in found if isinstance(entry, Mapping)]
    named = {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
    if not named:
        raise TokenizerError(
            f"{origin}: chat_template is a {type(found).__name__}, expected a text or templates with names"
        )
    if "default" not in named:
        names = ", ".join(sorted(named))
        message = f"this model has several chat templates ({names}) and none is the default"
        return ChatTemplate(f"{{{{ raise_exception({json.dumps(message)}) }}}}", origin=origin)
    return ChatTemplate(named["default"], origin=origin, for_tools=named.get("tool_use"))


def _read_setting(file: Path) -> Any:
    try:
        content = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"cannot read {file}: {error}") from error
    return content.get("chat_template") if isinstance(content, dict) else None


def _read_text(file: Path) -> str:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise TokenizerError(f"{file} has {file.stat().st_size:,} bytes, too many for a chat template")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise TokenizerError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from error
