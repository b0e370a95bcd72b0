"""What a run may not read or write: one clear error, and what was saved before is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.permissions import binding
from tune.errors import CheckpointError, TuneError
from tune.recipes.full_finetune import FullFinetuneRecipe, recipe_main
from tune.training import list_saved_steps, verify_step


@pytest.fixture(autouse=True)
def bound(tmp_path: Path):
    with binding():
        yield
    for path in [tmp_path, *tmp_path.rglob("*")]:
        if path.is_dir():
            path.chmod(0o700)


def test_the_tests_can_fail(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0)
    with pytest.raises(PermissionError):
        (tmp_path / "file").read_bytes()


@pytest.mark.parametrize("locked", ["", "model.safetensors", "config.json", "tokenizer.model"])
def test_a_checkpoint(make_params, tmp_path: Path, locked: str) -> None:
    recipe_main(make_params(max_steps_per_epoch=1, epochs=1))
    base = tmp_path / "out" / "step_000001" / "model"
    (base / locked).chmod(0)
    name = locked or "model"
    with pytest.raises(
        TuneError, match=rf"({name} cannot be read|cannot read .*{name}): .*Permission denied"
    ):
        recipe_main(
            make_params(
                output_dir=str(tmp_path / "next"),
                train_from_scratch=False,
                model="auto",
                tokenizer="auto",
                checkpointer={
                    "_component_": "tune.training.FullModelHFCheckpointer",
                    "checkpoint_dir": str(base),
                },
            )
        )
    assert not list_saved_steps(tmp_path / "next")


@pytest.mark.parametrize("inside", ["out", "out/deeper"])
def test_an_output_directory(make_params, tmp_path: Path, inside: str) -> None:
    (tmp_path / "out").mkdir(0o500)
    with pytest.raises(CheckpointError, match=rf"cannot write in output_dir .*{inside}: Permission denied"):
        recipe_main(make_params(output_dir=str(tmp_path / inside)))


@pytest.mark.parametrize("in_background", [False, True])
def test_an_output_directory_that_is_locked_while_training(
    make_params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    save, out = FullFinetuneRecipe.save_checkpoint, tmp_path / "out"

    def lock_and_save(self: FullFinetuneRecipe) -> None:
        if self.state.step == 3:
            self.checkpoints.wait()
            out.chmod(0o500)
        save(self)

    monkeypatch.setattr(FullFinetuneRecipe, "save_checkpoint", lock_and_save)
    params = make_params(save_every_n_steps=1, enable_async_checkpointing=in_background)
    with pytest.raises(CheckpointError, match=r"could not save step_000003 .*Permission denied.*step_000002"):
        recipe_main(params)
    assert [saved.step for saved in list_saved_steps(out)] == [1, 2]
    for saved in list_saved_steps(out):
        verify_step(saved)


@pytest.mark.parametrize("locked", [".", "manifest.json", "state", "state/run.pt", "model/model.safetensors"])
def test_a_saved_step_that_may_not_be_read_is_not_passed_over(
    make_params, tmp_path: Path, locked: str
) -> None:
    """It may be whole: going on from an older one would take its place."""
    recipe_main(make_params(save_every_n_steps=1, epochs=1, max_steps_per_epoch=2))
    newest = list_saved_steps(tmp_path / "out")[-1]
    mode = (newest.path / locked).stat().st_mode
    (newest.path / locked).chmod(0)
    resumed = make_params(save_every_n_steps=1, epochs=1, resume_from_checkpoint=True)
    with pytest.raises(
        CheckpointError, match=r"step_000002: .* cannot be read: Permission denied\. It may be whole"
    ):
        recipe_main(resumed)
    (newest.path / locked).chmod(mode)
    verify_step(newest)
