"""Sources: files, folders, patterns, splits and ranges, and what is said when there is nothing."""

from __future__ import annotations

import json
import socket

import pytest

from tune.data import Source
from tune.data.sources import streaming
from tune.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path):
    def write(name, *numbers):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps({"n": number}) + "\n" for number in numbers))
        return file

    write("train.jsonl", *range(10))
    write("test.jsonl", 10, 11)
    write("more/val-00000-of-00002.jsonl", 12)
    write("more/val-00001-of-00002.jsonl", 13)
    write(".cache/train.jsonl", 99)
    (tmp_path / "LICENSE").write_text("free")
    return tmp_path


def numbers(*args, **kwargs):
    return [row.values["n"] for row in Source(*args, **kwargs).rows()]


def test_a_folder_is_read_by_split(folder):
    assert numbers(str(folder)) == list(range(10))
    assert numbers(str(folder), "test") == [10, 11]
    assert numbers(str(folder), "validation") == numbers(str(folder), "val") == [12, 13]
    with pytest.raises(DataError, match="no files of split 'extra'; found test, train, validation"):
        numbers(str(folder), "extra")


def test_files_that_name_no_split_are_all_train(folder):
    (folder / "test.jsonl").unlink()
    (folder / "train.jsonl").rename(folder / "b.jsonl")
    for file in (folder / "more").iterdir():
        file.rename(folder / file.name.replace("val", "a"))
    assert numbers(str(folder)) == [12, 13, *range(10)]


def test_kinds_of_files_are_not_mixed(folder):
    (folder / "train.csv").write_text("n\n1\n")
    with pytest.raises(DataError, match=r"mixes kinds of files .*train\.csv, train\.jsonl"):
        numbers(str(folder))


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:3]", [0, 1, 2]),
        ("train[8:]", [8, 9]),
        ("train[2:4]", [2, 3]),
        ("train[-2:]", [8, 9]),
        ("train[:25%]", [0, 1]),
        ("train[25%:]", [2, 3, 4, 5, 6, 7, 8, 9]),
        ("train[:]", list(range(10))),
    ],
)
def test_ranges(folder, split, expected):
    assert numbers(str(folder / "train.jsonl"), split) == expected


def test_a_limit_counts_rows_after_the_range(folder):
    assert numbers(str(folder), "train[4:]", limit=2) == [4, 5]
    with pytest.raises(ConfigError, match=r"dataset\.limit is 0"):
        numbers(str(folder), limit=0)


def test_json_with_data_files(folder):
    file = str(folder / "train.jsonl")
    assert numbers("json", data_files=file) == list(range(10))
    assert numbers("json", data_files=[str(folder / "test.jsonl"), file])[:3] == [10, 11, 0]
    assert numbers("json", data_files=str(folder / "more" / "*.jsonl")) == [12, 13]
    assert numbers("json", "test", data_files={"train": file, "test": str(folder / "test.jsonl")}) == [10, 11]
    assert numbers(str(folder), data_files="more/*.jsonl") == [12, 13]
    with pytest.raises(ConfigError, match="no split 'test', only train"):
        numbers("json", "test", data_files={"train": file})
    with pytest.raises(ConfigError, match="all 'train'"):
        numbers("json", "test", data_files=file)
    with pytest.raises(DataError, match="no file matches"):
        numbers("json", data_files=str(folder / "*.csv"))


def test_a_single_file_has_no_other_split(folder):
    with pytest.raises(ConfigError, match=r"split is 'test', but the single file .*train\[90%:\]"):
        numbers(str(folder / "train.jsonl"), "test")


def test_a_misspelt_path_is_not_looked_up_on_the_hub(folder):
    with pytest.raises(
        DataError, match=r"there is no file or folder .*trian\.jsonl; did you mean .*train\.jsonl"
    ):
        numbers(str(folder / "trian.jsonl"))
    with pytest.raises(DataError, match=r"nor a folder"):
        numbers("./nowhere/data.jsonl")
    with pytest.raises(DataError, match=r"there is no file or folder data\.jsonl"):
        numbers("data.jsonl")
    with pytest.raises(DataError, match=r"there is no file or folder table\.xlsx"):
        numbers("table.xlsx")
    with pytest.raises(DataError, match="File name too long"):
        numbers("n" * 5000 + ".jsonl")
    with pytest.raises(ConfigError, match=r"data_files=https://a\.b/c\.json"):
        numbers("https://a.b/c.json")
    with pytest.raises(DataError, match="more is a folder"):
        numbers("json", data_files=str(folder / "more"))
    (folder / "circle.jsonl").symlink_to("circle.jsonl")
    with pytest.raises(DataError, match=r"is a link to circle\.jsonl, which leads nowhere"):
        numbers(str(folder / "circle.jsonl"))
    with pytest.raises(DataError, match="neither a file nor a folder"):
        numbers("/dev/null")
    with pytest.raises(ConfigError, match=r"dataset\.source=json says what kind .* set dataset\.data_files"):
        numbers("json")
    with pytest.raises(DataError, match="there is no file"):
        numbers("json", data_files=str(folder / "nope.json"))


def test_what_is_said_of_unusable_arguments(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"dataset\.source is empty"):
        numbers("")
    with pytest.raises(ConfigError, match=r"split 'train\[1' is not understood"):
        numbers(str(folder), "train[1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data files"):
        numbers(str(tmp_path / "empty"))


def test_a_dataset_saved_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"n": 5}, {"n": 6}]).save_to_disk(tmp_path / "saved")
    assert numbers(str(tmp_path / "saved")) == [5, 6]


def test_the_hub_out_of_reach_is_explained_at_once(monkeypatch):
    pytest.importorskip("datasets")

    def no_network(*args, **kwargs):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(DataError, match=r"could not be asked .*does not resolve.*nor is it in the cache"):
        numbers("someone/no-such-data")


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the network alone: what `datasets` would return or raise."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: [])
    calls = []

    def answer(result):
        def load_dataset(source, **options):
            calls.append((source, options))
            if isinstance(result, Exception):
                raise result
            return datasets.Dataset.from_list(result)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return answer


def test_rows_of_the_hub(hub):
    calls = hub([{"n": number} for number in range(5)])
    assert numbers("some/data", "test[1:3]", name="main", revision="v2") == [1, 2]
    options = {"name": "main", "split": "test", "revision": "v2", "data_files": None, "streaming": False}
    assert calls == [("some/data", options)]
    assert [row.place for row in Source("some/data").rows()][:2] == [
        "some/data train, row 1",
        "some/data train, row 2",
    ]


def test_rows_of_the_hub_are_streamed(hub, monkeypatch):
    import datasets

    calls = hub([])
    rows = datasets.Dataset.from_list([{"n": number} for number in range(2500)]).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda source, **options: calls.append(options) or rows)
    stream = Source("some/data", "train[1200:1203]").shards()[0].unmade()
    assert [make().values["n"] for make in stream] == [1200, 1201, 1202]
    with streaming():
        found = Source("some/data").rows()
        assert found.files is None
        assert next(found).place == "some/data train, row 1"
    assert [options["streaming"] for options in calls] == [True, True]


def test_what_is_said_when_the_hub_refuses(hub):
    from datasets.exceptions import DatasetNotFoundError

    gated = "Dataset 'some/data' is a gated dataset on the Hub. Visit the dataset page to ask for access."
    for error, says in (
        (
            DatasetNotFoundError(gated),
            r"is gated: (?s:.*)accept them at https://huggingface\.co/datasets/some/data",
        ),
        (
            DatasetNotFoundError("Dataset 'some/data' doesn't exist on the Hub"),
            "there is no dataset 'some/data' on the hub",
        ),
        (ValueError("Unknown split \"val\". Should be one of ['train']."), r"Unknown split .*\['train'\]"),
        (ConnectionError("Couldn't reach the hub"), "could not be asked .*Couldn't reach"),
    ):
        hub(error)
        with pytest.raises(DataError, match=says):
            numbers("some/data")


def test_which_files_of_a_folder_are_read(tmp_path):
    for name in ("training_guide.jsonl", "other.jsonl", "more/test.jsonl", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"q": 1}\n')
    assert Source(str(tmp_path)).files() == (["training_guide.jsonl"], ["more/test.jsonl", "other.jsonl"])
    assert Source(str(tmp_path), split="test").files()[0] == ["more/test.jsonl"]
    assert Source(str(tmp_path / "other.jsonl")).files() == ([], [])
