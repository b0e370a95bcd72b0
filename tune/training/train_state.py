"""Where a run stands: its counters, its seed, what makes it this run and no other, and all else that is saved of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar

from tune.errors import DataError, TrainingError
from tune.training.batches import TokenCounts
from tune.utils import get_logger, set_seed
from tune.utils.mesh import Mesh
from tune.utils.seed import MAX_SEED

__all__ = ["Stateful", "TrainState", "begin_state"]

T = TypeVar("T")


class PlacedSampler(Protocol):
    """What is read of a sampler that knows its place in the data: `tune.data.ResumableSampler`."""

    num_examples: int
    world_size: int

    def find_position(self, state: dict[str, Any]) -> int: ...


class Loader(Protocol):
    """What is read of a loader: the size of its micro-batches, and its sampler."""

    @property
    def batch_size(self) -> int | None: ...

    @property
    def sampler(self) -> Any: ...


class Stateful(Protocol):
    """Something whose state is a dictionary: a schedule, a sampler, averaged weights, a module."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@dataclass
class TrainState:
    """What a loop counts and remembers; saved with each step, and put back when a run is resumed.

    What is drawn at random in a step follows from the seed, the step and the process alone (`seed_next_step`): however
    a run comes to a step, resumed or not, it draws the same there.

    Args:
        seed: of the run.
        rank: of this process, which draws numbers of its own (for dropout).
        num_steps: optimizer steps of the whole run.
        num_epochs: passes over the data that these take, the last one perhaps in part.
        steps_per_epoch: optimizer steps of one pass over the data.
        last_step_in_epoch: `step_in_epoch` at which this pass ends; another number where a resumed run has cut what was
            left of it into steps of another size.
        batch_size, gradient_accumulation_steps, sequences_per_step: of the steps that are planned.
        resumed: counters of the saved step that the run goes on from, and the place of its sampler; empty where there
            is none.
        step: optimizer steps taken.
        epoch: passes over the data begun before this one.
        step_in_epoch: optimizer steps of this pass.
        num_tokens: that went through the model, without padding.
        num_targets: those whose next token was trained on.
        loss: as last read.
        val_loss, val_step: the last validation, and the step it is of.
        best_by: what makes a step better than others: the validation loss, or a metric that is logged.
        patience: measurements of that in a row that bring nothing better, after which the run ends; None: never.
        score, score_step: the last one, turned so that less is better, and the step it is of.
        lowest_score, num_stale: the best one so far, and how many came since.
        best_val_loss, best_step: the lowest score among saved steps.
        fingerprint: what a resumed run must have in common with the saved one, see `fingerprint_run`.
        parts: objects with a state of their own, by name; `track` adds to them.
        recipe: its file, where that is known.
    """

    seed: int
    rank: int = 0
    num_steps: int = 0
    num_epochs: int = 0
    steps_per_epoch: int = 0
    last_step_in_epoch: int = 0
    batch_size: int = 1
    gradient_accumulation_steps: int = 1
    sequences_per_step: int = 1
    resumed: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    num_tokens: int = 0
    num_targets: int = 0
    loss: float = float("nan")
    val_loss: float | None = None
    val_step: int = -1
    best_by: str = "loss"
    patience: int | None = None
    score: float = float("nan")
    score_step: int = -1
    lowest_score: float = float("inf")
    num_stale: int = 0
    best_val_loss: float = float("inf")
    best_step: int | None = None
    fingerprint: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Stateful] = field(default_factory=dict)
    recipe: str = ""

    def track(self, **parts: Stateful) -> None:
        """Save these objects with every step from now on, and restore them when a run is resumed.

        Tensors may be sharded: each process saves its own part, and reads what it needs, whatever their number was. The
        shapes when a step is restored are those of `state_dict()` then. Everything else in a state is plain: numbers,
        text, and containers of them, the same on every process.

        Raises:
            TrainingError: the name is taken, or the object has no state.
        """
        for name, part in parts.items():
            if name in self.parts:
                raise TrainingError(f"the state already tracks a {name!r}: choose another name.")
            if not hasattr(part, "state_dict") or not hasattr(part, "load_state_dict"):
                raise TrainingError(
                    f"{name} ({type(part).__name__}) has no state_dict() and load_state_dict(), by which its state is "
                    "saved and restored."
                )
            self.parts[name] = part

    def plan_steps(
        self,
        loader: Loader,
        epochs: int,
        gradient_accumulation_steps: int = 1,
        max_steps_per_epoch: int | None = None,
        max_steps: int | None = None,
        best_by: str | None = None,
        patience: int | None = None,
    ) -> None:
        """Find out how many optimizer steps there are; an epoch's last one may have fewer sequences than others.

        A run that goes on counts the steps it has taken, and cuts what is left of its epoch into steps as they are now:
        batch size, accumulation and number of processes may be others than they were.

        Args:
            loader: of this process; its sampler knows the number of examples, and how many processes share them.
            epochs: passes.
            gradient_accumulation_steps: micro-batches that make one step.
            max_steps_per_epoch: each epoch ends after so many steps.
            max_steps: of the whole run, in as many passes as that takes; `epochs` then counts for nothing.
            best_by, patience: see the attributes; they may end the run before that.
        """
        self.best_by, self.patience = best_by or "loss", patience
        sampler: PlacedSampler = loader.sampler
        self.batch_size, self.gradient_accumulation_steps = (
            loader.batch_size or 1,
            gradient_accumulation_steps,
        )
        self.sequences_per_step = self.batch_size * gradient_accumulation_steps * sampler.world_size
        limit = float("inf") if max_steps_per_epoch is None else max_steps_per_epoch

        def count_steps(num_examples: int, limit: float) -> int:
            # Ranks get equally many examples, so that rounding up once is the same as for ranks, batches and steps.
            return int(max(min(-(-num_examples // self.sequences_per_step), limit), 0))

        self.steps_per_epoch = self.last_step_in_epoch = count_steps(sampler.num_examples, limit)
        taken, epoch = 0, -1
        if self.resumed:
            taken, epoch, in_epoch = (self.resumed[name] for name in ("step", "epoch", "step_in_epoch"))
            left = 0
            if epoch < epochs or max_steps is not None:
                left = count_steps(sampler.num_examples - self._saved_position(sampler), limit - in_epoch)
            taken, self.last_step_in_epoch = taken + left, in_epoch + left
        self.num_epochs, self.num_steps = epochs, taken + max(epochs - epoch - 1, 0) * self.steps_per_epoch
        if max_steps is not None and self.steps_per_epoch:
            self.num_steps = max_steps
            self.num_epochs = epoch + 1 - (min(taken - max_steps, 0) // self.steps_per_epoch)

    def _saved_position(self, sampler: PlacedSampler) -> int:
        """Return how many examples of its epoch the run that is resumed has seen, on all processes together."""
        if place := self.resumed.get("sampler"):
            with suppress(DataError):  # said when the state is restored, after all that has changed
                return sampler.find_position(place)
        # No sampler was tracked, or one of other data: what a step took then is in the fingerprint.
        text = self.resumed["fingerprint"].get("sequences_per_step", "")
        per_step = int(text) if text.isdecimal() and len(text) < 10 else self.sequences_per_step
        return int(min(self.resumed["step_in_epoch"] * per_step, sampler.num_examples))

    def begin_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; does nothing if that epoch is under way."""
        if epoch != self.epoch:
            self.epoch, self.step_in_epoch, self.last_step_in_epoch = epoch, 0, self.steps_per_epoch

    @property
    def steps_left_in_epoch(self) -> int:
        """Optimizer steps until this pass, or the run, is over."""
        return max(min(self.last_step_in_epoch - self.step_in_epoch, self.num_steps - self.step), 0)

    def take_steps(self, windows: Iterable[T]) -> Iterator[T]:
        """Yield what each step of this pass takes, until the pass, or the run, is over."""
        waiting = iter(windows)
        while self.steps_left_in_epoch and (window := next(waiting, None)) is not None:
            yield window

    def begin_step(self) -> None:
        """Count the step that comes now."""
        self.step += 1
        self.step_in_epoch += 1

    def seed_next_step(self) -> None:
        """Make what is drawn from here on that of the next step: whatever was drawn before leaves no trace."""
        # A hash keeps (seed 0, step 1) apart from (seed 1, step 0), which a sum would not.
        digest = hashlib.blake2b(f"{self.seed}/{self.step}/{self.rank}".encode(), digest_size=8).digest()
        set_seed(int.from_bytes(digest, "little") % (MAX_SEED + 1))

    def undo_step(self) -> None:
        """Take back the step that was begun and could not be taken."""
        self.step -= 1
        self.step_in_epoch -= 1
        self.seed_next_step()

    @property
    def epoch_ends(self) -> bool:
        """Whether this step ends a pass over the data."""
        return self.step_in_epoch == self.last_step_in_epoch

    def is_due(self, every_n_steps: int | None, otherwise: bool = False) -> bool:
        """Tell whether what happens every so many steps, and after the last one, happens after this one.

        Args:
            every_n_steps: optimizer steps.
            otherwise: the answer where that is None and this is not the last step.
        """
        if self.step == self.num_steps:
            return True
        return otherwise if every_n_steps is None else self.step % every_n_steps == 0

    def count(self, counts: TokenCounts) -> None:
        """Add the tokens and targets of a step."""
        self.num_tokens += counts.num_tokens
        self.num_targets += counts.num_targets

    def note_validation(self, val_loss: float) -> None:
        """Remember the validation loss of the weights as they are."""
        self.val_loss, self.val_step = val_loss, self.step
        if self.best_by == "loss":
            self._note_score(val_loss)

    def note_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Remember what makes a step better than others, where that is another metric than the loss, and is measured.

        More is better, but of what is called a loss or a perplexity.

        Raises:
            TrainingError: a validation has not measured it.
        """
        if self.best_by == "loss":
            return
        # Never by what is measured of the batch that is trained on, which has the bare name.
        is_full = self.best_by.startswith(("val_", "eval_"))
        names = (self.best_by,) if is_full else (f"val_{self.best_by}", f"eval_{self.best_by}")
        name = next((name for name in names if name in metrics), None)
        if name is not None:
            value = float(metrics[name])
            self._note_score(value if name.endswith(("loss", "perplexity")) else -value)
        elif "val_loss" in metrics and self.best_by.startswith("val_"):
            known = ", ".join(key for key in metrics if key.startswith("val_"))
            raise TrainingError(
                f"best_by is {self.best_by}, and a validation here measures {known}: name one."
            )

    def _note_score(self, score: float) -> None:
        self.score, self.score_step = score, self.step
        if score < self.lowest_score:
            self.lowest_score, self.num_stale = score, 0
            return
        self.num_stale += 1  # also where it is no number
        if self.is_out_of_patience and self.step < self.num_steps:
            get_logger().info(
                f"Ending at step {self.step} of {self.num_steps}: the last {self.num_stale} of what best_by looks at "
                f"({self.best_by}) brought nothing better (early_stopping_patience)."
            )
            self.num_steps = self.step

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the run ends early, since nothing has become better for long."""
        return self.patience is not None and self.num_stale >= self.patience

    def note_saving(self) -> None:
        """Remember this step as the best one, if it is; only a score of these very weights counts."""
        if self.score_step == self.step and self.score < self.best_val_loss:
            self.best_val_loss, self.best_step = self.score, self.step

    def state(self) -> dict[str, Any]:
        """Return the counters, the seed and the fingerprint: plain values, without those of `parts`."""
        return {name: getattr(self, name) for name in (*_COUNTERS, "seed", "fingerprint")}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take every counter from what `state` returned; seed and fingerprint are those of this run."""
        for name in _COUNTERS:
            if name in saved:  # older steps lack some
                setattr(self, name, saved[name])
        if self.is_out_of_patience:
            self.num_steps = min(self.num_steps, self.step)


_GIVEN = {
    *(
        "seed",
        "rank",
        "num_steps",
        "num_epochs",
        "steps_per_epoch",
        "last_step_in_epoch",
        "fingerprint",
        "parts",
        "recipe",
        "resumed",
        "best_by",
        "patience",
        "score",
        "score_step",
    ),
    *("batch_size", "gradient_accumulation_steps", "sequences_per_step"),
}
_COUNTERS = tuple(each.name for each in fields(TrainState) if each.name not in _GIVEN)


def begin_state(seed: int | None, saved: Mapping[str, Any], mesh: Mesh) -> TrainState:
    """Return the state of a run that begins, and seed everything random, the same on every process.

    Every process must call this.

    Args:
        seed: None takes that of the saved step to go on from, or else draws one.
        saved: what was saved of that step; empty where there is none.
        mesh: the processes of the run.
    """
    chosen = saved.get("seed") if seed is None else seed
    seed = set_seed(mesh.from_rank_zero(lambda: set_seed(chosen)))
    get_logger().info(f"{mesh.device}, seed {seed}")
    return TrainState(seed, mesh.rank, resumed=saved)
