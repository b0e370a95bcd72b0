"""What watches a run: speed, memory, progress, spikes of the loss, and the files and services it writes to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from torch import Tensor

from tune.config.component import Component
from tune.config.instantiate import instantiate
from tune.modules import TransformerDecoder
from tune.training.batches import TokenCounts
from tune.training.distributed.sharded_model import describe_processes
from tune.training.losses import is_cross_entropy, perplexity
from tune.training.memory.available import get_peak_memory_gib
from tune.training.memory.check import MemoryCheck
from tune.training.memory.plan import MemoryPlan
from tune.training.metric_logging import FileLogger, JSONLLogger, MetricLogger
from tune.training.precision import Precision
from tune.training.profiler import DummyProfiler, Profiler, build_profiler
from tune.training.progress import Progress, describe_result, format_summary
from tune.training.saving.checkpoints import Checkpoints
from tune.training.saving.run_record import Report
from tune.training.spikes import SpikeWatch
from tune.training.throughput import build_speed_meter
from tune.training.train_state import TrainState
from tune.utils import get_logger

__all__ = ["Monitor"]


class ObjectiveMetrics(Protocol):
    """What an objective measures besides its loss, as `LossParts` and `PreferenceMetrics` do; and what it counts."""

    @property
    def targets(self) -> str: ...

    def end_step(self) -> None: ...

    def read_line(self, clear: bool = True) -> dict[str, float]: ...


class AnswerScores(Protocol):
    """What scores answers as training goes on: `tune.evaluation.AnswerScores`."""

    every_n_steps: int | None

    def measure(self) -> dict[str, float]: ...


class Monitor:
    """Watches a run and says what it sees: on the terminal, in metrics.jsonl, and where a config wants it besides.

    Args:
        checkpoints: of the run, beside which the monitor's files are.
        model: the work on it is counted, as far as it is trained.
        precision: of the run.
        memory_plan: what was predicted, to be compared with what the first steps take.
        log_peak_memory: whether the peak memory is among the metrics.

    Attributes:
        spikes: has a state that belongs to the run's.
        objective: what else the objective measures; None for a loss alone.
        answers: scores answers to validation data every so many steps; None for none.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        model: TransformerDecoder,
        precision: Precision,
        memory_plan: MemoryPlan | None = None,
        log_peak_memory: bool = True,
    ) -> None:
        self._output_dir = checkpoints.output_dir
        self._checkpoints = checkpoints
        self._mesh = checkpoints.mesh
        self._model = model
        self._precision = precision
        self._log_peak_memory = log_peak_memory
        self._speed = build_speed_meter(model, self._mesh.device, precision, self._mesh.world_size)
        self._memory = MemoryCheck(memory_plan, checkpoints.record)
        self._metrics: list[MetricLogger] = []
        self._samples: list[MetricLogger] = []
        self._profiler: Profiler = DummyProfiler()
        self.objective: ObjectiveMetrics | None = None
        self.answers: AnswerScores | None = None
        self.spikes = SpikeWatch()
        self._steps_in_line = 1
        # Of another loss than that of the next token there is none.
        self._has_perplexity = memory_plan is not None and is_cross_entropy(memory_plan.run.loss_fn)

    def open(
        self, metric_logger: Component, profiler: Component | None = None, report: Report | None = None
    ) -> None:
        """Open what the run writes to; of several processes the first one does.

        Args:
            metric_logger: the config's logger: its class and arguments.
            profiler: the config's profiler, if any.
            report: writes the page about the run, at each saved step and at the end; None for no page.
        """
        self._checkpoints.record.report = report
        if not self._mesh.is_rank_zero:
            return
        folder, overwrite = str(self._output_dir), not self._checkpoints.resumed
        self._samples.append(JSONLLogger(folder, "samples.jsonl", overwrite))
        own = JSONLLogger(folder, overwrite=overwrite)
        # The service goes on with the run that it knows, as the files do.
        defaults = {"log_dir": folder, "resume": self._checkpoints.resumed is not None}
        named = instantiate(metric_logger, defaults=defaults)
        # A config may name the very file that every run writes: each line stands in it once.
        is_own_file = isinstance(named, JSONLLogger) and named.path.resolve() == own.path.resolve()
        self._metrics += [own] if is_own_file else [own, named]
        self._profiler = build_profiler(profiler, self._output_dir / "profiler")

    def announce(
        self, state: TrainState, batch_size: int, gradient_accumulation_steps: int, *lines: str
    ) -> None:
        """Say what is trained, in how many steps of what, and how fast it might be; `lines` are what else to say."""
        sizes = [(weight.numel(), weight.requires_grad) for weight in self._model.parameters()]
        num_all = sum(size for size, _ in sizes)
        num_trained = sum(size for size, is_trained in sizes if is_trained)
        what = "all trained" if num_trained == num_all else f"{num_trained / 1e6:,.2f}M of them trained"
        get_logger().info(f"Model: {num_all / 1e6:,.1f}M parameters, {what}; {self._precision}")
        self._checkpoints.record.note(
            model={"parameters": num_all, "trained": num_trained, "precision": str(self._precision)},
            num_steps=state.num_steps,
            batch_size=batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
        )
        limit = f"{self._speed.limit / 1e12:.3g} TFLOP/s, as measured for matrix products on this device"
        steps = (
            f"Steps: {state.num_steps}, each of {gradient_accumulation_steps} x {batch_size} sequences on "
            f"{describe_processes(self._model, self._mesh)}. Limit: {limit}"
        )
        get_logger().info("\n".join((steps, *lines)))

    @contextmanager
    def watching(self, state: TrainState) -> Iterator[None]:
        """Show the progress of the body, profile it if asked to, and start the clock."""
        if state.step >= state.num_steps:
            more = (
                "early_stopping_patience=null goes"
                if state.is_out_of_patience
                else "More epochs or max_steps go"
            )
            get_logger().info(
                f"Nothing left to do: all {state.num_steps} steps of this run are done. {more} on."
            )
        progress = Progress(state.num_steps, state.step, shown=self._mesh.is_rank_zero)
        with progress as self._progress, self._profiler as self._profile:
            self._speed.start()
            yield

    def paused(self) -> AbstractContextManager[None]:
        """Leave the body's time out of the speed: validation, saving and generation are no training."""
        return self._speed.paused()

    def after_step(
        self, micro_batches: Sequence[Mapping[str, Tensor]], counts: TokenCounts, loss: Tensor | None = None
    ) -> None:
        """Count one optimizer step.

        Args:
            micro_batches: with `tokens` [b, s].
            counts: the tokens of all processes in it.
            loss: of the step, which goes into the mean that is logged; None leaves that to the steps that are measured.
        """
        if loss is not None:
            self.spikes.mean.add(loss, counts.num_targets)
        if self.objective is not None:
            self.objective.end_step()
        self._speed.count(counts)
        self._progress.advance()
        self._memory.after_step(micro_batches)
        self._profile.step()

    def measure(
        self, state: TrainState, loss: Tensor, grad_norm: Tensor | None, lr: float, due: bool = True
    ) -> dict[str, Any]:
        """Return what is logged of a finished step. Its loss is the mean since the line before, weighed by targets.

        So is what the objective measures beside it.

        Every process must call this.

        Args:
            state: where the run stands.
            loss: of this step, logged where `after_step` was not told of losses.
            grad_norm: of this step.
            lr: of this step.
            due: whether a line is due; without, as where the run is stopped, what the next one takes the mean of is
                left as it was, so that a resumed run logs what an undisturbed one does.
        """
        mean = self.spikes.mean
        self._steps_in_line = max(mean.num_steps, 1)
        state.loss = mean.read() if mean.num_steps else float(loss)
        if due:
            mean.clear()
            self.spikes.observe(state.step, state.loss)
        metrics: dict[str, Any] = {"epoch": state.epoch, "loss": state.loss, "lr": lr}
        if grad_norm is not None:
            metrics["grad_norm"] = float(grad_norm)
        metrics |= vars(self._speed.read())
        metrics |= {"num_tokens": state.num_tokens, "num_trained_tokens": state.num_targets}
        if self.objective is not None:
            metrics |= self.objective.read_line(clear=due)
        if self._targets != "tokens":
            metrics[f"num_trained_{self._targets}"] = metrics.pop("num_trained_tokens")
            metrics[f"trained_{self._targets}_per_second"] = metrics.pop("trained_tokens_per_second")
        if self._log_peak_memory:
            metrics["peak_memory_gib"] = self._mesh.max(get_peak_memory_gib(self._mesh.device))
        return metrics

    def log(self, state: TrainState, metrics: Mapping[str, Any]) -> None:
        """Write and show the metrics of a step, if there are any; a validation loss with the perplexity it means.

        Answers are scored first, where they are due; and the state is told of what makes a step the best one. Every
        process must call this.
        """
        metrics = {**metrics, **self._score_answers(state)}
        if not metrics:
            return
        if self._has_perplexity and self._targets == "tokens" and "val_loss" in metrics:
            metrics["val_perplexity"] = perplexity(metrics["val_loss"])
        state.note_metrics(metrics)
        for logger in self._metrics:
            logger.log_dict(metrics, state.step)
        self._progress.show(state.step, metrics, self._steps_in_line)

    def _score_answers(self, state: TrainState) -> dict[str, float]:
        answers = self.answers
        if answers is None or answers.every_n_steps is None or not state.is_due(answers.every_n_steps):
            return {}
        with self.paused(), self._precision.autocast():
            scores = answers.measure()  # each process, for they may hold the model together
        return self._mesh.from_rank_zero(lambda: scores)

    def sample(self, step: int, prompts: Iterable[str] | None, answer: Callable[[str], str]) -> None:
        """Write and show what the model answers to some prompts at a step; None asks nothing."""
        with self.paused():
            for prompt in prompts or ():
                text = answer(prompt)
                get_logger().info(f"step {step}, sample: {prompt!r} -> {text!r}")
                for logger in self._samples:
                    logger.log_dict({"prompt": prompt, "answer": text}, step)

    def rewind(self, step: int) -> None:
        """Forget the lines that are later than `step`, where the run was asked to go on.

        A run that was killed before its first save has left lines, too.
        """
        if self._checkpoints.resumes:
            for logger in self._metrics + self._samples:
                logger.rewind(step)

    def flush(self) -> None:
        """Return once every line is on the disk: a step saved after that never knows more than they do."""
        for logger in self._metrics + self._samples:
            if isinstance(logger, FileLogger):
                logger.flush()

    def log_summary(self, state: TrainState, template: str = "", adapted_base: str = "") -> None:
        """Say how the run ended, where its model is, and what to type next.

        Args:
            state: where it stands.
            template: name of the prompt template the data was written in; the record takes note of it.
            adapted_base: the model that adapters were trained beside, where they alone were saved.
        """
        scores = self._model.score is not None
        get_logger().info(format_summary(self._output_dir, state, self._speed, adapted_base, scores))
        status = "finished" if state.step >= state.num_steps else "stopped"
        result = describe_result(self._output_dir, state, self._speed, self._targets)
        self._checkpoints.record.finish(status, result | {"template": template, "base": adapted_base or None})

    @property
    def _targets(self) -> str:
        """What the loss is divided by the number of."""
        return "tokens" if self.objective is None else self.objective.targets

    def close(self) -> None:
        """Close every logger."""
        for logger in self._metrics + self._samples:
            logger.close()
