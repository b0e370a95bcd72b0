"""Data files that are bombs, broken or odd: bounded memory, and a refusal that says what it is and what to do."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import struct
import subprocess
import sys

import pytest

from tune.data import Source
from tune.data.rows import read_file
from tune.errors import ConfigError, DataError, TuneError

MIB = 1 << 20
COUNT = """
import json, sys
import pyarrow.parquet
from tune.data import Source
from tune.errors import TuneError
def peak():
    # ru_maxrss would also count what the parent took before this program was started in its place
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
before, said = peak(), []
for name in sys.argv[1:]:
    try:
        said.append(sum(1 for row in Source(name).rows()))
    except TuneError as error:
        said.append(str(error))
print(json.dumps([(peak() - before) // 1024, said]))
"""


def read_in_child(*paths):
    """Return MiB of memory that reading takes at most, and of each file the number of rows, or what is said instead."""
    if sys.platform != "linux":
        pytest.skip("what a process took at most is asked of /proc")
    command = [sys.executable, "-c", COUNT, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout))


def pack(file, start, piece, times, end=b""):
    # A gzip file may have many members: the piece is packed once.
    file.write_bytes(gzip.compress(start) + gzip.compress(piece, 1) * times + gzip.compress(end))
    return file


BOMBS = [
    (
        "d.jsonl.gz",
        b'{"text": "',
        b"a" * MIB,
        r"gz:1: this line .*more than 16,777,216 bytes.* [\d,]+ bytes on the disk",
    ),
    ("d.jsonl.gz", b'{"a": 1}\n', b"[" * MIB, r"gz:2: this line"),
    ("d.json.gz", b'[{"a": 1}, "', b"a" * MIB, r"item 2 goes on for more than 16,777,216"),
    ("d.json.gz", b'{"data": "', b"a" * MIB, r"its one object goes on"),
    ("d.csv.gz", b"", b"a" * MIB, r"gz:1: the row"),
    ("d.csv.gz", b'a,b\n1,"', b"xy\n" * (MIB // 3), r"gz:\d+: the row .*is a quote left open"),
    ("d.csv.gz", b"a,b\n", b'"a\n",' * (MIB // 5), r"gz:\d+: the row"),
    ("d.csv.gz", b"", b"," * (MIB - 1) + b"a", r"gz:1: the row"),
    ("d.txt.gz", b"", b"a" * MIB, r"more than 268,435,456 bytes.*text_unit=paragraph"),
]


def test_a_row_that_inflates_is_refused(tmp_path):
    files = []
    for number, (name, start, piece, _) in enumerate(BOMBS):
        times = 260 if name.endswith("txt.gz") else 20
        files.append(pack(tmp_path / f"{number}{name}", start, piece, times))
    mib, said = read_in_child(*files)
    for message, (_, _, _, says) in zip(said, BOMBS, strict=True):
        assert re.search(says, message), message
    assert mib < 1000


def test_many_rows_of_a_packed_file_are_streamed(tmp_path):
    """Held at once, the rows of each file would take more than 100 MB."""
    text = "the river " * 200
    row = json.dumps({"text": text}).encode()
    files = [
        pack(tmp_path / name, start, piece * 1000, 50, end)
        for name, start, piece, end in (
            ("d.jsonl.gz", b"", row + b"\n", b""),
            ("d.json.gz", b"[", row + b",\n", row + b"]"),
            ("d.csv.gz", b"q,a\n", f"{text},green\n".encode(), b""),
        )
    ]
    assert read_in_child(*files) == (pytest.approx(0, abs=60), [50_000, 50_001, 50_000])


def test_a_range_at_the_end_holds_no_rows(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps({"n": n}) + "\n" for n in range(101)))
    for split, expected in (
        ("train[90%:]", list(range(91, 101))),
        ("train[:90%]", list(range(91))),
        ("train[-3:-1]", [98, 99]),
        ("train[5:-94]", [5, 6]),
        (f"train[:{10**30}]", list(range(101))),
        (f"train[-{'9' * 5000}:]", list(range(101))),
    ):
        assert [row.values["n"] for row in Source(str(file), split).rows()] == expected
    assert [row.values["n"] for row in Source(str(file), "train[99:]", limit=10**30).rows()] == [99, 100]
    for split in ("train[90%:10%]", "train[7:7]", f"train[{10**30}:5]", "train[:101%]", "train[:10**30]"):
        with pytest.raises(ConfigError, match=r"dataset\.split"):
            list(Source(str(file), split).rows())
    assert list(Source(str(file), f"train[{10**30}:]").rows()) == []


def write_parquet(file, columns, **options):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), file, **options)
    return file


def repeated(value, times):
    import pyarrow

    return pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * times, pyarrow.int32()), pyarrow.array([value])
    )


def test_parquet_that_repeats_large_values_is_streamed(tmp_path):
    text = "a" * MIB
    for options, column, limit in (
        ({}, repeated(text, 400), 200),
        ({"use_dictionary": False, "column_encoding": {"q": "DELTA_BYTE_ARRAY"}}, [text] * 150, 1000),
    ):
        file = write_parquet(tmp_path / "d.parquet", {"q": column}, compression="zstd", **options)
        assert file.stat().st_size < 2000
        mib, said = read_in_child(file)
        assert (mib < limit, said) == (True, [len(column)])


@pytest.mark.parametrize("compression", ["zstd", "snappy"])
def test_one_huge_value_in_parquet_is_refused(tmp_path, compression):
    text = "a" * (20 * MIB)
    options = {"compression": compression, "use_dictionary": False, "write_statistics": False}
    mib, (said,) = read_in_child(write_parquet(tmp_path / "d.parquet", {"q": [text]}, **options))
    assert re.search(r"column 'q' unpack to 20,971,\d+ bytes at once, at most 16,777,216", said), said
    assert mib < 100
    file = write_parquet(tmp_path / "d.parquet", {"q": ["x", "y", "z", text]}, **options)
    with pytest.raises(DataError, match=r"row 4 takes 20,971,\d+ bytes of memory, at most 16,777,216"):
        list(read_file(file))


def test_odd_columns_of_parquet_are_read_or_explained(tmp_path):
    import datetime
    import decimal

    import pyarrow
    from pyarrow import parquet

    file = tmp_path / "d.parquet"
    values = {
        "t": datetime.datetime(2020, 1, 2),
        "d": decimal.Decimal("1.5"),
        "b": b"\xff",
        "l": [1],
        "m": [("a", 1)],
    }
    types = pyarrow.schema(
        [
            ("t", pyarrow.timestamp("us")),
            ("d", pyarrow.decimal128(9, 1)),
            ("b", pyarrow.binary()),
            ("l", pyarrow.list_(pyarrow.int8())),
            ("m", pyarrow.map_(pyarrow.string(), pyarrow.int8())),
        ]
    )
    parquet.write_table(pyarrow.Table.from_pylist([values], types), file)
    assert [row.values for row in read_file(file)] == [values]
    twice = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["q\x1b", "q\x1b"])
    parquet.write_table(twice, file)
    with pytest.raises(DataError, match=r"column 'q\\x1b' stands twice"):
        list(read_file(file))
    parquet.write_table(pyarrow.table({}), file)
    with pytest.raises(DataError, match="has no columns"):
        list(read_file(file))
    deep = pyarrow.string()
    for _ in range(300):
        deep = pyarrow.struct([("a", deep)])
    parquet.write_table(pyarrow.table({"q": pyarrow.nulls(1, deep)}), file)
    with pytest.raises(DataError, match="nested"):
        list(read_file(file))


def test_damaged_parquet_is_explained(tmp_path):
    import pyarrow

    file = write_parquet(tmp_path / "d.parquet", {"q": [f"text {n}" for n in range(500)]}, compression="zstd")
    whole = file.read_bytes()
    footer = struct.unpack("<I", whole[-8:-4])[0]
    for place in range(4, len(whole) - 1, 97):
        for bits in (0xFF, 0x01):
            broken = bytearray(whole)
            broken[place] ^= bits
            file.write_bytes(broken)
            try:
                list(read_file(file))
            except TuneError as error:
                assert str(file) in str(error)  # noqa: PT017
    file.write_bytes(whole[: -8 - footer // 2])
    with pytest.raises(DataError, match=r"cannot (be )?read"):
        list(read_file(file))
    file.write_bytes(b"PARE" + whole[4:-4] + b"PARE")
    with pytest.raises(DataError, match=r"cannot (be )?read"):
        list(read_file(file))
    assert pyarrow.total_allocated_bytes() < 64 * MIB


def save(folder, rows, packed=None, compression=None):
    """Save as `datasets` does; then put a column in the place of the rows, with its buffers packed, if so asked."""
    import datasets
    import pyarrow

    datasets.Dataset.from_list(rows).save_to_disk(folder)
    (file,) = folder.glob("*.arrow")
    if compression:
        with pyarrow.ipc.open_stream(file.read_bytes()) as reader:
            schema = reader.schema
        options = pyarrow.ipc.IpcWriteOptions(compression=compression)
        with pyarrow.ipc.new_stream(str(file), schema, options=options) as writer:
            writer.write_table(pyarrow.table([packed], schema=schema))
    return file


def test_saved_datasets_that_inflate_are_refused(tmp_path):
    for compression in ("zstd", "lz4"):
        save(tmp_path / compression, [{"q": "a"}], ["a" * 1000] * 20, compression)
        assert len(list(Source(str(tmp_path / compression)).rows())) == 20
    save(tmp_path / "large", [{"q": "a"}], ["a" * MIB] * 260, "zstd")
    mib, (said,) = read_in_child(tmp_path / "large")
    assert re.search(r"unpacks to 272,6\d\d,\d+ bytes in memory, at most 268,435,456", said), said
    assert mib < 200


def test_broken_saved_datasets_are_explained(tmp_path):
    file = save(tmp_path / "saved", [{"q": "a"}] * 3)
    whole = file.read_bytes()
    for length in range(0, len(whole) - 8, 197):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"saved"):
            list(Source(str(tmp_path / "saved")).rows())
    file.write_bytes(whole)
    state = tmp_path / "saved" / "state.json"
    for content in (
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"_data_files": [7]}',
        '{"_data_files": [{"filename": "no"}]}',
    ):
        state.write_text(content)
        with pytest.raises(DataError, match=r"saved"):
            list(Source(str(tmp_path / "saved")).rows())


def text_of(name, content, tmp_path):
    file = tmp_path / name
    file.write_bytes(content)
    return [row.values or row.problem for row in read_file(file)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("mac.csv", b"q,a\rx,y\r", [{"q": "x", "a": "y"}]),
        ("nul.csv", b"q,a\nx\0,y\n", [{"q": "x\0", "a": "y"}]),
        ("wide.csv", b"q," + b"a" * 200_000 + b"\nx,y\n", [{"q": "x", "a" * 200_000: "y"}]),
        ("joined.jsonl", b'\xef\xbb\xbf{"q": 1}\n\xef\xbb\xbf{"q": 2}\n', [{"q": 1}, {"q": 2}]),
        ("huge.jsonl", b'{"q": 1e999}\n', [{"q": float("inf")}]),
        ("half.jsonl", b'{"\\udfff": "\\udfff"}\n', [{"\udfff": "\udfff"}]),
        ("nested.jsonl", b'{"q": ' + b"[" * 150 + b"]" * 150 + b"}\n", None),
        ("cut.json", b"[" + b" " * (MIB - 20) + b'{"q": 1.5e3}, {"q": "' + b"z" * MIB + b'"}]', None),
    ],
)
def test_odd_files_are_read(tmp_path, name, content, expected):
    rows = text_of(name, content, tmp_path)
    assert all(isinstance(row, dict) for row in rows)
    assert expected in (None, rows)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "d.jsonl",
            b'{"q": ' + b"9" * 10_000 + b"}\n",
            r"more digits than the limit of 4,300; write it as text",
        ),
        ("d.jsonl", b'{"q": ' + b"[" * 300 + b"]" * 300 + b"}\n", r"nested too deeply, beyond 200 levels"),
        ("d.jsonl", b'{"q": ' * 100_000, r"nested too deeply"),
        ("d.json", b'[{"q": ' + b"9" * 10_000 + b"}]", r"item 1: a whole number has more digits"),
        ("d.json", b'[{"q": ' + b"[" * 100_000, r"item 1: the JSON is nested too deeply"),
        ("d.json", b'[{"a": 1}]\x00', r"d\.json:1:11: broken JSON: Extra data"),
        ("d.json", b'[{"a": 1} {"a": 2}]', r"d\.json:1:11: broken JSON: Expecting ',' or '\]'"),
        ("d.json", b'[{"a": 1}', r"d\.json:1:10: broken JSON"),
        ("d.jsonl", '{"q": 1}\n'.encode("utf-32"), r"UTF-32; convert it: iconv -f UTF-32"),
        ("d.jsonl", '{"q": 1}\n'.encode("utf-16-le"), r"UTF-16LE; convert it"),
        ("d.json", '[{"q": 1}]'.encode("utf-32-be"), r"UTF-32BE; convert it"),
        ("d.csv", b"q,a\n" + b"x,y\n" * 5 + b"x,\xff\n", r"d\.csv:7: byte 0xff at column 3"),
        ("d.csv", b"q,q\x1b[31m," * 6000 + b"\nx", r"names 12,001 columns, at most 10,000"),
        ("d.csv", b"\x1b[31m,\x1b[31m\n1,2\n", r"column '\\x1b\[31m' stands twice"),
        (
            "d.jsonl.gz",
            gzip.compress(b'{"q": 1}\n' * 99, mtime=0)[:12] + b"\xff" * 40,
            r"is damaged|cut short",
        ),
    ],
)
def test_odd_files_are_explained(tmp_path, name, content, says):
    with pytest.raises(DataError, match=says) as caught:  # noqa: PT012
        rows = text_of(name, content, tmp_path)
        raise DataError(f"{name}: " + " ".join(row for row in rows if isinstance(row, str)))
    assert "set_int_max_str_digits" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_what_is_no_file_is_said(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.jsonl"))
        for name in ("pipe.jsonl", "folder.jsonl", "a.jsonl", "socket.jsonl"):
            for source in (Source(str(tmp_path / name)), Source("json", data_files=[str(tmp_path / name)])):
                with pytest.raises(DataError, match=re.escape(name)):
                    list(source.rows())
        with pytest.raises(DataError, match="is a pipe, not a file"):
            list(read_file(tmp_path / "pipe.jsonl"))
    with pytest.raises(DataError, match="neither a file nor a folder"):
        list(Source("/dev/zero").rows())


def test_a_file_that_changes_while_read_is_no_data(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text('{"q": 1}\n' * 100_000)
    rows = read_file(file)
    next(rows)
    os.truncate(file, 450_000)
    with pytest.raises(DataError, match=r"changed while it was read, from 900,000 to 450,000 bytes"):
        list(rows)


@pytest.mark.parametrize(
    "data_files",
    [
        ["http://127.0.0.1:9/x.jsonl"],
        "http://127.0.0.1:9/x.jsonl",
        {"train": ["https://127.0.0.1:9/x.jsonl"]},
        "hf://datasets/a/b/x.jsonl",
        "s3://bucket/x.jsonl",
        "gopher://x/y",
        "http://[::1/x",
        ["file:///nowhere/x.jsonl"],
    ],
)
def test_addresses_that_lead_nowhere_are_explained(monkeypatch, data_files):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for kind in ("json", "jsonl"):
        with pytest.raises(DataError, match=r"cannot be fetched|there is no file"):
            list(Source(kind, data_files=data_files).rows())


def test_an_address_of_this_machine_is_a_path(tmp_path):
    file = tmp_path / "a b.jsonl"
    file.write_text('{"q": 1}\n')
    assert [row.values for row in Source("json", data_files=[file.as_uri()]).rows()] == [{"q": 1}]


def test_a_pattern_of_many_files_is_read(tmp_path):
    for number in range(1000):
        (tmp_path / f"{number:04}.jsonl").write_text(json.dumps({"n": number}))
    rows = Source("json", data_files=str(tmp_path / "*.jsonl")).rows()
    assert [row.values["n"] for row in rows] == list(range(1000))
