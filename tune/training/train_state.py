"""Where a run stands: its counters, its seed, what makes it this run and no other, and all else that is saved of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from tune.errors import TrainingError
from tune.training.batches import TokenCounts
from tune.utils import get_logger, set_seed
from tune.utils.mesh import Mesh
from tune.utils.seed import MAX_SEED

__all__ = ["Stateful", "TrainState", "begin_state"]


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
        steps_per_epoch: optimizer steps of one pass over the data.
        step: optimizer steps taken.
        epoch: passes over the data begun before this one.
        step_in_epoch: optimizer steps of this pass.
        num_tokens: that went through the model, without padding.
        num_targets: those whose next token was trained on.
        loss: as last read.
        val_loss, val_step: the last validation, and the step it is of.
        best_val_loss, best_step: among saved steps.
        fingerprint: what a resumed run must have in common with the saved one, see `fingerprint_run`.
        parts: objects with a state of their own, by name; `track` adds to them.
    """

    seed: int
    rank: int = 0
    num_steps: int = 0
    steps_per_epoch: int = 0
    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    num_tokens: int = 0
    num_targets: int = 0
    loss: float = float("nan")
    val_loss: float | None = None
    val_step: int = -1
    best_val_loss: float = float("inf")
    best_step: int | None = None
    fingerprint: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Stateful] = field(default_factory=dict)

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
        num_micro_batches: int,
        epochs: int,
        gradient_accumulation_steps: int = 1,
        max_steps_per_epoch: int | None = None,
        max_steps: int | None = None,
    ) -> None:
        """Find out how many optimizer steps there are; an epoch's last one may have fewer micro-batches than others.

        Args:
            num_micro_batches: of one pass over the data, on this process.
            epochs: passes.
            gradient_accumulation_steps: micro-batches that make one step.
            max_steps_per_epoch: each epoch ends after so many steps.
            max_steps: of the whole run, in as many passes as that takes; `epochs` then counts for nothing.
        """
        self.steps_per_epoch = -(-num_micro_batches // gradient_accumulation_steps)
        if max_steps_per_epoch is not None:
            self.steps_per_epoch = min(self.steps_per_epoch, max_steps_per_epoch)
        self.num_steps = epochs * self.steps_per_epoch
        if max_steps is not None and self.steps_per_epoch:
            self.num_steps = max_steps

    def begin_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; does nothing if that epoch is under way."""
        if epoch != self.epoch:
            self.epoch, self.step_in_epoch = epoch, 0

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
    def num_epochs(self) -> int:
        """Passes over the data that the run needs, the last one perhaps in part."""
        return -(-self.num_steps // max(self.steps_per_epoch, 1))

    @property
    def steps_left_in_epoch(self) -> int:
        """Optimizer steps until this pass, or the run, is over."""
        return max(min(self.steps_per_epoch - self.step_in_epoch, self.num_steps - self.step), 0)

    @property
    def epoch_ends(self) -> bool:
        """Whether this step ends a pass over the data."""
        return self.step_in_epoch == self.steps_per_epoch

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

    def note_saving(self) -> None:
        """Remember this step as the best one, if it is; only a loss of these very weights counts."""
        if self.val_loss is not None and self.val_step == self.step and self.val_loss < self.best_val_loss:
            self.best_val_loss, self.best_step = self.val_loss, self.step

    def state(self) -> dict[str, Any]:
        """Return the counters, the seed and the fingerprint: plain values, without those of `parts`."""
        return {name: getattr(self, name) for name in (*_COUNTERS, "seed", "fingerprint")}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take every counter from what `state` returned; seed and fingerprint are those of this run."""
        for name in _COUNTERS:
            setattr(self, name, saved[name])


_GIVEN = ("seed", "rank", "num_steps", "steps_per_epoch", "fingerprint", "parts")
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
    return TrainState(seed, mesh.rank)
