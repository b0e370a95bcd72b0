"""What a fine-tuning recipe can be told about what it saves, measures and logs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tune.config.component import Component
from tune.config.diagnostics import Diagnostic, problem
from tune.config.params import param
from tune.config.slots import METRIC, METRIC_LOGGER, PROFILER
from tune.config.suggestions import nearest
from tune.recipes.params.limits import MANY


@dataclass(frozen=True)
class OutputParams:
    """What is saved, and how the run is looked on at."""

    known_scores: ClassVar[tuple[str, ...]] = ("loss", "perplexity")  # of a validation

    output_dir: str = param(
        "",
        required=True,
        group="Output",
        help="Folder for saved steps, metrics, logs and the resolved config.",
    )
    resume_from_checkpoint: bool = param(
        False, group="Output", help="Go on from the newest complete saved step in output_dir."
    )
    save_every_n_steps: int | None = param(
        None, minimum=1, maximum=MANY, group="Output", help="Also save every so many optimizer steps."
    )
    allow_changes_on_resume: bool = param(
        False,
        group="Output",
        help="Resume although data or settings have changed since the step was saved; what changed is logged.",
    )
    enable_async_checkpointing: bool = param(
        False,
        group="Output",
        help="Write saved steps while training goes on, from a copy in host memory.",
    )
    save_every_epoch: bool = param(
        True, group="Output", help="Save at the end of each epoch. The last step is always saved."
    )
    keep_last_n_checkpoints: int | None = param(
        None,
        minimum=1,
        maximum=MANY,
        group="Output",
        help="Delete older saved steps beyond this many; null keeps all.",
    )

    # --- Looking on -------------------------------------------------------------------------------------
    run_val_every_n_steps: int | None = param(
        None,
        minimum=1,
        maximum=MANY,
        group="Logging",
        help="Validate every so many optimizer steps; null validates at each epoch's end.",
    )
    generate_every_n_steps: int | None = param(
        None,
        minimum=1,
        maximum=MANY,
        group="Logging",
        help="Answer sample_prompts every so many optimizer steps.",
    )
    sample_prompts: list[str] | None = param(
        None, group="Logging", help="Prompts to answer as training goes on, put into the dataset's template."
    )
    sample_max_new_tokens: int = param(
        64, minimum=1, maximum=MANY, group="Logging", help="Longest sample answer, in tokens."
    )
    eval_every_n_steps: int | None = param(
        None,
        minimum=1,
        maximum=MANY,
        group="Logging",
        help="Let the model answer questions of the validation data every so many optimizer steps, and score that.",
    )
    eval_metrics: Component | tuple[Component, ...] = param(
        ("exact_match",),
        slot=METRIC,
        group="Logging",
        help="What these answers are worth: one or a list of exact_match, normalized_match, number, contains, rouge_l, "
        "json_valid, or functions of one's own; each is logged as eval_ and its name.",
    )
    eval_num_examples: int = param(
        64,
        minimum=1,
        maximum=MANY,
        group="Logging",
        help="Questions that are asked each time, the first ones.",
    )
    eval_max_new_tokens: int = param(
        64, minimum=1, maximum=MANY, group="Logging", help="Longest of these answers, in tokens."
    )
    best_by: str | None = param(
        None,
        group="Output",
        fixed_on_resume=True,
        help="What makes a step the best one: loss, or a metric that is logged, such as exact_match or val_margin; "
        "less is better of losses and perplexities, more of all else. null means loss.",
    )
    early_stopping_patience: int | None = param(
        None,
        minimum=1,
        maximum=MANY,
        group="Optimization",
        help="End the run once so many measurements of best_by in a row have brought nothing better.",
    )
    metric_logger: Component = param(
        "disk",
        slot=METRIC_LOGGER,
        group="Logging",
        help="Where metrics go besides metrics.jsonl: disk, stdout, tensorboard, wandb.",
    )
    log_every_n_steps: int | None = param(
        1,
        minimum=1,
        maximum=MANY,
        group="Logging",
        help="Log every so many optimizer steps; null logs each.",
    )
    log_peak_memory_stats: bool = param(
        True, group="Logging", help="Log the peak memory of the process or GPU."
    )
    log_level: Literal["DEBUG", "INFO", "WARN", "WARNING", "ERROR"] = param(
        "INFO", group="Logging", help="How much is printed."
    )
    profiler: Component | None = param(
        None, slot=PROFILER, group="Logging", help="Profiler, such as tune.training.setup_torch_profiler."
    )

    def eval_settings(self) -> dict[str, Any]:
        """Return which answers are scored as training goes on, as `AnswerScores` takes it."""
        return {
            "metrics": self.eval_metrics,
            "every_n_steps": self.eval_every_n_steps,
            "num_examples": self.eval_num_examples,
            "max_new_tokens": self.eval_max_new_tokens,
        }

    def check_intervals(self, validates: bool) -> Iterator[Diagnostic]:
        """Yield what is done every so many steps to no purpose; `validates` tells whether there is a validation."""
        if self.run_val_every_n_steps and not validates:
            yield problem(
                "needs dataset_val or val_split: there is nothing to validate on",
                ("run_val_every_n_steps", "dataset_val", "val_split"),
            )
        every, saved = self.run_val_every_n_steps, self.save_every_n_steps
        if every and saved and validates and every % saved and saved % every:
            yield problem(
                f"validates every {every} steps and saves every {saved}, so that the best step is seldom one that is "
                "saved: make one a multiple of the other",
                ("run_val_every_n_steps", "save_every_n_steps"),
            )
        if self.generate_every_n_steps and not self.sample_prompts:
            yield problem(
                "needs sample_prompts: there is nothing to answer",
                ("generate_every_n_steps", "sample_prompts"),
            )
        if self.sample_prompts and not self.generate_every_n_steps:
            yield problem(
                "needs generate_every_n_steps, or they are never answered",
                ("sample_prompts", "generate_every_n_steps"),
            )

    def check_scores(self, validates: bool) -> Iterator[Diagnostic]:
        """Yield what is wrong with the metrics of answers, and with what makes a step the best one."""
        if self.eval_every_n_steps and not validates:
            yield problem(
                "needs dataset_val or val_split: there is nothing to answer",
                ("eval_every_n_steps", "dataset_val", "val_split"),
            )
        if self.early_stopping_patience and not validates:
            yield problem(
                "needs dataset_val or val_split: nothing says when to stop",
                ("early_stopping_patience", "dataset_val", "val_split"),
            )
        several = (self.eval_metrics,) if isinstance(self.eval_metrics, Component) else self.eval_metrics
        # One that is not there has no name, and a problem of its own.
        names = [one.path.removeprefix("tune.evaluation.metrics.") for one in several if one.path]
        if not several:
            yield problem("is an empty list: name at least one, such as exact_match", ("eval_metrics",))
        best_by = (self.best_by or "loss").removeprefix("eval_")
        is_of_answers = best_by in names or (self.best_by or "").startswith("eval_")
        if self.best_by is not None and not validates:
            yield problem(
                "needs dataset_val or val_split: nothing is measured", ("best_by", "dataset_val", "val_split")
            )
        if is_of_answers and best_by not in names:
            yield problem(f"is none of eval_metrics, {', '.join(names)}", ("best_by", "eval_metrics"))
        elif is_of_answers and not self.eval_every_n_steps:
            yield problem("is measured of answers: set eval_every_n_steps", ("best_by", "eval_every_n_steps"))
        measured = (*self.known_scores, *(f"val_{name}" for name in self.known_scores))
        # A validation may measure more than is known here; what looks like a slip is not waited for.
        is_free = best_by.startswith("val_") and nearest(best_by, measured) is None
        if not is_of_answers and not is_free and best_by not in measured:
            yield problem(
                f"is no metric that is known: {', '.join((*self.known_scores, 'val_...', *names))}",
                ("best_by",),
                suggestion=nearest(best_by, (*measured, *names)),
            )
