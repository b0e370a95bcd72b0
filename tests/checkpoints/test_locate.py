from __future__ import annotations

from pathlib import Path

import pytest

from tune.checkpoints import find_model_dir, staged_directory
from tune.errors import CheckpointError, ConfigError


def put_model(folder: Path, name: str = "config.json") -> Path:
    folder.mkdir(parents=True)
    (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "params.json", "consolidated.00.pth"])
def test_a_model_folder_is_itself(tmp_path: Path, name: str) -> None:
    folder = put_model(tmp_path / "m", name)
    assert find_model_dir(folder) == find_model_dir(str(folder)) == folder


def test_every_way_to_name_a_saved_step(tmp_path: Path) -> None:
    put_model(tmp_path / "step_000009" / "model")
    newest = put_model(tmp_path / "step_000123" / "model")
    (tmp_path / "step_000200").mkdir()  # nothing in it
    assert find_model_dir(tmp_path / "step_000123") == newest
    assert find_model_dir(newest) == newest
    assert find_model_dir(tmp_path) == newest  # no latest: the newest with a model
    (tmp_path / "latest").symlink_to("step_000009")
    assert find_model_dir(tmp_path / "latest").samefile(tmp_path / "step_000009" / "model")
    assert find_model_dir(tmp_path).samefile(tmp_path / "step_000009" / "model")


def test_a_step_that_holds_an_adapter_alone_says_how_it_is_used(tmp_path: Path) -> None:
    adapter = tmp_path / "step_000009" / "adapter"
    put_model(adapter, "adapter_config.json")
    (tmp_path / "latest").symlink_to("step_000009")
    for place in (tmp_path, tmp_path / "latest", adapter.parent):
        with pytest.raises(
            CheckpointError, match=r"an adapter, and no model: .*adapter_checkpoint=.*tune merge"
        ):
            find_model_dir(place)
    with pytest.raises(CheckpointError, match="nothing without its base"):
        find_model_dir(adapter)
    whole = put_model(adapter.parent / "model")
    assert find_model_dir(adapter.parent) == whole


@pytest.mark.parametrize(
    "word",
    [
        "[" * 100_000,
        '{"files": [""]}',
        '{"files": ["."]}',
        '{"files": "abc"}',
        '{"files": {"config.json": 1}}',
        '{"files": ["/etc/hostname"]}',
        '{"files": ["../elsewhere/config.json"]}',
        '{"files": ["a/b/config.json"]}',
        '{"files": ["gone.safetensors"]}',
    ],
)
def test_a_foreign_marker_of_a_complete_model_does_not_count(tmp_path: Path, word: str) -> None:
    folder = put_model(tmp_path / "downloaded")
    put_model(folder / ".converting")
    (folder / ".converting" / ".whole").write_text(word)
    assert find_model_dir(folder) == folder
    with pytest.raises(CheckpointError, match="files of two models must not mix"), staged_directory(folder):
        raise AssertionError("it holds a model")
    assert (folder / "config.json").is_file()


def test_a_model_on_its_way_does_not_leave_its_folder(tmp_path: Path) -> None:
    folder, elsewhere = put_model(tmp_path / "downloaded"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "diary").write_text("mine")
    (folder / "extra").symlink_to(elsewhere)
    staging = put_model(folder / ".converting")
    (staging / "extra").mkdir()
    (staging / "extra" / "diary").write_text("theirs")
    (staging / ".whole").write_text('{"files": ["config.json", "extra/diary"]}')
    with pytest.raises(CheckpointError, match="is a link"), staged_directory(folder, force=True):
        raise AssertionError("an earlier model is in the way")
    assert (elsewhere / "diary").read_text() == "mine"


def test_a_folder_that_is_called_like_a_file_of_weights_stays(tmp_path: Path) -> None:
    folder = put_model(tmp_path / "model")
    (folder / "notes.safetensors").mkdir()
    with staged_directory(folder, force=True) as staging:
        (staging / "config.json").write_text("the new one")
    assert (folder / "config.json").read_text() == "the new one"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "notes.safetensors"]


def test_latest_as_a_text_file(tmp_path: Path) -> None:
    model = put_model(tmp_path / "step_000007" / "model")
    (tmp_path / "latest").write_text("step_000007\n")
    assert find_model_dir(tmp_path / "latest") == find_model_dir(tmp_path) == model
    for text in ("../elsewhere", "latest", "", "/etc"):
        (tmp_path / "latest").write_text(text)
        with pytest.raises(CheckpointError, match="should name a saved step"):
            find_model_dir(tmp_path)


def test_nothing_to_find_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no folder .*nowhere"):
        find_model_dir(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds nothing"):
        find_model_dir(tmp_path)
    for i in range(11):
        (tmp_path / f"note{i:02}.txt").touch()
    with pytest.raises(CheckpointError, match=r"note00.txt, note01.txt, .*and 3 more.*config.json"):
        find_model_dir(tmp_path)
    with pytest.raises(CheckpointError, match=r"note00.txt is a file"):
        find_model_dir(tmp_path / "note00.txt")
    with pytest.raises(ConfigError, match="home of a user who is not known"):
        find_model_dir("~nobody-of-this-name/x")
    with pytest.raises(ConfigError, match="NUL"):
        find_model_dir("a\0b")
    with pytest.raises(CheckpointError, match="File name too long"):
        find_model_dir("n" * 5000)
    (tmp_path / "latest").symlink_to(".")  # a step within itself, without end
    with pytest.raises(CheckpointError, match=r"no model was found in \S*/latest: it holds latest"):
        find_model_dir(tmp_path)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to("step_000001")
    with pytest.raises(CheckpointError, match="a link to step_000001, which is gone"):
        find_model_dir(tmp_path / "latest")
