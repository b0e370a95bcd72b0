"""A recipe of one's own whose runs end badly on one process, one after another in the same two processes.

    tune run --nproc_per_node 2 ./bad_ends.py FOLDER OVERRIDE...

Each is a tiny/full_finetune with the overrides, in a folder of its own under FOLDER; FOLDER/said_RANK.json holds what
was said about how each of them ended.
"""

from __future__ import annotations

import gc
import json
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tune import training
from tune.config import resolve
from tune.errors import TuneError
from tune.recipes.full_finetune import FullFinetuneRecipe, recipe_main
from tune.recipes.params.full_finetune import FullFinetuneParams

CONFIG = Path(__file__).resolve().parents[2] / "recipes/configs/tiny/full_finetune.yaml"


def train(name: str, *overrides: str) -> str:
    """Train; return what is said about its end."""
    words = [*sys.argv[2:], f"output_dir={sys.argv[1]}/{name}", *overrides]
    params = resolve(FullFinetuneParams, config=CONFIG, overrides=words).params
    try:
        return f"ended with {recipe_main(params)}"
    except TuneError as error:
        return f"{type(error).__name__}: {error}"


def without_room() -> str:
    """The second process may write no file of over 300 kB: its part of the optimizer's state is larger."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        return train("limited", "enable_async_checkpointing=false")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def without_a_number() -> str:
    """The second process's loss is NaN at step 4."""
    plain = FullFinetuneRecipe.batch_loss

    def broken(self: FullFinetuneRecipe, batch: Any) -> Any:
        loss, num_targets = plain(self, batch)
        is_bad = self.state.step == 4 and dist.get_rank() == 1
        return loss * float("nan") if is_bad else loss, num_targets

    FullFinetuneRecipe.batch_loss = broken  # type: ignore[method-assign]
    try:
        return train("broken", "save_every_n_steps=2")
    finally:
        FullFinetuneRecipe.batch_loss = plain  # type: ignore[method-assign]


def with_a_locked_folder() -> str:
    """The second process locks the output directory before step 2 is saved."""
    save = FullFinetuneRecipe.save_checkpoint

    def lock_and_save(self: FullFinetuneRecipe) -> None:
        if self.state.step == 2 and dist.get_rank() == 1:
            self.checkpoints.wait()
            self.checkpoints.output_dir.chmod(0o500)
        save(self)

    FullFinetuneRecipe.save_checkpoint = lock_and_save  # type: ignore[method-assign]
    try:
        return train("damaged")
    finally:
        FullFinetuneRecipe.save_checkpoint = save  # type: ignore[method-assign]
        Path(sys.argv[1], "damaged").chmod(0o700)
        dist.barrier()


def without_its_state() -> str:
    """The second process removes the state of the step that was chosen, before any process loads it."""
    find = training.Checkpoints.find

    def find_and_remove(self: training.Checkpoints, *args: Any, **kwargs: Any) -> None:
        find(self, *args, **kwargs)
        if dist.get_rank() == 1:
            assert self.resumed is not None
            shutil.rmtree(self.resumed.state_dir)

    training.Checkpoints.find = find_and_remove  # type: ignore[method-assign]
    try:
        return train("damaged", "resume_from_checkpoint=true")
    finally:
        training.Checkpoints.find = find  # type: ignore[method-assign]


def main() -> None:
    dist.init_process_group("gloo")
    folder, rank = Path(sys.argv[1]), dist.get_rank()
    said = {"whole": train("whole"), "limited": without_room(), "broken": without_a_number()}
    said["steps"] = str([saved.step for saved in training.list_saved_steps(folder / "broken")])
    said["resumed"] = train("broken", "save_every_n_steps=2", "resume_from_checkpoint=true")
    said["locked"] = with_a_locked_folder()
    said["robbed"] = without_its_state()
    (folder / f"said_{rank}.json").write_text(json.dumps(said))
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
