"""Saved steps that something happened to: it is named, and neither ends the run nor hides a step that is whole."""

from __future__ import annotations

import enum
import io
import json
import logging
import os
import pickle
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from run_states import save_run_state
from torch import nn

from tests import warm_python
from tests.permissions import binding
from tune.errors import CheckpointError
from tune.training import (
    Checkpoints,
    SavedStep,
    TrainState,
    find_newest_complete_step,
    list_saved_steps,
    verify_step,
)
from tune.training.metric_logging import JSONLLogger
from tune.training.saving.resume_point import choose_step_to_resume
from tune.training.saving.run_lock import RunLock
from tune.training.saving.run_state import load_run_state
from tune.training.saving.saved_steps import (
    link_steps,
    prune_saved_steps,
    remove_unfinished_steps,
    write_step,
)
from tune.utils.mesh import Mesh


def save(output_dir: Path, step: int) -> SavedStep:
    """A saved step with two weight files, an adapter, and a state as runs have it."""
    model = nn.Linear(3, 5)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    with write_step(output_dir, step) as staged:
        for name in ("model/model-00001-of-00002", "model/model-00002-of-00002", "adapter/adapter_model"):
            path = staged / f"{name}.safetensors"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes(range(256)) * (step + 1))
        save_run_state(staged / "state", model, optimizer, {"step": step}, {})
    return SavedStep(output_dir / f"step_{step:06d}", step)


@pytest.fixture
def warnings_of_tune(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.WARNING, "tune")
    return caplog


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def listen(path: Path) -> None:
    path.unlink()
    before = Path.cwd()
    os.chdir(path.parent)  # a socket's whole path may have 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(before)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def test_any_damaged_file_is_named_and_the_older_step_taken(tmp_path: Path, warnings_of_tune: Any) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    whole = tmp_path / "whole"
    shutil.copytree(newer.path, whole)
    names = [path.relative_to(newer.path) for path in newer.path.rglob("*") if path.is_file()]
    kinds = {str(name).rpartition("/")[2] for name in names}
    assert {"run.pt", ".metadata", "manifest.json", "__0_0.distcp", "adapter_model.safetensors"} <= kinds
    for name in names:
        for damage in (cut, flip, pipe, listen, folder, Path.unlink):
            damage(newer.path / name)
            warnings_of_tune.clear()
            assert choose_step_to_resume(tmp_path, resume=True) == older, (name, damage)
            assert "Skipping a damaged saved step: step_000002: " in warnings_of_tune.text
            # A checksum that has changed looks like a file that has.
            if damage is not flip or name.name != "manifest.json":
                assert str(name) in warnings_of_tune.text, (name, damage)
            shutil.rmtree(newer.path)
            shutil.copytree(whole, newer.path)
    assert choose_step_to_resume(tmp_path, resume=True) == newer
    for saved in (older, newer):
        cut(saved.state_dir / "run.pt")
    with pytest.raises(CheckpointError, match="none of the 2 saved steps"):
        choose_step_to_resume(tmp_path, resume=True)


def manifest_with(**changes: Any) -> Callable[[dict[str, Any]], str]:
    return lambda content: json.dumps(content | changes)


def named(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda content: json.dumps(
        content | {"files": content["files"] | {name: {"bytes": 0, "sha256": ""}}}
    )


@pytest.mark.parametrize(
    ("rewrite", "reason"),
    [
        (lambda content: "", "Expecting value"),
        (lambda content: "[" * 200_000, "recursion"),
        (lambda content: "\0" * 50, "Expecting value"),
        (lambda content: "9" * 5_000, "4300 digits"),
        (
            lambda content: '{"step": 2, "files": {"a": {"bytes": 1e999, "sha256": ""}}}',
            "'a' is no number of",
        ),
        (lambda content: '{"step": 2, "files": {"a": {"bytes": NaN, "sha256": ""}}}', "'a' is no number of"),
        (lambda content: '{"step": 2, "files": {"a": {"bytes": true, "sha256": ""}}}', "'a' is no number of"),
        (lambda content: '{"step": 2, "files": {"a": {"bytes": 3, "sha256": 7}}}', "'a' is no checksum"),
        (lambda content: '{"step": 2, "files": {"a": 3, "a": 3}}', "a key stands there twice"),
        (manifest_with(step=2.0), "it is step 2.0; the folder has another name"),
        (lambda content: '{"step": 2, "files": {"a": {"bytes": 3}}}', "it has no 'sha256'"),
        (lambda content: '{"step": 2, "files": "all"}', "no attribute 'items'"),
        (manifest_with(files={}), "names no file"),
        (
            manifest_with(files={"model/a": {"bytes": 10**30, "sha256": ""}}),
            "model/a cannot be read: No such",
        ),
        (manifest_with(step=7), "it is step 7; the folder has another name"),
        (manifest_with(step="x" * 10_000), "it is step x{50}; the folder"),
        (
            named("../step_000001/manifest.json"),
            r"names '\.\./step_000001/manifest\.json', which is no file of",
        ),
        (named("/etc/passwd"), "names '/etc/passwd'"),
        (named("model/../../outside"), "names 'model"),
        (named(""), "names ''"),
        (named("a\0b"), "names 'a"),
        (named("a\ud800"), "names 'a"),
        (named("b\udfff"), "names 'b"),
        (named("x" * 5_000), "File name too long"),
        (named("model"), "model is no longer a file"),
    ],
)
def test_an_absurd_manifest_is_damage(tmp_path: Path, rewrite: Callable[[Any], str], reason: str) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    manifest = newer.path / "manifest.json"
    manifest.write_text(rewrite(json.loads(manifest.read_text())))
    with pytest.raises(CheckpointError, match=rf"^step_000002: .*{reason}") as caught:
        verify_step(newer)
    assert len(str(caught.value)) < 12_000
    assert find_newest_complete_step(tmp_path) == older


def test_a_step_under_another_name_is_not_gone_on_from(tmp_path: Path, warnings_of_tune: Any) -> None:
    saved = save(tmp_path, 3)
    shutil.copytree(saved.path, tmp_path / "step_000999999999")
    (tmp_path / "step_000000007").mkdir()
    (tmp_path / "step_000008").symlink_to(saved.path.name)
    (tmp_path / "step_000009").symlink_to("nowhere")
    (tmp_path / "step_000010").write_text("a file")
    assert choose_step_to_resume(tmp_path, resume=True) == saved
    assert "step_000999999999: by its manifest.json it is step 3" in warnings_of_tune.text
    assert "step_000000007: there is no manifest.json" in warnings_of_tune.text


@pytest.mark.parametrize(
    "put",
    [
        lambda path: path.symlink_to("step_000003"),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.write_text("a file"),
        lambda path: path.mkdir(),
        os.mkfifo,
    ],
)
@pytest.mark.parametrize("name", ["step_000004", ".unfinished_step_000004", ".discarded_step_000004"])
def test_what_is_in_a_steps_way_goes_and_leaves_no_trace(
    tmp_path: Path, put: Callable[[Path], object], name: str
) -> None:
    whole = save(tmp_path, 3)
    put(tmp_path / name)
    for _ in range(2):  # the second time replaces the step
        save(tmp_path, 4)
    assert {path.name for path in tmp_path.iterdir()} <= {
        "step_000003",
        "step_000004",
        ".discarded_step_000004",
    }
    put_back = tmp_path / name
    if name != "step_000004":
        shutil.rmtree(put_back, ignore_errors=True)
        put(put_back)
    remove_unfinished_steps(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000003", "step_000004"]
    for saved in list_saved_steps(tmp_path):
        verify_step(saved)
    assert whole in list_saved_steps(tmp_path)  # what a link pointed at is there


@pytest.mark.parametrize("link", ["latest", "best"])
def test_a_folder_in_a_links_place_stays_and_is_named(
    tmp_path: Path, warnings_of_tune: Any, link: str
) -> None:
    (tmp_path / link).mkdir()
    (tmp_path / link / "notes").write_text("somebody's")
    (tmp_path / f".{link}.new").mkdir()
    for step in (1, 2, 3):
        save(tmp_path, step)
        link_steps(tmp_path, latest=step, best=1)
        prune_saved_steps(tmp_path, 1, newest=step, best=1)
    assert f"Could not make {tmp_path / link} a link to step_00000" in warnings_of_tune.text
    assert "it is a folder, not a link" in warnings_of_tune.text
    assert (tmp_path / link / "notes").read_text() == "somebody's"
    # Also where the link `best` cannot be made, the best step is kept.
    assert [saved.step for saved in list_saved_steps(tmp_path)] == [1, 3]
    assert not list(tmp_path.glob(".*"))


def test_damaged_later_steps_do_not_push_out_the_whole_ones(tmp_path: Path) -> None:
    """A run that was resumed before them saves steps of lower numbers, which are the only ones to go on from."""
    for step in (1, 2, 3, 4, 5, 6):
        save(tmp_path, step)
    for step in (4, 5, 6):
        cut(tmp_path / f"step_{step:06d}" / "state" / "run.pt")
    assert choose_step_to_resume(tmp_path, resume=True) == SavedStep(tmp_path / "step_000003", 3)
    model = nn.Linear(3, 5)
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoints = Checkpoints(tmp_path, Mesh(), keep_last_n=2)
    checkpoints.save(TrainState(0, step=4), model, optimizer, lambda model, path: (path / "model").mkdir())
    assert [saved.step for saved in list_saved_steps(tmp_path)] == [3, 4, 5, 6]
    verify_step(SavedStep(tmp_path / "step_000004", 4))


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """No file grows beyond this, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize(("num_bytes", "size"), [(300, 4096), (4_000, 16)])
def test_a_state_that_finds_no_room_says_why(
    tmp_path: Path, in_background: bool, num_bytes: int, size: int
) -> None:
    """The tensors of the optimizer, and what is beside them: torch alone would say `unexpected pos 64 vs 0`."""
    model = nn.Linear(size, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(size)).sum().backward()
    optimizer.step()
    checkpoints = Checkpoints(tmp_path, Mesh(), in_background=in_background)

    def save_step(step: int) -> None:
        state = TrainState(0, step=step)
        checkpoints.save(state, model, optimizer, lambda model, path: (path / "model").mkdir())
        checkpoints.wait()

    save_step(1)
    with (
        largest_file(num_bytes),
        pytest.raises(CheckpointError, match=r"step_000002 .*File too large.*the newest is step_000001"),
    ):
        save_step(2)
    save_step(3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_000001", "step_000003"]


def test_a_step_in_the_background_when_a_peer_has_gone(tmp_path: Path, warnings_of_tune: Any) -> None:
    """The run fails for another reason, which is told elsewhere: of this one a line, without gloo's own words."""
    model = nn.Linear(3, 5)
    checkpoints = Checkpoints(tmp_path, Mesh(), in_background=True)

    def lose_a_peer(model: nn.Module, path: Path) -> None:
        raise RuntimeError(
            "[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:5803: Connection reset by peer"
        )

    checkpoints.save(TrainState(0, step=1), model, torch.optim.AdamW(model.parameters()), lose_a_peer)
    checkpoints.close()
    assert [record.getMessage() for record in warnings_of_tune.records] == [
        "the last step was not saved: another process of the run is gone"
    ]
    assert not list(tmp_path.iterdir())


def test_metrics_that_find_no_room_are_one_error(tmp_path: Path) -> None:
    logger = JSONLLogger(str(tmp_path))
    logger.log("loss", 1.0, 1)
    with (
        largest_file(logger.path.stat().st_size + 5),
        pytest.raises(CheckpointError, match=r"metrics.jsonl: File too large\. Saved steps are intact"),
    ):
        logger.log("loss", 0.5, 2)
    logger.close()  # has nothing left to say
    logger.rewind(1)
    assert [json.loads(line)["step"] for line in logger.path.read_text().splitlines()] == [1]
    logger.log("loss", 0.5, 2)
    with largest_file(5), pytest.raises(CheckpointError, match="File too large"):
        logger.rewind(1)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert logger.path.read_text().count("\n") == 2  # as before


def test_metrics_go_on_where_their_file_was_removed(tmp_path: Path) -> None:
    logger = JSONLLogger(str(tmp_path / "out"))
    logger.log("loss", 1.0, 1)
    shutil.rmtree(tmp_path / "out")
    logger.log("loss", 0.5, 2)
    logger.close()
    assert json.loads(logger.path.read_text()) == {"step": 2, "loss": 0.5}


def test_a_folder_or_pipe_in_place_of_the_metrics(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: Is a directory"):
        JSONLLogger(str(tmp_path), overwrite=True)
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: Is a directory"):
        JSONLLogger(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    JSONLLogger(str(tmp_path), "pipe").rewind(3)  # has no lines to take back, and does not wait for any


HOLD_AND_FORK = """
    import os, sys, time
    from pathlib import Path
    from tune.training.saving.run_lock import RunLock
    lock = RunLock(Path(sys.argv[1]))
    if os.fork() == 0:  # as a process that loads data
        print("held", flush=True)
        time.sleep(20)
        os._exit(0)
    time.sleep(20)
"""


def test_a_killed_run_holds_no_lock_through_its_loaders(tmp_path: Path) -> None:
    process = warm_python.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD_AND_FORK), str(tmp_path)],
        cwd=Path.cwd(),
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        RunLock(tmp_path).release()
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_a_folder_that_may_not_be_read_is_a_clear_error(tmp_path: Path) -> None:
    save(tmp_path / "out", 1)
    (tmp_path / "out").chmod(0o300)
    try:
        with (
            binding(),
            closing(Checkpoints(tmp_path / "out", Mesh())) as checkpoints,
            pytest.raises(CheckpointError, match="cannot be read: Permission denied"),
        ):
            checkpoints.find(resume=True)
    finally:
        (tmp_path / "out").chmod(0o700)


def test_an_old_step_that_cannot_be_deleted_ends_no_run(tmp_path: Path, warnings_of_tune: Any) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    in_the_way = tmp_path / ".discarded_step_000001"
    in_the_way.mkdir()
    (in_the_way / "file").write_text("")
    in_the_way.chmod(0o500)
    with binding():
        assert [saved.step for saved in prune_saved_steps(tmp_path, 1)] == [2]
    assert "step_000001 could not be deleted: Permission denied" in warnings_of_tune.text
    assert [saved.step for saved in list_saved_steps(tmp_path)] == [1, 3]
    in_the_way.chmod(0o700)


class OlderPickler(pickle.Pickler):
    """Pickles members of enumerations as Python 3.11.2 does, and one thing that no index needs."""

    other: Any = None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, enum.Enum):
            return getattr, self.other or (type(obj), obj.name)
        return NotImplemented


def test_a_state_of_an_older_python_can_be_read(tmp_path: Path) -> None:
    model = nn.Linear(3, 5)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    save_run_state(tmp_path, model, optimizer, {}, {})
    index = tmp_path / "optimizer" / ".metadata"
    metadata = pickle.loads(index.read_bytes())
    for other, is_refused in ((None, False), ((pickle.Pickler, "dump"), True), ((torch.Size, "numel"), True)):
        buffer = io.BytesIO()
        pickler = OlderPickler(buffer)
        pickler.other = other
        pickler.dump(metadata)
        assert b"getattr" in buffer.getvalue()
        index.write_bytes(buffer.getvalue())
        again = torch.optim.AdamW(model.parameters())
        if is_refused:
            with pytest.raises(CheckpointError, match=r"the index names"):
                load_run_state(tmp_path, model, again, {})
            continue
        load_run_state(tmp_path, model, again, {})
        for weight in model.parameters():
            assert torch.equal(again.state[weight]["exp_avg"], optimizer.state[weight]["exp_avg"])
