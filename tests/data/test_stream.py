"""Streams give the rows of their source, each once a pass, from any place, to any number of processes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tune.data import Source, TextTokenizer
from tune.data.stream import MixedPlace, MixedStream, RowStream, StreamPlace
from tune.errors import ConfigError, DataError
from tune.tokenizers import SentencePieceTokenizer


@pytest.fixture(scope="module")
def tokenizer(spm_file: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(spm_file)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of 40 documents, of one to eight words."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        rows = [
            {"text": "the cat " * (1 + (shard + number) % 8) + str(number + 40 * shard)}
            for number in range(40)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"train_{shard}.jsonl").write_text(text)
    return folder


@pytest.fixture
def stream_of(tokenizer: SentencePieceTokenizer, shards: Path) -> Any:
    def make(source: Source | None = None, limit: int = 64, **settings: Any) -> RowStream:
        job = TextTokenizer(tokenizer, "text", "text", True, limit, "split")
        return RowStream(source or Source(str(shards)), job, **settings)

    return make


@dataclass
class CountingTokenizer:
    """Counts the rows that another makes tokens of."""

    job: TextTokenizer
    num_rows: int = 0

    def __call__(self, rows: Any) -> Any:
        self.num_rows += len(rows)
        return self.job(rows)


def write_shards(folder: Path, sizes: tuple[int, ...]) -> Path:
    """Write files of so many documents each, numbered on."""
    folder.mkdir()
    start = 0
    for shard, size in enumerate(sizes):
        rows = [{"text": f"{n} " + "the cat " * (n % 7)} for n in range(start, start + size)]
        (folder / f"train_{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        start += size
    return folder


def take(stream: Any, number: int, *place: Any) -> list[Any]:
    return list(islice(stream.examples(*place), number))


def tokens_of(found: list[Any]) -> list[list[int]]:
    return [example["tokens"] for example, _ in found]


def test_without_a_buffer_rows_come_in_their_order(stream_of, tokenizer, shards: Path) -> None:
    texts = [
        json.loads(line)["text"]
        for file in sorted(shards.iterdir())
        for line in file.read_text().splitlines()
    ]
    expected = [tokenizer.encode(text, add_bos=True, add_eos=True) for text in texts]
    assert tokens_of(take(stream_of(), 130)) == [*expected, *expected[:10]]


def test_a_buffer_mixes_every_row_once_a_pass(stream_of) -> None:
    plain = sorted(tokens_of(take(stream_of(), 120)))
    first, second = (
        tokens_of(take(stream_of(shuffle_buffer=50, seed=3), 240)[part : part + 120]) for part in (0, 120)
    )
    assert sorted(first) == sorted(second) == plain
    assert first != second
    assert first == tokens_of(take(stream_of(shuffle_buffer=50, seed=3), 120))
    assert first != tokens_of(take(stream_of(shuffle_buffer=50, seed=4), 120))


@pytest.mark.parametrize("settings", [{}, {"shuffle_buffer": 30}, {"shuffle_buffer": 30, "capacity": 64}])
def test_from_every_place_the_same_follows(stream_of, settings: dict[str, Any]) -> None:
    whole = take(stream_of(**settings), 150)
    for at in (0, 1, 29, 30, 31, 77, 119, 120, 121, 140):
        assert take(stream_of(**settings), 150 - at - 1, whole[at][1]) == whole[at + 1 :]


def test_processes_share_the_rows(stream_of) -> None:
    whole = sorted(tokens_of(take(stream_of(), 120)))
    parts = [take(stream_of(shuffle_buffer=16, rank=rank, world_size=3), 40) for rank in range(3)]
    assert sorted(tokens for part in parts for tokens in tokens_of(part)) == whole
    assert {place.passes for part in parts for _, place in part} == {0}


@pytest.mark.parametrize("capacity", [None, 64])
@pytest.mark.parametrize(
    ("world_size", "sizes"), [(1, (7, 32)), (2, (9, 30, 2)), (2, (7, 5, 3, 26)), (3, (20, 24))]
)
def test_each_process_goes_on_from_any_place(
    stream_of, tmp_path: Path, world_size: int, sizes: tuple[int, ...], capacity: int | None
) -> None:
    folder = write_shards(tmp_path / "data", sizes)
    for rank in range(world_size):
        stream = stream_of(
            Source(str(folder)), shuffle_buffer=19, capacity=capacity, rank=rank, world_size=world_size
        )
        whole = take(stream, 60)
        for at in range(56):
            assert take(stream, 3, whole[at][1]) == whole[at + 1 : at + 4]


@pytest.mark.parametrize("sizes", [(21,), (6, 4), (3, 5, 1), (5, 2, 4, 4), (1,) * 5])
@pytest.mark.parametrize("world_size", [2, 3])
def test_together_they_have_every_row_once_a_pass(
    stream_of, tmp_path: Path, sizes: tuple[int, ...], world_size: int
) -> None:
    source = Source(str(write_shards(tmp_path / "data", sizes)))
    found = []
    for rank in range(world_size):
        stream = stream_of(source, shuffle_buffer=3, seed=2, rank=rank, world_size=world_size)
        found += [example for example in take(stream, 70) if example[1].passes == 1]
    assert sorted(tokens_of(found)) == sorted(tokens_of(take(stream_of(source), sum(sizes))))


def test_going_on_costs_no_more_than_a_part_of_a_block(stream_of, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "data", (300, 300))
    stream = stream_of(Source(str(folder)), shuffle_buffer=200, seed=1)
    whole = take(stream, 500)
    after = whole[479][1]
    assert after.shard == 1
    assert after.done == 64
    plain = tokens_of(take(stream_of(Source(str(folder))), 600))
    behind = folder / f"train_{plain.index(whole[0][0]['tokens']) // 300}.jsonl"
    behind.write_text("x" * behind.stat().st_size)  # what is behind is not looked at
    counted = CountingTokenizer(stream.job)
    going_on = stream_of(Source(str(folder)), shuffle_buffer=200, seed=1)
    going_on.job = counted
    assert take(going_on, 20, after) == whole[480:]
    assert counted.num_rows <= 48


def test_packed_sequences_hold_whole_documents(stream_of) -> None:
    documents = sorted(tokens_of(take(stream_of(), 120)))
    found: list[list[int]] = []
    for example, place in stream_of(shuffle_buffer=60, capacity=64).examples():
        if place.passes:
            break
        assert len(example["tokens"]) <= 64
        starts = [index for index, position in enumerate(example["input_pos"]) if position == 0]
        found += [example["tokens"][a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
        assert [example["labels"][start] for start in starts] == [-100] * len(starts)
    assert sorted(found) == documents


def test_streams_are_mixed_in_their_shares(stream_of, shards: Path) -> None:
    def mix() -> MixedStream:
        streams = [
            stream_of(Source(str(shards / f"train_{shard}.jsonl")), shuffle_buffer=8) for shard in (0, 1)
        ]
        return MixedStream(streams, [3.0, 1.0])

    found = take(mix(), 200)
    assert [place.counts for _, place in found[3::4]] == [(3 * n, n) for n in range(1, 51)]
    place = MixedPlace.from_numbers(found[122][1].to_numbers())
    assert place == found[122][1]
    assert take(mix(), 77, place) == found[123:]


def test_bad_rows_stop_or_are_left_out(stream_of, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "the cat"}\n{"text": 3}\n{"text": "a rat"}\n{"te\n')
    source = Source(str(file))
    with pytest.raises(DataError, match=r"rows.jsonl:2 cannot be learnt from: column 'text' is"):
        take(stream_of(source), 2)
    stream = stream_of(source, drops_bad_rows=True)
    assert len(take(stream, 4)) == 4
    assert stream.num_dropped == 4
    assert "1 rows left out so far" in caplog.text
    file.write_text('{"text": 3}\n')
    with pytest.raises(DataError, match="none of its rows became an example for process 1 of 1"):
        take(stream_of(source, drops_bad_rows=True), 1)


def test_what_would_have_to_be_counted_is_refused(stream_of, shards: Path) -> None:
    first = take(stream_of(Source(str(shards), split="train[5:9]")), 5)
    assert tokens_of(first[:4]) == tokens_of(take(stream_of(), 9))[5:]
    assert first[4][1].passes == 1
    with pytest.raises(ConfigError, match="known once all are counted"):
        take(stream_of(Source(str(shards), split="train[90%:]")), 1)


def test_no_more_is_read_than_is_asked_for(stream_of, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "the cat"}\n' * 2000 + "\xff")  # an error, were it ever reached
    assert len(take(stream_of(Source(str(file)), shuffle_buffer=500), 900)) == 900


def test_a_place_is_plain_numbers() -> None:
    place = MixedPlace((7, 2), (StreamPlace(1, 6, 300, 48, 4), StreamPlace(given=2)))
    assert place.to_numbers() == [7, 1, 6, 300, 48, 4, 2, 0, 0, 0, 0, 2]
    assert MixedPlace.from_numbers(place.to_numbers()) == place
