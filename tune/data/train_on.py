"""Which answers of a conversation are learnt, and whether what is thought before them is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from tune.errors import ConfigError
from tune.tokenizers.messages import Message

TrainOn = Literal["all", "last"]


class LearntAnswers:
    """A transform that leaves messages of another one as they are, but learns fewer of them.

    Args:
        transform: turns a row into `{"messages": [...]}` and more.
        train_on: "all" learns what the transform says, "last" nothing before the last answer but its prompt, where the
            transform learns prompts.
        train_on_reasoning: False reads what is thought before an answer, and does not learn it.

    Raises:
        ConfigError: `train_on` is neither.
    """

    def __init__(
        self,
        transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        train_on: TrainOn = "all",
        train_on_reasoning: bool = True,
    ) -> None:
        if train_on not in get_args(TrainOn):
            raise ConfigError(f"dataset.train_on is {train_on!r}, expected 'all' or 'last'")
        self._transform = transform
        self._train_on = train_on
        self._train_on_reasoning = train_on_reasoning

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        read = dict(self._transform(row))
        messages: Sequence[Message] = read["messages"]
        if self._train_on == "last":
            answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
            first = answers[-2] + 1 if len(answers) > 1 else 0
            messages = [replace(message, masked=True) for message in messages[:first]] + [*messages[first:]]
        if not self._train_on_reasoning:
            messages = [replace(message, masks_reasoning=message.role == "assistant") for message in messages]
        return read | {"messages": messages}
