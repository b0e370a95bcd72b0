"""The parameters that all fine-tuning recipes share: declared once, checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from tune.config.component import Component
from tune.config.diagnostics import Diagnostic, problem
from tune.config.params import agreed_values, check_params, param, refuse_unknown
from tune.config.slots import (
    CHECKPOINTER,
    COLLATE_FN,
    DATASET,
    LOSS,
    LR_SCHEDULER,
    METRIC,
    METRIC_LOGGER,
    MODEL,
    OPTIMIZER,
    PROFILER,
    TOKENIZER,
)
from tune.config.suggestions import nearest
from tune.recipes.params.checks import (
    check_answers,
    check_checkpointer,
    check_collation,
    check_datasets,
    check_loss,
    check_lr_scheduler,
    check_mixing,
    check_optimizer,
    check_processes,
    check_sizes,
    check_streaming,
    check_val_split,
)
from tune.recipes.params.shared_rows import warn_of_shared_rows
from tune.utils.exclusions import Choices

# More steps, passes or tokens than anyone waits for, and sequences than any device holds: a slip of the keyboard.
_MANY = 10**9
_MANY_SEQUENCES = 2**20


@dataclass(frozen=True)
class FinetuneParams:
    """What a recipe that trains a model on examples can be told; each recipe adds what is its own."""

    known_scores: ClassVar[tuple[str, ...]] = ("loss", "perplexity")  # of a validation

    # --- Model: what is trained, and from which weights -------------------------------------------------
    model: Component = param(
        "auto",
        slot=MODEL,
        group="Model",
        help="Architecture: a builder such as llama2_7b, or auto to build what the checkpoint describes.",
    )
    model_checkpoint: str | None = param(
        None,
        short_for="checkpointer.checkpoint_dir",
        group="Model",
        help="Folder with the weights to start from (Hugging Face or Meta layout).",
    )
    checkpointer: Component = param(
        "tune.training.FullModelCheckpointer",
        slot=CHECKPOINTER,
        group="Model",
        help="Reads the starting weights and writes the trained ones.",
    )
    tokenizer: Component = param(
        "auto",
        slot=TOKENIZER,
        group="Model",
        help="Tokenizer: a builder such as llama2_tokenizer, or auto to read the one in the checkpoint folder.",
    )
    tokenizer_checkpoint: str | None = param(
        None,
        short_for="tokenizer.path",
        group="Model",
        help="The tokenizer's file, for example tokenizer.model.",
    )

    # --- Data: what it learns from ----------------------------------------------------------------------
    dataset: Component | tuple[Component, ...] = param(
        "",
        slot=DATASET,
        required=True,
        group="Data",
        help="Training data: a builder such as alpaca or instruct. A list of them is joined into one, or mixed where "
        "each has a weight.",
    )
    mix_until: Literal["first_exhausted", "all_exhausted"] = param(
        "first_exhausted",
        group="Data",
        help="When an epoch of datasets with weights ends: first_exhausted, so that no example comes twice; or "
        "all_exhausted, so that every example comes, and some again.",
    )
    train_on_input: bool | None = param(
        None,
        short_for="dataset.train_on_input",
        group="Data",
        help="Whether the prompt is trained on too, or only the response.",
    )
    dataset_val: Component | None = param(
        None,
        slot=DATASET,
        inherits="dataset",
        group="Data",
        help="Validation data; its loss is reported, never trained on. Without a _component_ it is read as dataset is: "
        "dataset_val.source alone will do.",
    )
    val_split: float | None = param(
        None,
        above=0,
        maximum=_MANY,
        group="Data",
        help="Validate on a part of dataset that is set aside, drawn by seed: a share below 1, or a number of "
        "examples. Equal examples are never on both sides.",
    )
    dataset_num_proc: int | None = param(
        None,
        minimum=1,
        maximum=1024,
        group="Data",
        help="Processes that tokenize the data, where it takes more than a moment; null takes one per core.",
    )
    data_cache_dir: str | None = param(
        None,
        group="Data",
        help="Folder in which tokenized data is kept for the next run; null means $XDG_CACHE_HOME/tune/data (or "
        "~/.cache/tune/data), off keeps none. TUNE_DATA_CACHE_GB bounds its size.",
    )
    shuffle: bool = param(
        True, group="Data", fixed_on_resume=True, help="Take the examples in a new random order every epoch."
    )
    batch_size: int = param(
        2,
        minimum=1,
        maximum=_MANY_SEQUENCES,
        group="Data",
        help="Sequences per device and micro-step.",
    )
    num_workers: int = param(
        0,
        minimum=0,
        maximum=256,
        group="Data",
        help="Processes that prepare batches ahead, for each process that trains; 0 prepares them in between.",
    )
    batch_size_val: int | None = param(
        None,
        minimum=1,
        maximum=_MANY_SEQUENCES,
        group="Data",
        help="Sequences per device in validation; null means batch_size.",
    )
    collate_fn: Component = param(
        "tune.data.padded_collate_sft",
        slot=COLLATE_FN,
        group="Data",
        fixed_on_resume=True,
        help="Function that turns a list of examples into one padded batch.",
    )

    # --- Optimization: how it learns --------------------------------------------------------------------
    epochs: int = param(
        1, minimum=1, maximum=_MANY, group="Optimization", help="Passes over the training data."
    )
    max_steps: int | None = param(
        None,
        minimum=1,
        maximum=_MANY,
        group="Optimization",
        help="End the run after this many optimizer steps, in as many passes over the data as that takes: epochs then "
        "counts for nothing. null takes epochs.",
    )
    max_steps_per_epoch: int | None = param(
        None,
        minimum=1,
        maximum=_MANY,
        group="Optimization",
        fixed_on_resume=True,
        help="End each epoch after this many optimizer steps.",
    )
    gradient_accumulation_steps: int = param(
        1,
        minimum=1,
        maximum=_MANY_SEQUENCES,
        group="Optimization",
        help="Micro-steps whose gradients make one optimizer step.",
    )
    optimizer: Component = param(
        "tune.modules.optim.AdamW",
        slot=OPTIMIZER,
        group="Optimization",
        fixed_on_resume=True,
        help="Optimizer class, such as AdamW (which also learns in bf16) or SGD.",
    )
    lr: float | None = param(
        None,
        short_for="optimizer.lr",
        minimum=0.0,
        maximum=1e3,
        group="Optimization",
        help="Learning rate at its peak. It has to be given, here or as an argument of the optimizer.",
    )
    embedding_lr: float | None = param(
        None,
        minimum=0.0,
        maximum=1e3,
        group="Optimization",
        fixed_on_resume=True,
        help="Learning rate of the embedding; null means that of all weights.",
    )
    decay_norms_and_biases: bool = param(
        True,
        group="Optimization",
        fixed_on_resume=True,
        help="Whether the optimizer's weight_decay is for norms and biases, too.",
    )
    freeze: list[str] | None = param(
        None,
        group="Optimization",
        fixed_on_resume=True,
        help="Weights that are not trained: names of modules or parts of them, ranges of layers, such as "
        '[tok_embeddings, "layers.0-7"].',
    )
    lr_scheduler: Component | None = param(
        None,
        slot=LR_SCHEDULER,
        group="Optimization",
        fixed_on_resume=True,
        help="Learning-rate schedule over optimizer steps, such as cosine; null keeps the rate constant.",
    )
    loss: Component = param(
        "tune.modules.loss.LinearCrossEntropyLoss",
        slot=LOSS,
        group="Optimization",
        fixed_on_resume=True,
        help="Loss over the target tokens.",
    )
    clip_grad_norm: float | None = param(
        None,
        minimum=1e-6,
        group="Optimization",
        fixed_on_resume=True,
        help="Scale the gradient down to this 2-norm when it is larger.",
    )
    optimizer_in_bwd: bool = param(
        False,
        group="Optimization",
        fixed_on_resume=True,
        help="Step each weight as soon as its gradient is there, which saves the memory of all gradients.",
    )
    on_non_finite: Literal["stop", "skip"] = param(
        "stop",
        group="Optimization",
        help="What to do before a step whose loss or gradient is NaN or infinite.",
    )
    deterministic: bool = param(
        False,
        group="Optimization",
        help="Take only ways that give the same result each time, which a GPU otherwise does not: slower there.",
    )
    seed: int | None = param(
        None,
        minimum=0,
        maximum=2**32 - 1,
        group="Optimization",
        help="Seed of everything random; null draws one and writes it down.",
    )

    # --- Precision and memory ---------------------------------------------------------------------------
    device: str | None = param(
        None,
        pattern=r"cpu|mps|cuda(:\d+)?",
        pattern_help="cpu, cuda, cuda:N or mps",
        group="Device",
        help="cpu, cuda, cuda:N or mps; null takes a GPU when there is one.",
    )
    dtype: Literal["bf16", "fp32", "fp16"] = param(
        "bf16", group="Device", fixed_on_resume=True, help="Precision of the forward and backward pass."
    )
    param_dtype: Literal["bf16", "fp32"] | None = param(
        None,
        group="Device",
        fixed_on_resume=True,
        help="Precision the weights and the optimizer are kept in; null means dtype (fp32 for fp16).",
    )
    compile: bool | Literal["auto"] = param(
        "auto",
        group="Device",
        help="Compile each block with torch.compile: slower start, faster steps. auto does so on a GPU that can.",
    )
    enable_activation_checkpointing: bool | Literal["auto"] = param(
        "auto",
        group="Device",
        help="Recompute each block in the backward pass: less memory, about a third more work. auto recomputes as few "
        "blocks as memory allows.",
    )
    enable_activation_offloading: bool = param(
        False, group="Device", help="Keep saved activations in host memory. Needs a GPU."
    )

    # --- Many processes ---------------------------------------------------------------------------------
    enable_fsdp: bool = param(
        True, group="Distributed", help="Shard weights over the processes; without effect on one process."
    )
    data_parallel_replicate_dim: int = param(
        1,
        minimum=1,
        maximum=_MANY_SEQUENCES,
        group="Distributed",
        help="Groups of processes that each hold a full copy.",
    )
    data_parallel_shard_dim: int = param(
        -1,
        minimum=-1,
        maximum=_MANY_SEQUENCES,
        group="Distributed",
        help="Processes one copy is sharded over; -1 means all that are left.",
    )
    fsdp_cpu_offload: bool = param(
        False, group="Distributed", help="Keep sharded weights and optimizer in host memory."
    )
    custom_sharded_layers: list[str] | None = param(
        None,
        group="Distributed",
        help="Further layers gathered on their own; blocks and untied embeddings are in any case.",
    )
    low_cpu_ram: bool = param(
        False,
        group="Distributed",
        help="Accepted from older configs. Loading holds at most one copy of the weights either way.",
    )

    # --- Saving -----------------------------------------------------------------------------------------
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
        None, minimum=1, maximum=_MANY, group="Output", help="Also save every so many optimizer steps."
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
        maximum=_MANY,
        group="Output",
        help="Delete older saved steps beyond this many; null keeps all.",
    )

    # --- Looking on -------------------------------------------------------------------------------------
    run_val_every_n_steps: int | None = param(
        None,
        minimum=1,
        maximum=_MANY,
        group="Logging",
        help="Validate every so many optimizer steps; null validates at each epoch's end.",
    )
    generate_every_n_steps: int | None = param(
        None,
        minimum=1,
        maximum=_MANY,
        group="Logging",
        help="Answer sample_prompts every so many optimizer steps.",
    )
    sample_prompts: list[str] | None = param(
        None, group="Logging", help="Prompts to answer as training goes on, put into the dataset's template."
    )
    sample_max_new_tokens: int = param(
        64, minimum=1, maximum=_MANY, group="Logging", help="Longest sample answer, in tokens."
    )
    eval_every_n_steps: int | None = param(
        None,
        minimum=1,
        maximum=_MANY,
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
        maximum=_MANY,
        group="Logging",
        help="Questions that are asked each time, the first ones.",
    )
    eval_max_new_tokens: int = param(
        64, minimum=1, maximum=_MANY, group="Logging", help="Longest of these answers, in tokens."
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
        maximum=_MANY,
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
        maximum=_MANY,
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

    _agreed: Any = agreed_values()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse what is no parameter in our words: `MyParams(**vars(args))` may hand in anything."""
        refuse_unknown(cls, kwargs)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_params(self)

    def data_settings(self) -> dict[str, Any]:
        """Return how data is tokenized, as `build_datasets` takes it."""
        return {"num_proc": self.dataset_num_proc, "data_cache_dir": self.data_cache_dir}

    def memory_settings(self) -> dict[str, Any]:
        """Return what decides how much memory the run needs, as `plan_memory` takes it."""
        return {
            "optimizer": self.optimizer,
            "batch_size": self.batch_size,
            "accumulates": self.gradient_accumulation_steps > 1,
            "cpu_offload": self.fsdp_cpu_offload,
            "activation_checkpointing": self.enable_activation_checkpointing,
            "activation_offloading": self.enable_activation_offloading,
            "optimizer_in_backward": self.optimizer_in_bwd,
        }

    def step_settings(self) -> dict[str, Any]:
        """Return what a step is made of, and what ends an epoch or the run, as `TrainState.plan_steps` takes it."""
        return {
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "max_steps_per_epoch": self.max_steps_per_epoch,
            "max_steps": self.max_steps,
            "best_by": self.best_by,
            "patience": self.early_stopping_patience,
        }

    def eval_settings(self) -> dict[str, Any]:
        """Return which answers are scored as training goes on, as `AnswerScores` takes it."""
        return {
            "metrics": self.eval_metrics,
            "every_n_steps": self.eval_every_n_steps,
            "num_examples": self.eval_num_examples,
            "max_new_tokens": self.eval_max_new_tokens,
        }

    def shard_settings(self) -> dict[str, Any]:
        """Return how weights are sharded, as `shard_model` takes it."""
        return {"own_layers": self.custom_sharded_layers, "cpu_offload": self.fsdp_cpu_offload}

    def optimizer_settings(self) -> dict[str, Any]:
        """Return how the optimizer steps, and what it is told of some weights alone, as `build_optimizer` takes it."""
        return {
            "in_backward": self.optimizer_in_bwd,
            "decay_norms_and_biases": self.decay_norms_and_biases,
            "embedding_lr": self.embedding_lr,
        }

    def requires_shards(self) -> bool:
        """Tell whether weights have to be sharded, where one could choose.

        It was asked for by number; or steps within the backward pass come before the gradients of whole copies are
        added up.
        """
        return self.data_parallel_shard_dim > 1 or self.fsdp_cpu_offload or self.optimizer_in_bwd

    def notices(self, is_sharded: bool) -> Iterator[str]:
        """Yield what is to be said of data that is both learnt and validated on, and of settings that do nothing."""
        yield from warn_of_shared_rows(self.dataset, self.dataset_val)
        if self.custom_sharded_layers and not is_sharded:
            yield f"Nothing is sharded: custom_sharded_layers {self.custom_sharded_layers} has no effect."
        if self.low_cpu_ram:
            yield "Loading holds one tensor beside the model's own, with or without low_cpu_ram."

    def process_choices(self) -> Choices:
        """Return how the processes of the run are split, and what they have to carry out together."""
        return Choices(
            enable_fsdp=self.enable_fsdp,
            replicate_dim=self.data_parallel_replicate_dim,
            shard_dim=self.data_parallel_shard_dim,
            cpu_offload=self.fsdp_cpu_offload,
            optimizer_in_bwd=self.optimizer_in_bwd,
            dtype=self.dtype,
        )

    def cross_checks(self) -> Iterator[Diagnostic]:
        """Yield what is wrong between fields that are each right on their own."""
        yield from self._check_optimization()
        yield from self._check_precision_and_device()
        yield from check_processes(
            self.process_choices(), self.optimizer, self._quantized_by(), self.custom_sharded_layers or ()
        )
        yield from check_sizes(self.model)
        yield from check_datasets("dataset", self.dataset)
        yield from check_datasets("dataset_val", self.dataset_val)
        yield from check_mixing(self.dataset, self.mix_until)
        yield from self._check_task()
        yield from check_streaming(self.dataset, self.dataset_val, self.max_steps, self.val_split)
        yield from check_val_split(self.val_split, self.dataset_val)
        validates = self.dataset_val is not None or self.val_split is not None
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
        yield from self._check_scores(validates)
        if self.batch_size_val and not validates:
            yield problem(
                "has no effect without dataset_val or val_split",
                ("batch_size_val", "dataset_val", "val_split"),
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

    def _check_task(self) -> Iterator[Diagnostic]:
        """Yield which datasets hold something else than this recipe learns from."""
        yield from check_answers(dataset=self.dataset, dataset_val=self.dataset_val)

    def _check_scores(self, validates: bool) -> Iterator[Diagnostic]:
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

    def _quantized_by(self) -> str:
        """Return the field that asks for weights in 4 bits; "" where none does."""
        return ""

    def _check_optimization(self) -> Iterator[Diagnostic]:
        if self.optimizer_in_bwd and self.gradient_accumulation_steps > 1:
            yield problem(
                f"steps within one backward pass, but {self.gradient_accumulation_steps} are accumulated; use 1",
                ("optimizer_in_bwd", "gradient_accumulation_steps"),
            )
        if self.optimizer_in_bwd and self.clip_grad_norm is not None:
            yield problem(
                "never holds all gradients at once, so their norm cannot be clipped; set clip_grad_norm to null",
                ("optimizer_in_bwd", "clip_grad_norm"),
            )
        if self.optimizer_in_bwd and self.on_non_finite == "skip":
            yield problem(
                "has stepped before all gradients are known, so no step can be skipped; use stop",
                ("optimizer_in_bwd", "on_non_finite"),
            )
        yield from check_optimizer(self.optimizer)
        yield from check_lr_scheduler(self.lr_scheduler)
        yield from check_loss(self.loss)
        yield from check_collation(self.collate_fn)
        yield from check_checkpointer(self.checkpointer)

    def _check_precision_and_device(self) -> Iterator[Diagnostic]:
        if self.dtype == "fp32" and self.param_dtype == "bf16":
            yield problem("is less precise than dtype fp32; use fp32 or null", ("param_dtype", "dtype"))
        if self.dtype == "fp16" and self.param_dtype == "bf16":
            yield problem("must be fp32 (or null) when dtype is fp16", ("param_dtype", "dtype"))
        if self.device == "cpu" and self.dtype == "fp16":
            yield problem("fp16 has no useful speed on a CPU; use bf16 or fp32", ("dtype", "device"))
        for name, what in (("enable_activation_offloading", "activations"), ("fsdp_cpu_offload", "weights")):
            if self.device in ("cpu", "mps") and getattr(self, name):
                yield problem(f"moves {what} off a GPU, but device is {self.device}", (name, "device"))
