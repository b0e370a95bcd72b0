"""Every parameter of the recipe that scores a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from tune.config.component import Component
from tune.config.diagnostics import Diagnostic, problem
from tune.config.params import param
from tune.config.slots import DATASET, METRIC, STREAMING
from tune.config.trust import is_user_trusted
from tune.recipes.params.data_checks import check_answers, check_datasets
from tune.recipes.params.limits import MANY
from tune.recipes.params.model import ModelParams


@dataclass(frozen=True)
class EvaluateParams(ModelParams):
    """Parameters of `evaluate`: what a model is worth on held-out examples, alone or beside another."""

    recipe_names: ClassVar[tuple[str, ...]] = ("evaluate", "eval", "eleuther_eval")

    against: str | None = param(
        None,
        group="Model",
        help="Another model to compare with, as model_checkpoint names one; base is the one that the run began with.",
    )

    # --- Data -------------------------------------------------------------------------------------------
    data: str | None = param(
        None,
        group="Data",
        help="File, folder or hub name of held-out rows, read as the run reads its own; null takes what the run "
        "validates on.",
    )
    dataset: Component | tuple[Component, ...] | None = param(
        None,
        slot=DATASET,
        group="Data",
        help="The same in full: a builder such as instruct or chat, with its arguments, whatever the run has.",
    )
    group_by: str | None = param(None, group="Data", help="Column by whose values scores are shown, too.")
    limit: int | None = param(
        None, minimum=1, maximum=MANY, group="Data", help="Take so many examples alone, the first ones."
    )
    batch_size: int = param(
        16, minimum=1, maximum=10**6, group="Data", help="Examples that go through the model together."
    )

    # --- Scores -----------------------------------------------------------------------------------------
    compute_loss: bool = param(
        True, group="Scores", help="Measure the loss per target token, and the perplexity."
    )
    metrics: Component | tuple[Component, ...] | None = param(
        ("exact_match",),
        slot=METRIC,
        group="Scores",
        help="What answers are worth beside their references: one or a list of exact_match, normalized_match, number, "
        "contains, rouge_l, json_valid, or functions of one's own; null generates none.",
    )
    max_new_tokens: int = param(
        256, minimum=1, maximum=MANY, group="Scores", help="Longest answer, in tokens."
    )
    temperature: float = param(
        0.0,
        minimum=0.0,
        maximum=1e3,
        group="Scores",
        help="0 always takes the likeliest token; higher is more random.",
    )
    stop: list[str] | None = param(None, group="Scores", help="Texts that end an answer, besides EOS.")
    seed: int = param(
        1234,
        minimum=0,
        maximum=2**32 - 1,
        group="Scores",
        help="Seed of sampling, and of the resamples that intervals come from.",
    )
    enable_kv_cache: bool = param(
        True,
        group="Scores",
        help="Keep keys and values of earlier tokens; false recomputes them at each token.",
    )

    # --- Published tasks --------------------------------------------------------------------------------
    tasks: list[str] | None = param(
        None,
        group="Tasks",
        help="Tasks of the lm-evaluation-harness to run instead, such as [hellaswag, gsm8k]; they bring their data.",
    )
    include_path: str | None = param(
        None,
        group="Tasks",
        help="Folder with task files of one's own. What they say is run as code: it takes --trust lm_eval.",
    )
    num_fewshot: int | None = param(
        None,
        minimum=0,
        maximum=1000,
        group="Tasks",
        help="Examples before each question; null: as tasks say.",
    )
    apply_chat_template: bool = param(
        False, group="Tasks", help="Write a task's questions in the tokenizer's chat template."
    )
    max_seq_length: int | None = param(
        None,
        minimum=2,
        maximum=MANY,
        group="Tasks",
        help="Tokens of the longest sequence of a task, what is longer loses its beginning; null: the model's.",
    )

    # --- Output -----------------------------------------------------------------------------------------
    output_dir: str | None = param(
        None,
        group="Output",
        help="Folder for answers.jsonl and scores.json; null means one in the run's folder (evaluations/...), or in "
        "out/evaluations for a model from elsewhere.",
    )
    json: bool = param(False, group="Output", help="Print scores.json to standard output instead of a table.")

    def cross_checks(self) -> Iterator[Diagnostic]:
        """Yield what is wrong between fields that are each right on their own."""
        yield from super().cross_checks()
        yield from check_datasets(dataset=self.dataset)
        yield from check_answers(dataset=self.dataset)
        if self.data is not None and self.dataset is not None:
            yield problem(
                "and dataset both say which rows: use data for the run's way of reading them, or dataset.source",
                ("data", "dataset"),
            )
        yield from self._check_tasks()
        for name, given in (("data", self.data), ("against", self.against)):
            if given == "":
                yield problem("is empty; remove it", (name,))
        several = (self.dataset,) if isinstance(self.dataset, Component) else self.dataset or ()
        if any(one.kwargs.get(STREAMING) is True for one in several):
            yield problem("must be false: what is scored is read whole; limit takes a part", ("dataset",))
        if not self.compute_loss and not self.metrics:
            yield problem("and metrics leave nothing to measure", ("compute_loss", "metrics"))
        if self.stop and "" in self.stop:
            yield problem("holds an empty text, which every answer begins with; remove it", ("stop",))

    def _check_tasks(self) -> Iterator[Diagnostic]:
        for name in ("data", "dataset", "group_by"):
            if self.tasks and getattr(self, name):
                yield problem("has no effect: tasks bring their own data", (name, "tasks"))
        for name in ("include_path", "num_fewshot", "max_seq_length"):
            if getattr(self, name) is not None and not self.tasks:
                yield problem("is for tasks, and none is named", (name, "tasks"))
        if self.tasks is not None and not all(task.strip() for task in self.tasks):
            yield problem("names a task by an empty text", ("tasks",))
        if self.include_path is not None and not is_user_trusted("lm_eval"):
            yield problem(
                "names a folder of task files, and what stands in them is run as code. If you know who wrote it, add "
                "--trust lm_eval",
                ("include_path",),
                code="untrusted-component",
            )
