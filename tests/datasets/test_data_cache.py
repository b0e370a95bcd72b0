"""Tokenized once: a later start or another process maps what the first has written, and believes nothing else."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from data_cache_process import KEY, fill
from permissions import binding

from tune.data import TokenStore
from tune.data.cache import DataCache, open_cache
from tune.data.cache_key import NotDescribedError, cache_key, describe
from tune.datasets import chat_dataset, instruct_dataset, text_completion_dataset, tokenizing
from tune.datasets.tokenizing import preparing
from tune.errors import ConfigError, DataError
from tune.tokenizers import SentencePieceTokenizer, from_checkpoint

WORDS = ["the", "river", "of", "seven", "apples", "answers", "twelve", "green", "questions"]


def rows(count=40):
    return [
        {"question": " ".join(WORDS[: n % 7 + 1]), "answer": " ".join(WORDS[n % 5 :])} for n in range(count)
    ]


def write_rows(file, content):
    file.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(file)


@pytest.fixture
def source(tmp_path):
    return write_rows(tmp_path / "data.jsonl", rows())


@pytest.fixture
def tokenizer(spm_file):
    return SentencePieceTokenizer(spm_file)


@pytest.fixture
def root(tmp_path):
    with preparing(1, str(tmp_path / "cache")):
        yield tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch):
    """How many lists of rows have been tokenized."""
    made = []
    whole = tokenizing.tokenize_rows

    def counted(lists, job, num_proc):
        for tokenized in whole(lists, job, num_proc):
            made.append(len(tokenized.examples))
            yield tokenized

    monkeypatch.setattr(tokenizing, "tokenize_rows", counted)
    return made


def names_in(root):
    return {path.name for path in root.iterdir()} - {"digests"}


def entry_of(root):
    (entry,) = DataCache(root, 1 << 40).entries()
    return root / entry.key


def test_the_second_start_reads_what_the_first_has_written(root, source, tokenizer, spm_file, reads):
    first = instruct_dataset(tokenizer, source=source, on_too_long="cut", max_seq_len=20)
    assert sum(reads) == len(first)
    other = SentencePieceTokenizer(spm_file)
    second = instruct_dataset(other, source=source, on_too_long="cut", max_seq_len=20)
    assert sum(reads) == len(first)
    assert list(second) == list(first)
    assert dataclasses.asdict(second.report()) == dataclasses.asdict(first.report())
    assert second.report().num_truncated > 0
    assert second.render_prompt("walk") == first.render_prompt("walk")
    assert other.trained_template.source == tokenizer.trained_template.source
    assert (root / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
    assert names_in(root) == {"CACHEDIR.TAG", entry_of(root).name}


def test_dropped_rows_are_told_again(root, tmp_path, tokenizer, reads):
    source = write_rows(tmp_path / "x.jsonl", [*rows(5), {"question": "walk", "answer": [None]}])
    with pytest.raises(DataError, match=r"x\.jsonl:6: "):
        instruct_dataset(tokenizer, source=source)
    assert not DataCache(root, 1 << 40).entries()
    first, second = (instruct_dataset(tokenizer, source=source, on_bad_rows="drop") for _ in range(2))
    assert str(second.report()) == str(first.report())
    assert "1 of 6 rows are left out" in str(second.report())


@pytest.mark.parametrize(
    "change",
    [
        {"max_seq_len": 21},
        {"on_bad_rows": "drop"},
        {"on_too_long": "split"},
        {"train_on_input": True},
        {"prompt_template": "plain"},
        {"prompt_template": {"user": ["Q", "\n"], "assistant": ["A", ""]}},
        {"new_system_prompt": "walk"},
        {"column_map": {"input": "answer", "output": "question"}},
        {"limit": 30},
        {"split": "train[:30]"},
    ],
)
def test_another_setting_is_another_entry(root, source, tokenizer, change):
    instruct_dataset(tokenizer, source=source)
    instruct_dataset(tokenizer, source=source, **change)
    assert len(DataCache(root, 1 << 40).entries()) == 2


def test_another_tokenizer_or_template_is_another_entry(
    root, tmp_path, chat_folder, folding_spm_file, spm_file
):
    turns = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "walk"}]
    chat = write_rows(tmp_path / "chat.jsonl", [{"messages": turns}])
    template = "{% for m in messages %}<|start|>{{ m.role }}<|sep|>{{ m.content }}<|end|>{% endfor %}"
    template += "{% if x %}{% endif %}"
    tokenizers = [
        from_checkpoint(chat_folder(template)),
        from_checkpoint(chat_folder("{# another #}" + template)),
        from_checkpoint(chat_folder(template), add_special_tokens=["<|new|>"]),
    ]
    for number, tokenizer in enumerate(tokenizers, start=1):
        chat_dataset(tokenizer, source=chat)
        assert len(DataCache(root, 1 << 40).entries()) == number
    chat_dataset(from_checkpoint(chat_folder(template)), source=chat, chat_template_kwargs={"x": "of"})
    assert len(DataCache(root, 1 << 40).entries()) == 4
    chat_dataset(from_checkpoint(chat_folder(template)), source=chat)
    assert len(DataCache(root, 1 << 40).entries()) == 4
    texts = write_rows(tmp_path / "text.jsonl", [{"text": "the  river"}])
    for file in (spm_file, folding_spm_file):
        text_completion_dataset(SentencePieceTokenizer(file), source=texts)
    assert len(DataCache(root, 1 << 40).entries()) == 6


def test_changed_content_of_the_same_size_and_time_is_seen(root, source, tokenizer):
    long_ago = 1_000_000_000
    os.utime(source, (long_ago, long_ago))
    first = instruct_dataset(tokenizer, source=source)
    text = Path(source).read_text()
    Path(source).write_text(text.replace("river", "green"))
    os.utime(source, (long_ago, long_ago))
    second = instruct_dataset(tokenizer, source=source)
    assert list(second) != list(first)


def test_a_file_that_changes_while_it_is_read_is_not_kept(root, source, tokenizer, monkeypatch):
    whole = tokenizing.tokenize_rows

    def change_on_the_way(lists, job, num_proc):
        yield from whole(lists, job, num_proc)
        text = Path(source).read_text()
        Path(source).write_text(text.replace("river", "green"))

    monkeypatch.setattr(tokenizing, "tokenize_rows", change_on_the_way)
    with pytest.raises(DataError, match="changed while it was read"):
        instruct_dataset(tokenizer, source=source)
    assert names_in(root) == {"CACHEDIR.TAG"}


def test_a_noted_checksum_is_taken_while_nothing_changes(root, source, monkeypatch):
    cache = open_cache(str(root))
    monkeypatch.setattr("tune.data.cache_digests._SETTLED_S", -1.0)
    digest = cache.digest([Path(source)])
    monkeypatch.setattr("tune.data.cache_digests._read_files", lambda files: "read again")
    assert cache.digest([Path(source)]) == digest
    Path(source).write_text("{}")
    assert cache.digest([Path(source)]) == "read again"


def cut_short(folder):
    with open(folder / "tokens", "r+b") as file:
        file.truncate(10)


def flip_a_bit(folder):
    with open(folder / "codes", "r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 4]))


def change_the_report(folder):
    entry = folder / "entry.json"
    entry.write_text(entry.read_text().replace('"num_rows": 40', '"num_rows": 41'))


def of_another(folder):
    (folder / "entry.json").write_text('{"format": "tune data cache 1"}')


def no_json(folder):
    (folder / "entry.json").write_bytes(b"\xff[[[[")


def without_ends(folder):
    (folder / "ends").unlink()


@pytest.mark.parametrize(
    "damage", [cut_short, flip_a_bit, change_the_report, of_another, no_json, without_ends]
)
def test_a_damaged_entry_is_made_anew(root, source, tokenizer, reads, caplog, damage):
    before = list(instruct_dataset(tokenizer, source=source))
    damage(entry_of(root))
    reads.clear()
    with caplog.at_level(logging.WARNING, "tune"):
        assert list(instruct_dataset(tokenizer, source=source)) == before
    assert sum(reads) == len(before)
    if damage is not without_ends:
        assert "is not as it was written" in caplog.text
    reads.clear()
    assert list(instruct_dataset(tokenizer, source=source)) == before
    assert not reads


def test_what_bears_the_name_of_an_entry_is_left_alone(root, source, tokenizer, caplog):
    before = list(instruct_dataset(tokenizer, source=source))
    folder = entry_of(root)
    (folder / "diary.txt").write_text("mine")
    (folder / "entry.json").unlink()
    with caplog.at_level(logging.WARNING, "tune"):
        assert list(instruct_dataset(tokenizer, source=source)) == before
    assert (folder / "diary.txt").read_text() == "mine"
    assert "could not be kept" in caplog.text


@pytest.mark.parametrize("folder", ["a file", "read-only", "link to nowhere"])
def test_without_a_usable_folder_it_goes_on_with_a_notice(tmp_path, source, tokenizer, caplog, folder):
    place = tmp_path / "cache"
    if folder == "a file":
        place.write_text("")
    elif folder == "read-only":
        place.mkdir(mode=0o500)
    else:
        place.symlink_to(tmp_path / "nowhere" / "deep")
    with caplog.at_level(logging.WARNING, "tune"), preparing(1, str(place)), binding():
        dataset = instruct_dataset(tokenizer, source=source)
    assert len(dataset) == 40
    assert f"{place}, cannot be used" in caplog.text
    assert "data_cache_dir=off" in caplog.text
    assert list(pickle.loads(pickle.dumps(dataset))) == list(dataset)


def test_a_full_disk_costs_the_entry_and_nothing_else(root, source, tokenizer, caplog):
    with preparing(1, "off"):
        expected = list(instruct_dataset(tokenizer, source=source, max_seq_len=50))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
    try:
        with caplog.at_level(logging.WARNING, "tune"):
            dataset = instruct_dataset(tokenizer, source=source, max_seq_len=50)
            assert list(dataset) == expected
            again = pickle.loads(pickle.dumps(dataset))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(again) == expected
    assert "could not be kept" in caplog.text
    assert names_in(root) == {"CACHEDIR.TAG"}


def test_pickled_it_is_mapped_and_not_copied(root, source, tokenizer, monkeypatch):
    cached = instruct_dataset(tokenizer, source=source)
    with preparing(1, "off"):
        unkept = instruct_dataset(tokenizer, source=source)
    for dataset in (cached, unkept):
        pickled = pickle.dumps(dataset._store)
        assert len(pickled) < 500
        again = pickle.loads(pickled)
        assert isinstance(again, TokenStore)
        assert [again.example(i) for i in range(len(again))] == list(dataset)
    DataCache(root, 0).make_room()  # without it: it is mapped
    assert entry_of(root).exists()
    folder = entry_of(root)
    folder.rename(root / "elsewhere")  # even so it is found
    assert list(pickle.loads(pickle.dumps(cached._store)).example(0)) == list(cached[0])


def start(root):
    program = Path(__file__).parent.parent / "data_cache_process.py"
    return subprocess.Popen(
        [sys.executable, str(program), str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_killed_writer_leaves_nothing_that_is_believed(root):
    with start(root) as writer:
        assert writer.stdout.readline() == "written\n"
        (partial,) = root.glob("*.partial")
        writer.send_signal(signal.SIGKILL)
    assert partial.is_dir()
    assert list(root.glob("*.lock"))
    store, _ = DataCache(root, 1 << 40).load(KEY, "x", 700, fill)
    assert store.example(1) == {"tokens": [4, 5, 6], "labels": [-100, 5, 6]}
    assert names_in(root) == {"CACHEDIR.TAG", KEY}


def test_of_two_processes_one_tokenizes_and_the_other_waits(root):
    with start(root) as writer, start(root) as other:
        both = {writer: writer.stdout, other: other.stdout}
        # One of them writes; which one, the lock has decided.
        ready, _, _ = select.select(list(both.values()), [], [])
        first, second = (writer, other) if ready[0] is writer.stdout else (other, writer)
        assert first.stdout.readline() == "written\n"
        assert select.select([second.stdout], [], [], 0)[0] == []
        first.stdin.write("\n")
        first.stdin.flush()
        told = first.stdout.readline()
        assert told.startswith("2 {")
        assert second.stdout.readline() == told
        assert entry_of(root)
        assert DataCache(root, 0).entries()[0].in_use
        assert DataCache(root, 0).clear()[0] == []
        for process in (first, second):
            process.stdin.close()
    assert DataCache(root, 0).clear()[0]
    assert names_in(root) == {"CACHEDIR.TAG"}


def test_the_oldest_make_room_and_what_is_not_ours_stays(root, tmp_path, tokenizer):
    cache = DataCache(root, 1 << 40)
    files = [write_rows(tmp_path / f"{n}.jsonl", rows(n)) for n in range(10, 14)]
    used = instruct_dataset(tokenizer, source=files[0])
    for file in files[1:3]:
        instruct_dataset(tokenizer, source=file)
    for number, entry in enumerate(cache.entries()):
        os.utime(root / entry.key / "entry.json", (2_000_000_000 - number, 2_000_000_000 - number))
    newest, middle, oldest = cache.entries()
    assert [entry.in_use for entry in (newest, middle, oldest)] == [False, False, True]
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "tokens").write_text("mine")
    (root / ("a" * 40)).symlink_to(outside)
    (root / ("b" * 40)).mkdir()
    (root / "notes").mkdir()
    small = DataCache(root, newest.num_bytes + 10)
    small.make_room(newest.key)
    # The oldest is in use, the newest is just made.
    assert [entry.key for entry in cache.entries()] == [newest.key, oldest.key]
    del used
    assert {entry.key for entry in cache.clear()[0]} == {newest.key, oldest.key}
    assert names_in(root) == {"CACHEDIR.TAG", "a" * 40, "b" * 40, "notes"}
    assert (outside / "tokens").read_text() == "mine"


def test_rows_given_from_python_are_not_kept(root, tokenizer):
    from tune.data import InputOutputToMessages
    from tune.datasets import SFTDataset

    columns = {"input": "question", "output": "answer"}
    SFTDataset(tokenizer, source=rows(), message_transform=InputOutputToMessages(column_map=columns))
    assert not root.exists()


def test_a_saved_dataset_is_kept_by_its_tables(root, tmp_path, tokenizer, reads):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(rows())
    for number, content in enumerate((saved, saved.select(range(30)), saved)):
        content.save_to_disk(str(tmp_path / "saved"))
        dataset = instruct_dataset(tokenizer, source=str(tmp_path / "saved"))
        again = instruct_dataset(tokenizer, source=str(tmp_path / "saved"))
        assert list(again) == list(dataset)
        assert (len(dataset), sum(reads)) == [(40, 40), (30, 70), (40, 70)][
            number
        ]  # the content it had before


def test_code_of_ones_own_is_not_told_from_other_code(root, source, tokenizer):
    from tune.data import Source
    from tune.datasets import SFTDataset

    def own(row):
        from tune.data import Message

        return {"messages": [Message("user", row["question"]), Message("assistant", row["answer"])]}

    dataset = SFTDataset(tokenizer, source=Source(source), message_transform=own)
    assert len(dataset) == 40
    assert not DataCache(root, 0).entries()
    with pytest.raises(NotDescribedError):
        describe(own)


def test_keys_do_not_depend_on_the_order_of_what_has_none():
    one = cache_key(x={"a": 1, "b": {2, 3}}, y=[1, "1"])
    assert one == cache_key(y=(1, "1"), x={"b": {3, 2}, "a": 1})
    assert one != cache_key(x={"a": 1, "b": {2, 3}}, y=["1", 1])


def test_off_and_a_wrong_size_and_the_default_place(monkeypatch, tmp_path):
    assert open_cache("off") is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TUNE_DATA_CACHE_GB", "0.5")
    for nothing in (None, ""):
        cache = open_cache(nothing)
        assert (cache.root, cache.max_bytes) == (tmp_path / "tune" / "data", 500_000_000)
    monkeypatch.setattr(
        "os.path.expanduser", lambda path: path
    )  # as for a user whom the system does not know
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert open_cache(None) is None
    monkeypatch.setenv("TUNE_DATA_CACHE_GB", "much")
    with pytest.raises(ConfigError, match="TUNE_DATA_CACHE_GB is 'much', expected gigabytes"):
        open_cache(None)
