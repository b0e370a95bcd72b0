"""Reading local files: right rows, and faults named with file and line."""

from __future__ import annotations

import gzip
import json
import re

import pyarrow
import pytest
from pyarrow import parquet

from tune.data.rows import read_file, read_unmade
from tune.errors import DataError


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        file = tmp_path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return write


def values(file, **options):
    rows = list(read_file(file, **options))
    assert not any(row.problem for row in rows)
    return [row.values for row in rows]


ROWS = [{"q": 'naïve, "quoted"\nline', "a": "日本"}, {"q": "x", "a": ""}]


def parquet_of(rows, file):

    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


CSV = 'q,a\n"naïve, ""quoted""\nline",日本\nx,\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", "\n".join(json.dumps(row) for row in ROWS)),
        ("crlf.jsonl", "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\r\n"),
        ("bom.jsonl", "\ufeff" + "\n".join(json.dumps(row) for row in ROWS)),
        ("d.json", json.dumps(ROWS, indent=2)),
        ("bom.json", "\ufeff" + json.dumps(ROWS)),
        ("lines.json", "\n".join(json.dumps(row) for row in ROWS)),
        ("d.csv", CSV),
        ("bom.csv", "\ufeff" + CSV),
        ("d.tsv", 'q\ta\n"naïve, ""quoted""\nline"\t日本\nx\t\n'),
        ("semicolons.csv", 'q;a\n"naïve, ""quoted""\nline";日本\nx;\n'),
    ],
)
def test_the_same_rows_from_every_kind_of_file(write, name, content):
    assert values(write(name, content)) == ROWS
    assert values(write(name + ".gz", gzip.compress(content.encode()))) == ROWS


def test_parquet(tmp_path):
    assert values(parquet_of(ROWS, tmp_path / "d.parquet")) == ROWS


def test_rows_inside_of_an_object_are_found_by_their_field(write):
    file = write("d.json", json.dumps({"version": 1, "data": {"rows": ROWS}}))
    assert values(file, json_field="data.rows") == ROWS
    with pytest.raises(DataError, match=r"no field 'data.row': 'row' is not among rows"):
        values(file, json_field="data.row")
    with pytest.raises(DataError, match=r"dataset\.field=data"):
        values(write("e.json", json.dumps({"data": ROWS, "n": 1})))


def test_a_single_object_is_one_row(write):
    assert values(write("one.json", json.dumps(ROWS[0], indent=1))) == ROWS[:1]


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("document", [("", "one\ntwo\n\n\nthree\n")]),
        ("paragraph", [(":1-2", "one\ntwo"), (":5", "three")]),
        ("line", [(":1", "one"), (":2", "two"), (":5", "three")]),
    ],
)
def test_text_files(write, unit, expected):
    file = write("t.txt", "one\r\ntwo\r\n\r\n\r\nthree\r\n")
    rows = [
        (row.place.removeprefix(str(file)), row.values["text"]) for row in read_file(file, text_unit=unit)
    ]
    assert rows == expected


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"q": "cut off', "broken JSON at column 7"),
        (b'{"q": 1,}', "broken JSON at column"),
        (b"{'q': 1}", r"column 2.*near \"\{'q': 1\}\""),
        (b"[1, 2]", "a list of 2, expected an object"),
        (b'"text"', "the text 'text', expected an object"),
        (b"null", "null, expected an object"),
        (b'{"q": "caf\xe9"}', r"byte 0xe9 at column 11 is not UTF-8 .*'\\xe9'.*iconv"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"q": ' + b"9" * 5000 + b"}", "limit"),
        (b"\x00\x00", "broken JSON at column 1"),
    ],
)
def test_a_faulty_line_has_its_number_and_the_others_are_read(write, line, says):
    file = write("d.jsonl", b'{"q": "first"}\n\n' + line + b'\n{"q": "last"}\n')
    rows = list(read_file(file))
    assert [row.values for row in rows if not row.problem] == [{"q": "first"}, {"q": "last"}]
    assert rows[1].place == f"{file}:3"
    assert re.search(says, rows[1].problem), rows[1].problem


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("d.jsonl", b"", r"d\.jsonl is empty"),
        ("d.jsonl", b"\n \n", "only blank lines"),
        ("d.jsonl", b"\xef\xbb\xbf", "only blank lines"),
        ("d.jsonl", "{}".encode("utf-16"), "UTF-16.*iconv"),
        ("d.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("d.json", b"", "is empty"),
        ("d.json", b"  \n", "only blank lines"),
        ("d.json", b'[{"a": 1},\n {"a": }]', r"d\.json:2:8: broken JSON"),
        ("d.json", b'[{"a": "\xe9"}]', r"0xe9 at column 9"),
        ("d.json", b"[" * 100_000, "nested too deeply"),
        ("d.json", b"[]", "empty list"),
        ("d.json", b"7", "the number 7, expected a list"),
        ("d.csv", b"", "is empty"),
        ("d.csv", b"q,a\n", "a header .q, a. but no rows"),
        ("d.csv", b"\nq,a\n", "first line must name the columns"),
        ("d.csv", b"q,q\n1,2\n", r"column 'q' stands twice"),
        ("d.csv", b"q,a\nx,caf\xe9\n", r"d\.csv:2: byte 0xe9 at column 6"),
        ("d.csv", b'q,a\nx,"open\n\nmore', "broken CSV.*quotes"),
        ("d.parquet", b"not parquet at all", "cannot be read as parquet"),
        ("d.txt", b" \n", "only blank lines"),
        ("d.txt", b"\xff\xfeh\x00", "UTF-16"),
        ("d.jsonl.gz", b"{}", "not compressed with gzip"),
        ("d.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 50, mtime=0)[:-12], "cut short"),
        ("d.xlsx", b"x", "unknown kind of data file"),
    ],
)
def test_a_faulty_file_is_explained(write, name, content, says):
    with pytest.raises(DataError, match=says):
        list(read_file(write(name, content)))


def test_a_csv_row_of_another_length_has_its_line(write):
    file = write("d.csv", 'q,a\n"two\nlines",x\n\nonly one\n1,2,3\nq,a\n')
    rows = list(read_file(file))
    assert [(row.place, bool(row.problem)) for row in rows] == [
        (f"{file}:2", False),
        (f"{file}:5", True),
        (f"{file}:6", True),
        (f"{file}:7", False),
    ]
    assert rows[1].problem == "has 1 cells, the header has 2 (q, a)"


def test_a_long_cell_is_read(write):
    text = "x" * 300_000
    assert values(write("d.csv", f"q,a\n{text},y\n"))[0]["q"] == text


def test_a_parquet_file_without_rows(tmp_path):

    parquet.write_table(pyarrow.table({"q": pyarrow.array([], pyarrow.string())}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"0 rows \(columns: q\)"):
        list(read_file(tmp_path / "d.parquet"))


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b'q,a\rx,y\r"m\rn",o\r', [("x", "y"), ("m\rn", "o")]),  # as old systems end lines
        (b"q,a\nfirst\rsecond,x\nwalk,green\n", [("first\rsecond", "x"), ("walk", "green")]),
        (b'q,a\r\nwalk,green\rx,y\r\n"a\rb",c\r\n', [("walk", "green"), ("x", "y"), ("a\rb", "c")]),
        (b"q,a\nx,y\rz\n", [("x", "y\rz")]),
        (b"q,a\r\r\nx,y\r\r\n", [("x", "y")]),
    ],
)
def test_carriage_returns_by_themselves_in_csv(tmp_path, content, rows):
    file = tmp_path / "d.csv"
    file.write_bytes(content)
    assert [tuple(row.values.values()) for row in read_file(file)] == rows


@pytest.mark.parametrize("blank", [b"", b"  \n", b"\n\n", b"\xef\xbb\xbf\n", b"\r\n"])
def test_rows_from_any_one_on_are_the_last_ones(tmp_path, blank, monkeypatch):
    monkeypatch.setattr("tune.data.files.MIB", 64)
    lines = [json.dumps({"n": number, "x": "y" * (number * 7 % 90)}).encode() + b"\n" for number in range(40)]
    files = {
        "a.jsonl": b"".join([*lines[:25], blank, *lines[25:]]),
        "b.jsonl": blank + b"".join(lines).rstrip(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "c.csv").write_text("n,m\n" + "".join(f"{number},{number % 3}\n" for number in range(40)))
    table = pyarrow.Table.from_pylist([{"n": number} for number in range(40)])
    parquet.write_table(table, tmp_path / "d.parquet", row_group_size=7)
    for name in ("a.jsonl", "b.jsonl", "c.csv", "d.parquet"):
        whole = list(read_file(tmp_path / name))
        assert len(whole) == 40
        for start in (0, 1, 6, 7, 24, 25, 26, 39, 40):
            assert [make() for make in read_unmade(tmp_path / name, start=start)] == whole[start:]
