"""Every way a YAML file can be wrong: one clear error at its place; a syntax error ends the reading."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest

from tune.config.nodes import MAX_DEPTH, plain_value
from tune.config.reading import clean, decode, read_file
from tune.config.yaml_tree import Document, read_document


def read(text: str) -> Document:
    return read_document(clean(text, "c.yaml"))


def faults(document: Document) -> list[tuple[str, int | None, int | None]]:
    return [(item.code, item.source.line, item.source.col) for item in document.problems]


@pytest.mark.parametrize(
    ("text", "code", "line", "col", "rest"),
    [
        ("", "empty-config", 1, 1, {}),
        ("# only a comment\n", "empty-config", 1, 1, {}),
        ("- a\n- b\n", "not-a-mapping", 1, 1, {}),
        ("just text", "not-a-mapping", 1, 1, {}),
        ("a: 1\nb: 2\na: 3\n", "duplicate-key", 3, 1, {"a": 1, "b": 2}),
        ("a: {b: 1, b: 2}\n", "duplicate-key", 1, 11, {"a": {"b": 1}}),
        ("a:\n\tb: 1\nc: 2\n", "tab", 2, 1, {}),
        ("a: 1\n\tb: 2\nc: 3\n", "tab", 2, 1, {}),
        ("a: 'open\nb: 2\nc: 3\n", "unclosed", 1, 4, {}),
        ('b: 2\na: "open\nc: 3\n', "unclosed", 2, 4, {}),
        ("b: 2\na: [1, 2\nc: 3\n", "unclosed", 2, 4, {}),
        ("b: 2\na: {x: 1\nc: 3\n", "unclosed", 2, 4, {}),
        ("a: 1\nbatch_size 4\nc: 3\n", "yaml-syntax", 2, 1, {}),
        ("a: 1\nlr:2e-5\nc: 3\n", "yaml-syntax", 2, 3, {}),
        ("lr:2e-5\nc: 3\n", "yaml-syntax", 1, 3, {}),
        ("a: b: c\nd: 1\n", "yaml-syntax", 1, 5, {}),
        ("a: @home\nd: 1\n", "yaml-syntax", 1, 4, {}),
        ('a: "\\d"\nd: 1\n', "yaml-syntax", 1, 5, {}),
        ("a: [1]]\nd: 1\n", "yaml-syntax", 1, 7, {}),
        ("a: 1\n---\nb: 2\n", "many-documents", 2, 1, {"a": 1}),
        ("a: !!python/object:os.system x\nb: 1\n", "yaml-tag", 1, 4, {"a": None, "b": 1}),
        ("a: !!python/object/apply:os.system [ls]\nb: 1\n", "yaml-tag", 1, 4, {"a": None, "b": 1}),
        ("a: !mine {x: 1}\nb: 1\n", "yaml-tag", 1, 4, {"a": None, "b": 1}),
        ("a: &x [*x]\nb: 1\n", "yaml-alias", 1, 8, {"a": [None], "b": 1}),
        ("a: *nowhere\nb: 1\n", "yaml-alias", 1, 4, {"a": None, "b": 1}),
        ("1: a\nb: 1\n", "bad-key", 1, 1, {"b": 1}),
        ("null: a\nb: 1\n", "bad-key", 1, 1, {"b": 1}),
        ("[a]: x\nb: 1\n", "bad-key", 1, 1, {"b": 1}),
        ("? {x: y}\n: z\nb: 1\n", "bad-key", 1, 3, {"b": 1}),
        ("a: {<<: 5}\nb: 1\n", "yaml-merge", 1, 9, {"a": {}, "b": 1}),
        ("a: x\x00y\nb: 1\n", "bad-encoding", 1, 5, {}),
    ],
)
def test_one_fault_is_one_error_at_its_place(
    text: str, code: str, line: int, col: int, rest: dict[str, object]
) -> None:
    document = read(text)
    assert faults(document) == [(code, line, col)]
    assert plain_value(document.root) == rest


def test_faults_of_the_tree_are_reported_in_one_reading() -> None:
    document = read("a: 1\nb: !!x 2\ne: 1\ne: 2\nf: *no\n5: 3\ng: 3\n")
    assert [(code, line) for code, line, _ in faults(document)] == [
        ("yaml-tag", 2),
        ("duplicate-key", 4),
        ("yaml-alias", 5),
        ("bad-key", 6),
    ]
    assert plain_value(document.root) == {"a": 1, "b": None, "e": 1, "f": None, "g": 3}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\n  b: 2\nc: 3\n", 2),
        ("m:\n  a: 1\n    b: 2\n  c: 3\nd: 4\n", 3),
        ("m:\n  a: 'x\n  b: 2\nd: 4\n", 2),
        ("m:\n  a: [1, 2\n  b: 2\nd: 4\n", 2),
        ("m:\n  - a: @x\n    b: 2\nd: 4\n", 2),
        ("m: {\n  a: 1\nd: 4\n", 1),
        ("m:\n  a: [\n    1,\n  b: 2\nd: 4\n", 2),
        ("m 1\n  a: 1\nd: 4\n", 1),
    ],
)
def test_a_syntax_error_is_the_only_one(text: str, line: int, ending: str) -> None:
    document = read(text.replace("\n", ending))
    assert [(item.source.line, item.severity) for item in document.problems] == [(line, "error")]
    assert not document.readable


@pytest.mark.parametrize(
    ("data", "line", "col"),
    [
        (b"a: 1\nb: \xe9\nc: 2\n", 2, 4),
        ("a: 1\n".encode("utf-16"), None, None),
        ("a: 1\nb: 2\n".encode("utf-16-le"), None, None),
        ("a: 1\nb: 2\n".encode("utf-32"), None, None),
        (b"\xff\xfe\xfa", None, None),
    ],
)
def test_encodings_other_than_utf8_are_one_error(data: bytes, line: int | None, col: int | None) -> None:
    document = read_document(decode(data, "c.yaml"))
    assert faults(document) == [("bad-encoding", line, col)]
    assert not document.readable


def test_a_byte_order_mark_is_no_fault() -> None:
    document = read_document(decode(b"\xef\xbb\xbfa: 1\r\nb: x\r\n", "c.yaml"))
    assert plain_value(document.root) == {"a": 1, "b": "x"}
    assert not document.problems


def test_aliases_and_merge_keys_are_resolved_with_their_places() -> None:
    document = read("x: &b {l: 1, m: 2}\ny:\n  <<: *b\n  m: 3\nz: *b\n")
    assert plain_value(document.root) == {"x": {"l": 1, "m": 2}, "y": {"m": 3, "l": 1}, "z": {"l": 1, "m": 2}}
    assert not document.problems


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (bomb(12), "config-too-large"),
        ("a: " + "[" * 10_000 + "]" * 10_000, "config-too-deep"),
        ("a: " + "[" * 300_000, "config-too-deep"),
        ("a: " + "{a: " * 10_000, "config-too-deep"),
        ("\n".join(" " * depth + "a:" for depth in range(1000)), "config-too-deep"),
        ("- " * 100_000, "config-too-deep"),
        ("a: [" + "x," * 400_000 + "]", "config-too-large"),
        ("a: &a " + "x" * 500_000 + "\nb: [" + "*a," * 50_000 + "]", "config-too-large"),
        ("a: [\n" * 100_000, "config-too-deep"),
        ("x" * (1 << 21), "config-too-large"),
        ("".join(f"k{n}: [\n" for n in range(100_000)), "config-too-deep"),
        ("a: " + "&a " * 100_000, "yaml-syntax"),
    ],
)
def test_bombs_are_refused_in_bounded_time_and_memory(text: str, code: str) -> None:
    tracemalloc.start()
    start = time.process_time()
    document = read(text)
    elapsed = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert code in {item.code for item in document.problems}
    assert len(document.problems) <= 3
    assert elapsed < 5  # under tracemalloc, on a busy machine; 0.3 s without
    assert peak < 100 * 2**20


def test_the_allowed_depth_is_allowed() -> None:
    depth = MAX_DEPTH - 1
    assert not read("a: " + "[" * depth + "]" * depth).problems


def test_tabs_in_many_lines_take_linear_time() -> None:
    start = time.process_time()
    document = read("\ta: 1\n" * 50_000)
    assert time.process_time() - start < 5
    assert document.problems[0].code == "tab"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert [item.code for item in read_file(tmp_path / "no.yaml").problems] == ["config-not-found"]
    assert [item.code for item in read_file(tmp_path).problems] == ["config-unreadable"]
    assert [item.code for item in read_file("/dev/zero").problems] == ["config-too-large"]
    assert [item.code for item in read_file("a\0b").problems] == ["config-unreadable"]
