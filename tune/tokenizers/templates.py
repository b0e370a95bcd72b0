"""Prompt templates: how a conversation is written as text, the same for training and for inference.

A template turns messages into segments. The text up to an answer is one segment, tokenized alone, and the
answer is tokenized as its continuation: a model that is given the same prompt later sees the same ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tune.errors import ConfigError, DataError
from tune.tokenizers.chat_template_builtin import (
    BUILTIN_CLASS_NAMES,
    BUILTIN_NAMES,
    builtin_template,
)
from tune.tokenizers.chat_template_render import CHECKPOINT_TEMPLATE, ChatTemplate
from tune.tokenizers.learnt_places import BLANK, answer_places, place_content
from tune.tokenizers.messages import ROLES, Message, WeightedSpan


@dataclass(frozen=True)
class Segment:
    """A piece of text that is tokenized in one go.

    Args:
        text: as the model reads it.
        masked: True where its tokens are not learnt.
        add_bos: starts a sequence with a BOS.
        add_eos: ends it with an EOS, which is learnt where the text is.
        continuation: goes on right after the segment before.
        weight: what the loss of its tokens is multiplied by where they are learnt.
        places: parts of the text, as (start, end, weight), in order: nothing else of it is learnt then, but its EOS.
    """

    text: str
    masked: bool
    add_bos: bool = False
    add_eos: bool = False
    continuation: bool = False
    weight: float = 1.0
    places: tuple[WeightedSpan, ...] | None = None


@dataclass(frozen=True)
class PromptTemplate:
    """Text before and after the messages of each role.

    What stands before the assistant's content belongs to the prompt; what stands after it is learnt. Spaces
    at the end of a prompt move to the start of the answer, where sentencepiece keeps them in pretraining
    text: "Answer: " + "42" is read as "Answer:" and learnt as " 42".

    Args:
        system, user, assistant: text before and text after the content.
        name: shown in reports.
    """

    system: tuple[str, str] = ("", "")
    user: tuple[str, str] = ("", "")
    assistant: tuple[str, str] = ("", "")
    name: str = "custom"

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """Return the pieces of a conversation: for each answer, the prompt before it, then the answer.

        Of a prompt whose messages have different weights their contents alone are learnt. A conversation may end with
        a user's message: the last segment is then the prompt a model continues.
        """
        pieces: list[Segment] = []
        for asked, answer in _turn_pairs(messages):
            prompt = self.write_prompt(asked)
            read = prompt.rstrip(" ")
            weights = {message.weight for message in asked}
            weight = max(weights, default=1.0)
            places = None
            if len(weights) > 1 or any(message.spans for message in asked):
                places = tuple(self._asked_places(asked))
            pieces.append(Segment(read, weight == 0, add_bos=True, weight=weight, places=places))
            if answer is not None:
                text = prompt[len(read) :] + self.write_answer(answer)
                is_parted = answer.spans or answer.masks_reasoning
                pieces.append(
                    Segment(
                        text,
                        answer.masked,
                        add_eos=True,
                        continuation=bool(read),
                        weight=answer.weight,
                        places=tuple(answer_places(answer, text)) if is_parted else None,
                    )
                )
        return pieces

    def _asked_places(self, asked: Sequence[Message]) -> Iterator[WeightedSpan]:
        """Yield the places of the messages' contents in their prompt."""
        text = self.write_prompt(asked)
        for index, message in enumerate(asked):
            probed = self.write_prompt(
                [*asked[:index], replace(message, content=BLANK, spans=()), *asked[index + 1 :]]
            )
            start = next((i for i, (one, other) in enumerate(zip(text, probed)) if one != other), len(text))
            written = text[start : start + len(text) - len(probed) + len(BLANK)]
            if not message.weight:
                continue
            if written.strip() != message.content.strip():
                raise DataError(
                    f"the template {self.name} changes the message by the {message.role}, so it cannot be told from "
                    "those beside it, which are learnt otherwise: give them one weight"
                )
            yield from place_content(message, start + len(written) - len(written.lstrip()))

    def prompt(self, text: str, system: str = "") -> str:
        """Return what a model reads when a user says `text`, ready for `encode(..., add_eos=False)`."""
        messages = [Message("system", system)] if system else []
        return self.write_prompt([*messages, Message("user", text)]).rstrip(" ")

    def write_prompt(self, messages: Sequence[Message]) -> str:
        """Return the text of the messages before an answer, up to where the answer starts."""
        text = ""
        for message in messages:
            before, after = self.user if message.role == "user" else self.system
            text += before + message.content + after
        return text + self.assistant[0]

    def write_answer(self, message: Message) -> str:
        """Return the text of an answer, as the model shall write it."""
        return message.content + self.assistant[1]


@dataclass(frozen=True)
class PlainTemplate(PromptTemplate):
    """Messages as they are, one right after the other; a blank line after the system's."""

    system: tuple[str, str] = ("", "\n\n")
    name: str = "plain"


@dataclass(frozen=True)
class AlpacaInstructTemplate(PromptTemplate):
    """The prompt of Stanford Alpaca for an instruction without input."""

    # https://github.com/tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT; the line break after "Response:" is
    # torchtune's, and the answer starts on a line of its own.
    system: tuple[str, str] = ("", "\n\n")
    user: tuple[str, str] = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\n",
        "\n\n### Response:\n",
    )
    name: str = "alpaca"


@dataclass(frozen=True)
class QuestionAnswerTemplate(PromptTemplate):
    """ "Question: ...", and "Answer: ..." on a line of its own."""

    system: tuple[str, str] = ("", "\n")
    user: tuple[str, str] = ("Question: ", "\n")
    assistant: tuple[str, str] = ("Answer: ", "")
    name: str = "question_answer"


@dataclass(frozen=True)
class SummarizeTemplate(PromptTemplate):
    """ "Summarize this dialogue:", the text, and the summary."""

    system: tuple[str, str] = ("", "\n")
    user: tuple[str, str] = ("Summarize this dialogue:\n", "\n---\n")
    assistant: tuple[str, str] = ("Summary:\n", "")
    name: str = "summarize"


@dataclass(frozen=True)
class GrammarErrorCorrectionTemplate(PromptTemplate):
    """A faulty sentence, and the corrected one."""

    system: tuple[str, str] = ("", "\n")
    user: tuple[str, str] = ("Correct this to standard English: ", "\n---\n")
    assistant: tuple[str, str] = ("Corrected: ", "")
    name: str = "grammar_error_correction"


@dataclass(frozen=True)
class ChatMLTemplate(PromptTemplate):
    """ChatML written as text, for models whose tokenizer has no chat tokens of its own."""

    system: tuple[str, str] = ("<|im_start|>system\n", "<|im_end|>\n")
    user: tuple[str, str] = ("<|im_start|>user\n", "<|im_end|>\n")
    assistant: tuple[str, str] = ("<|im_start|>assistant\n", "<|im_end|>")
    name: str = "chatml"


@dataclass(frozen=True)
class Llama2ChatTemplate(PromptTemplate):
    """The format of Llama 2 Chat: each pair of turns between BOS and EOS, the system inside the first."""

    # https://github.com/meta-llama/llama, llama/generation.py, chat_completion; arXiv:2307.09288
    system: tuple[str, str] = ("<<SYS>>\n", "\n<</SYS>>\n\n")
    user: tuple[str, str] = ("[INST] ", " [/INST]")
    assistant: tuple[str, str] = (" ", " ")
    name: str = "llama2_chat"

    def write_prompt(self, messages: Sequence[Message]) -> str:
        """Return "[INST] ... [/INST] ", with the system's text at the start of the user's."""
        text = ""
        for message in messages:
            before, after = ("", "") if message.role == "user" else self.system
            text += before + message.content + after
        return self.user[0] + text.strip() + self.user[1] + self.assistant[0]

    def write_answer(self, message: Message) -> str:
        """Return the answer without space around it but for the one that the format puts before EOS."""
        return message.content.strip() + self.assistant[1]


AnyTemplate = PromptTemplate | ChatTemplate
PromptTemplateSpec = str | Mapping[str, Sequence[str]] | PromptTemplate | ChatTemplate
_BY_NAME: dict[str, type[PromptTemplate]] = {
    template().name: template
    for template in (
        PlainTemplate,
        AlpacaInstructTemplate,
        QuestionAnswerTemplate,
        SummarizeTemplate,
        GrammarErrorCorrectionTemplate,
        ChatMLTemplate,
        Llama2ChatTemplate,
    )
}
_BY_CLASS_NAME = {template.__name__: template for template in _BY_NAME.values()}


def text_template_names() -> tuple[str, ...]:
    """Return the names of the templates that are text around messages."""
    return tuple(_BY_NAME)


def template_names() -> tuple[str, ...]:
    """Return the names that `get_prompt_template` knows."""
    return (*_BY_NAME, *BUILTIN_NAMES, CHECKPOINT_TEMPLATE)


def get_prompt_template(spec: PromptTemplateSpec) -> AnyTemplate:
    """Return the template that `spec` describes.

    Args:
        spec: a short name such as "alpaca" or "llama3", or "chat" for the chat template of the checkpoint; a template
            of this package by its dotpath; a `.jinja` file; a mapping of roles to the text before and after, such as
            `{user: ["Q: ", "\\n"], assistant: ["A: ", ""]}`; or a template, returned as it is. A template of
            another package is given as an object (in a config with `_component_`), so that the rules of trust apply.

    Raises:
        ConfigError: there is no such template, or the mapping is malformed.
        TokenizerError: the file cannot be read.
    """
    if isinstance(spec, PromptTemplate | ChatTemplate):
        return spec
    if isinstance(spec, str):
        return _template_by_name(spec)
    if isinstance(spec, Mapping):
        return _template_from_mapping(spec)
    # Reached from configs, whose values are whatever was written there.
    raise ConfigError(
        f"prompt_template is a {type(spec).__name__}, expected a name ({', '.join(template_names())}), a .jinja file, "
        "a mapping of roles to [text before, text after], or a PromptTemplate"
    )


def check_variables(template: AnyTemplate, variables: Mapping[str, Any], setting: str) -> None:
    """Raise ConfigError where a template does not read one of the variables that `setting` gives it."""
    known = template.variables() if isinstance(template, ChatTemplate) else frozenset()
    unread = [name for name in variables if name not in known]
    if unread:
        raise ConfigError(
            f"{setting} sets {', '.join(unread)}, which the template {template.name} does not read; "
            f"it reads {', '.join(sorted(known)) or 'none'}"
        )


def _template_by_name(name: str) -> AnyTemplate:
    if name in _BY_NAME:
        return _BY_NAME[name]()
    if name in BUILTIN_NAMES:
        return builtin_template(name)
    if name == CHECKPOINT_TEMPLATE:
        return ChatTemplate.of_checkpoint()
    if name.endswith((".jinja", ".jinja2", ".j2")):
        return ChatTemplate.from_file(name, "custom")
    package, _, class_name = name.rpartition(".")
    if package.startswith(("tune.", "torchtune.")):
        if class_name in _BY_CLASS_NAME:
            return _BY_CLASS_NAME[class_name]()
        if class_name in BUILTIN_CLASS_NAMES:
            return builtin_template(BUILTIN_CLASS_NAMES[class_name])
    raise ConfigError(
        f"there is no prompt template {name!r}; known are {', '.join(template_names())}. A template of your own is a "
        ".jinja file, or a mapping {user: [before, after], assistant: [before, after]}, or "
        "{_component_: your.package.Template}"
    )


def _template_from_mapping(spec: Mapping[str, Sequence[str]]) -> PromptTemplate:
    parts: dict[str, Any] = {}
    for role, around in spec.items():
        if role not in ROLES:
            raise ConfigError(f"prompt_template has no role {role!r}; roles are {', '.join(ROLES)}")
        is_pair = isinstance(around, list | tuple) and len(around) == 2
        if not is_pair or not all(isinstance(text, str) for text in around):
            raise ConfigError(
                f"prompt_template.{role} is {around!r}, expected two texts: [before the content, after it]"
            )
        parts[role] = tuple(around)
    if "user" not in parts:
        raise ConfigError("prompt_template has no text for the role 'user'")
    return PromptTemplate(**parts)


def _turn_pairs(messages: Sequence[Message]) -> Iterator[tuple[list[Message], Message | None]]:
    """Yield the messages before each answer with the answer, None after the last if there is none."""
    rest = iter(messages)
    while True:
        asked: list[Message] = []
        answer = None
        for message in rest:
            if message.role not in ROLES:
                raise DataError(
                    f"there is no role {message.role!r} in a text template; roles are {', '.join(ROLES)}"
                )
            if message.tool_calls or message.reasoning_content:
                raise DataError(
                    "calls of tools and thinking are written by chat templates, not by text templates"
                )
            if message.role == "assistant":
                answer = message
                break
            asked.append(message)
        if not asked and answer is None:
            return
        yield asked, answer
