"""`tune cache`: what is kept of tokenized data is listed and removed, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_cache_process import KEY, fill

from tune.cli.main import main
from tune.data.cache import DataCache


def test_it_lists_and_clears_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "kept"
    where = ["--dir", str(root)]
    assert main(["cache", "ls", *where]) == 0
    assert capsys.readouterr().out == f"0 data sets, 0 B of at most 50.0 GB, in {root}\n"
    store, _ = DataCache(root, 1).load(KEY, "apples \x1b[1m.jsonl", 700, fill)
    assert main(["cache", "ls", *where]) == 0
    out = capsys.readouterr().out
    assert "apples" in out
    assert "\x1b" not in out
    assert main(["cache", "clear", "--json", *where]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["version"], content["dir"], content["removed"]) == (1, str(root), [])
    assert [(e["key"], e["num_examples"], e["in_use"]) for e in content["entries"]] == [(KEY, 2, True)]
    del store
    assert main(["cache", "clear", *where]) == 0
    assert "removed 1 data sets" in capsys.readouterr().out
    assert [path.name for path in root.iterdir()] == ["CACHEDIR.TAG"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["cache"], "ls|clear"),
        (["cache", "purge"], "can ls and clear, not purge"),
        (["cache", "ls", "--dir", "off"], "nothing is kept with --dir off"),
    ],
)
def test_what_it_does_not_know(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err
