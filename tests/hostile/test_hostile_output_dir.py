"""What lies in an output directory already and is none of tune's stays as it is, links that lead out of it included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tune.checkpoints.writers import replacing
from tune.config import resolve
from tune.errors import CheckpointError
from tune.recipes.params.full_finetune import FullFinetuneParams
from tune.training.profiler import setup_torch_profiler
from tune.training.saving.checkpoints import Checkpoints
from tune.training.saving.resolved_config import write_resolved_config
from tune.training.saving.saved_steps import link_steps, list_saved_steps, prune_saved_steps
from tune.utils.mesh import Mesh


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder outside, with a file of somebody's."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "file").write_text("precious: 1\n")
    return folder


def test_keeping_few_steps_follows_no_link(tmp_path: Path, victim: Path) -> None:
    out = tmp_path / "out"
    for step in (1, 2, 4, 5):
        (out / f"step_{step:06d}").mkdir(parents=True)
    (out / "step_000003").symlink_to(victim)
    (out / "step_000001/model").symlink_to(victim)
    (out / ".discarded_step_000002").symlink_to(victim)
    prune_saved_steps(out, 1)
    assert [saved.step for saved in list_saved_steps(out)] == [5]
    assert (victim / "file").read_text() == "precious: 1\n"


def test_traces_replace_nothing(tmp_path: Path, victim: Path) -> None:
    names = ("trace_step_2.json", "trace_step_2_2.json")
    (tmp_path / names[0]).symlink_to(victim / "file")
    (tmp_path / names[1]).write_text("of an earlier run")
    with setup_torch_profiler(
        True, cuda=False, wait_steps=0, warmup_steps=1, active_steps=1, output_dir=str(tmp_path)
    ) as profiler:
        for _ in range(3):
            torch.ones(3).sum()
            profiler.step()
    assert (victim / "file").read_text() == "precious: 1\n"
    assert (tmp_path / names[1]).read_text() == "of an earlier run"
    assert "traceEvents" in (tmp_path / "trace_step_2_3.json").read_text()


def test_a_file_is_not_written_through_a_link(tmp_path: Path, victim: Path) -> None:
    (tmp_path / ".config.yaml.part").symlink_to(victim / "file")
    (tmp_path / "config.yaml").symlink_to(victim / "file")
    with replacing(tmp_path / "config.yaml") as staged:
        staged.write_text("mine\n")
    assert (tmp_path / "config.yaml").read_text() == "mine\n"
    assert (victim / "file").read_text() == "precious: 1\n"


def test_another_programs_config_is_left_as_it_is(tmp_path: Path) -> None:
    text = "output_dir: o\ndataset: alpaca\nlr: 1e-3\nmodel_checkpoint: bundled:tiny_llama\n"
    params = resolve(FullFinetuneParams, text=text).params
    checkpoints = Checkpoints(tmp_path, Mesh())
    path = tmp_path / "config.yaml"
    for text in ("services:\n  web: 1\nversion: 3\n", "notes\n", "seed: 1\nservices: 1\nversion: 3\n"):
        path.write_text(text)
        with pytest.raises(CheckpointError, match="left as it is"):
            write_resolved_config(params, checkpoints)
        assert path.read_text() == text
    path.write_text("output_dir: x\nlr: 1e-3\nrecipe: full_finetune\nlow_cpu: 1\n")  # of another version
    write_resolved_config(params, checkpoints)
    assert "tiny_llama" in path.read_text()
    write_resolved_config(params, checkpoints, seed=3)
    assert "seed: 3" in path.read_text()


def test_a_file_called_latest_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "step_000001").mkdir()
    (tmp_path / "latest").write_text("the latest news\n")
    link_steps(tmp_path, latest=1, best=1)
    assert (tmp_path / "latest").read_text() == "the latest news\n"
    assert (tmp_path / "best").readlink() == Path("step_000001")
