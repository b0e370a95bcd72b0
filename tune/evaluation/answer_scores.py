"""What a model's answers are worth while it is trained: on the first questions of its validation data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from tune.config.component import Component
from tune.config.instantiate import import_component
from tune.data.packing import split_example
from tune.errors import ConfigError
from tune.evaluation.questions import Question, find_question
from tune.evaluation.scores import Metric, score_answer
from tune.tokenizers import Tokenizer

__all__ = ["AnswerScores", "build_metrics"]

OWN_METRICS = "tune.evaluation.metrics."


class Examples(Protocol):
    """Examples by their number, packed or not."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


def build_metrics(components: Component | Sequence[Component] | None) -> dict[str, Metric]:
    """Return the metrics of a config by name; of a function of one's own that is its dotted path."""
    several = (components,) if isinstance(components, Component) else components or ()
    built: dict[str, Metric] = {}
    for one in several:
        built[one.path.removeprefix(OWN_METRICS)] = partial(import_component(one.path), **one.kwargs)
    return built


class AnswerScores:
    """Asks the same questions again and again, as they stand in the data, and scores the answers, which are greedy.

    Args:
        dataset: the examples, which say what is asked and what the answers should be, of pairs the better one; None
            where there are none.
        tokenizer: the one that made them.
        generate: gives the texts that go on from some prompts [n] of token ids, with `max_new_tokens` and `batch_size`.
        metrics: of a config.
        every_n_steps: how often they are asked; None: never.
        num_examples: how many are asked, the first ones.
        max_new_tokens: of an answer.
        batch_size: questions that are answered together.

    Raises:
        ConfigError: nothing in the examples is a question.
    """

    def __init__(
        self,
        dataset: Examples | None,
        tokenizer: Tokenizer,
        generate: Callable[..., list[str]],
        metrics: Component | Sequence[Component] = (),
        every_n_steps: int | None = None,
        num_examples: int = 64,
        max_new_tokens: int = 64,
        batch_size: int = 16,
    ) -> None:
        self.every_n_steps = every_n_steps
        self._generate = generate
        self._how = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
        self._metrics: dict[str, Metric] = {}
        self._questions: list[Question] = []
        if every_n_steps is None or dataset is None:
            return
        self._metrics = build_metrics(metrics)
        last: list[int] = []
        for index in range(len(dataset)):
            if len(self._questions) < num_examples:
                found = (find_question(one, tokenizer) for one in split_example(dataset[index]))
                for question in found:
                    # Of a pair of answers the second one's prompt is the first one's.
                    if question is not None and question.prompt != last:
                        self._questions.append(question)
                        last = question.prompt
        del self._questions[num_examples:]
        if not self._questions:
            raise ConfigError(
                "eval_every_n_steps is set, and nothing in the validation data is a question: all of its text is "
                "learnt, as bare text is, or with train_on_input"
            )

    def measure(self) -> dict[str, float]:
        """Return the mean of each metric over all answers, as `eval_` and its name."""
        answers = self._generate([question.prompt for question in self._questions], **self._how)
        totals = dict.fromkeys(self._metrics, 0.0)
        for question, answer in zip(self._questions, answers, strict=True):
            for name, score in score_answer(self._metrics, answer.strip(), question.reference).items():
                totals[name] += score
        return {f"eval_{name}": total / len(answers) for name, total in totals.items()}
