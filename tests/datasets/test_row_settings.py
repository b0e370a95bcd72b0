"""Settings that builders of datasets share: what Python, help() and a configuration see of them is one thing."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import tune.datasets
from tests.components import trusting
from tune.config.component_check import list_components
from tune.config.signatures import Signature, read_argument_help, read_doc, read_signature
from tune.config.slots import DATASET
from tune.errors import ConfigError

BUILDERS = sorted(path.rpartition(".")[2] for path in list_components(DATASET).values())


@pytest.mark.parametrize("name", BUILDERS)
def test_python_and_configs_see_the_same_arguments(name: str) -> None:
    lived = inspect.signature(getattr(tune.datasets, name)).parameters
    read = read_signature(f"tune.datasets.{name}")

    assert isinstance(read, Signature)
    assert not read.takes_any_keyword
    assert read.parameters.keys() == lived.keys()
    for argument, parameter in lived.items():
        assert read.parameters[argument].required == (parameter.default is parameter.empty), argument
        if parameter.default is not parameter.empty:
            assert ast.literal_eval(read.parameters[argument].default_text) == parameter.default, argument


@pytest.mark.parametrize("name", BUILDERS)
def test_every_shared_setting_is_explained(name: str) -> None:
    builder = getattr(tune.datasets, name)
    shared = set(inspect.signature(builder).parameters) - set(
        inspect.signature(inspect.unwrap(builder)).parameters
    )
    told = read_argument_help(inspect.getdoc(builder) or "", shared)

    assert {"limit", "on_bad_rows", "on_too_long"} <= shared
    assert "packed" in shared  # also where it can only be refused, with the reason
    assert told == read_argument_help(read_doc(f"tune.datasets.{name}"), shared)
    assert told.keys() == shared


def test_the_type_of_a_shared_setting_is_read() -> None:
    read = read_signature("tune.datasets.samsum_dataset")
    assert isinstance(read, Signature)
    types = {name: read.parameters[name].type.describe() for name in ("limit", "on_bad_rows", "on_too_long")}
    assert types == {
        "limit": "a whole number or null",
        "on_bad_rows": "one of error, drop",
        "on_too_long": "one of cut, drop, error, split",
    }


def test_keywords_of_other_kinds_stay_unchecked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's TypedDict says neither which keywords may be left out nor what they are then."""
    (tmp_path / "loose_pkg.py").write_text(
        "from typing import TypedDict, Unpack\n"
        "from nowhere import Far\n"
        "class Plain(TypedDict):\n    depth: int\n"
        "class Below(Far, total=False):\n    pass\n"
        "def plain(tokenizer, **rest: Unpack[Plain]): ...\n"
        "def below(tokenizer, **rest: Unpack[Below]): ...\n"
        "def gone(tokenizer, **rest: Unpack[Missing]): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    with trusting("loose_pkg"):
        for name in ("plain", "below", "gone"):
            read = read_signature(f"loose_pkg.{name}")
            assert isinstance(read, Signature)
            assert read.takes_any_keyword
            assert list(read.parameters) == ["tokenizer"]


def test_an_unknown_keyword_is_refused_as_python_does() -> None:
    with pytest.raises(TypeError, match=r"samsum_dataset\(\) got an unexpected keyword argument 'limits'"):
        tune.datasets.samsum_dataset(None, limits=3)  # type: ignore[arg-type, call-arg]


def test_two_names_for_the_same_part_of_wikitext() -> None:
    with pytest.raises(ConfigError, match="set subset"):
        tune.datasets.wikitext_dataset(None, name="wikitext-2-raw-v1")  # type: ignore[arg-type]
