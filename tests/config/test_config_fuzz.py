"""No input whatsoever ends in anything but a result or clean diagnostics."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tune.config import TuneArgumentParser, resolve
from tune.config.dump import scalar
from tune.config.params import fields_of, param
from tune.config.resolve import Resolution
from tune.recipes.params.full_finetune import FullFinetuneParams

EXAMPLES = int(os.environ.get("TUNE_FUZZ_EXAMPLES", "120"))
QUICK = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))

NAMES = [
    *fields_of(FullFinetuneParams),
    *("recipe", "_component_", "optimizer.lr", "<<", "foo", "1", "null", ""),
]
VALUES = [
    *("1", "-1", "0.5", "1e999", "nan", ".inf", "null", "~", "true", "yes", "010", "1_000", "9" * 500),
    *(
        "''",
        '"',
        "'",
        "[",
        "]",
        "{",
        "}",
        "[1, [2]]",
        "{a: 1}",
        "{}",
        "[]",
        ",",
        "|",
        ">",
        "- a",
        "? b",
        "a: b",
    ),
    *(
        "{_component_: AdamW}",
        "AdamW",
        "alpaca",
        "os.system",
        "torch.hub.load",
        "torch.optim.AdamW",
        "llama2_7b",
    ),
    *("${lr}", "${", "${a.b}", "$", "\\${x}", "*a", "&a x", "!!python/name:os.system", "!t", "# c"),
    *("\t", "\x00", "é", "\u2028", "\ud800", "cuda:0", "bundled:x", "%", "@", "`"),
]
INDENTS = ["", "  ", "    ", "\t", "- ", "  - "]

lines = st.builds(
    lambda indent, name, colon, value: f"{indent}{name}{colon}{value}",
    st.sampled_from(INDENTS),
    st.sampled_from(NAMES),
    st.sampled_from([": ", ":", " : ", " ", "=", ": - "]),
    st.sampled_from(VALUES),
)
configs = st.lists(lines, max_size=12).map("\n".join)
overrides = st.lists(
    st.one_of(
        st.builds(lambda n, v: f"{n}={v}", st.sampled_from(NAMES), st.sampled_from(VALUES)),
        st.builds(
            lambda n, s, v: f"{n}.{s}={v}",
            st.sampled_from(NAMES),
            st.sampled_from(NAMES),
            st.sampled_from(VALUES),
        ),
        st.builds(lambda n: f"~{n}", st.sampled_from(NAMES)),
        st.text(max_size=20),
    ),
    max_size=6,
)


words = [
    "--config",
    "--override",
    "--remove",
    "--dry-run",
    "--",
    "-",
    "--help=",
    "~",
    "a=1",
    "lr=x",
    "--lr",
    "c.yaml",
]
command_lines = st.lists(st.one_of(st.text(max_size=15), st.sampled_from(words)), max_size=6)


def judge(resolution: Resolution[FullFinetuneParams]) -> None:
    """What holds for every resolution."""
    assert resolution.ok == (resolution.params is not None)
    json.dumps(resolution.to_json()).encode("utf-8")
    text = resolution.report()
    text.encode("utf-8")
    assert "\x00" not in text
    for item in [*resolution.errors, *resolution.warnings]:
        assert item.code
        assert item.message
        assert "REFUSED" not in item.message
        if item.source.kind == "file":
            assert item.source.file == "c.yaml"
    if resolution.params is not None:
        again = resolve(FullFinetuneParams, text=resolution.dump())
        assert again.params == resolution.params, again.report()


@QUICK
@given(text=configs, arguments=overrides)
def test_yaml_like_text_and_overrides(text: str, arguments: list[str]) -> None:
    judge(resolve(FullFinetuneParams, text=text, overrides=arguments, name="c.yaml"))


@QUICK
@given(line=lines, arguments=overrides)
def test_a_good_config_with_one_odd_line(line: str, arguments: list[str]) -> None:
    good = "output_dir: out\nmodel_checkpoint: ck\ndataset: alpaca\nlr: 1e-4\n"
    judge(resolve(FullFinetuneParams, text=good + line, overrides=arguments, name="c.yaml"))


@QUICK
@given(text=st.text(max_size=200))
def test_any_text(text: str) -> None:
    judge(resolve(FullFinetuneParams, text=text, name="c.yaml"))


@QUICK
@given(data=st.binary(max_size=200))
def test_any_bytes_in_a_file(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = Path(tmp_path_factory.getbasetemp()) / "fuzz.yaml"
    file.write_bytes(data)
    resolution = resolve(FullFinetuneParams, config=file)
    assert resolution.errors
    assert resolution.report()


@QUICK
@given(arguments=command_lines)
def test_any_command_line_ends_with_code_0_or_2(arguments: list[str]) -> None:
    for call in (
        TuneArgumentParser(params=FullFinetuneParams).parse_params,
        TuneArgumentParser().parse_known_args,
    ):
        try:
            call(arguments)
        except SystemExit as end:
            code = end.code
        else:
            code = 0
        assert code in (0, 2)


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(min_size=1, max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@QUICK
@given(value=st.dictionaries(st.text(min_size=1, max_size=8), plain, min_size=1, max_size=5))
def test_what_a_dump_writes_reads_back(value: dict[str, object]) -> None:
    @dataclass(frozen=True)
    class Holder:
        extra: dict[str, Any] = param({}, help="Anything.")

    if any("\ud800" <= mark <= "\udfff" for mark in json.dumps(value, ensure_ascii=False)):
        return  # no file in UTF-8 can hold those
    resolution = resolve(Holder, text=f"extra: {scalar(value)}\n")
    if resolution.params is None:
        codes = {item.code for item in resolution.errors}
        assert codes <= {"wrong-type", "unknown-component"}, (
            resolution.report()
        )  # NUL, or a "_component_" by chance
        return
    assert resolution.params.extra == value
    again = resolve(Holder, text=resolution.dump())
    assert again.params == resolution.params, again.report()
