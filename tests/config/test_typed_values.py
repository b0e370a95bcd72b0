"""The type of the place decides what a lexeme means."""

from __future__ import annotations

import ast
from typing import Any, Literal

import pytest

from tune.config import resolve
from tune.config.convert import Converter
from tune.config.diagnostics import Diagnostic, Source
from tune.config.nodes import PythonValue, Scalar, core_value
from tune.config.scalars import REFUSED
from tune.config.typing import TypeSpec
from tune.config.yaml_tree import read_flow
from tune.recipes.params.full_finetune import FullFinetuneParams

HERE = Source("cli", arg="x", col=1)


def convert(text: str, hint: Any, *, style: str = "plain") -> tuple[Any, list[Diagnostic]]:
    problems: list[Diagnostic] = []
    converter = Converter(problems.append, lambda node, path, slot: node)
    node = Scalar(HERE, text, style) if style != "flow" else read_flow(text, HERE)[0]
    assert node is not None
    return converter.convert(node, TypeSpec.from_hint(hint), "x"), problems


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("2e-5", float, 2e-5),
        ("1.e-4", float, 1e-4),
        (".5", float, 0.5),
        ("3", float, 3.0),
        ("-7", int, -7),
        ("0x1F", int, 31),
        ("0o17", int, 15),
        ("True", bool, True),
        ("false", bool, False),
        ("no", str, "no"),
        ("010", str, "010"),
        ("2024-01-01", str, "2024-01-01"),
        ("true", str, "true"),
        ("1.0", str, "1.0"),
        ("null", str | None, None),
        ("~", int | None, None),
        ("", int | None, None),
        ("5", int | None, 5),
        ("bf16", Literal["bf16", "fp32"], "bf16"),
        ("2", Literal[1, 2], 2),
        ("3", int | str, 3),
        ("three", int | str, "three"),
        ("3", int | float, 3),
        ("3.5", int | float, 3.5),
        ("maybe", Any, "maybe"),
        ("0o10", Any, 8),
        ("1e3", Any, 1000.0),
        ("TRUE", Any, True),
        ("~", Any, None),
    ],
)
def test_plain_scalars(text: str, hint: Any, value: Any) -> None:
    found, problems = convert(text, hint)
    assert (found, type(found), problems) == (value, type(value), [])


@pytest.mark.parametrize(
    ("text", "hint", "code", "suggestion"),
    [
        ("two", int, "wrong-type", None),
        ("1.0", int, "wrong-type", "1"),
        ("1e3", int, "wrong-type", "1000"),
        ("010", int, "wrong-type", "10"),
        ("-007", int, "wrong-type", "-7"),
        ("010", float, "wrong-type", "10"),
        ("1_000", int, "wrong-type", "1000"),
        ("1,000", int, "wrong-type", "1000"),
        ("1_000.5", float, "wrong-type", None),
        ("0,5", float, "wrong-type", "0.5"),
        ("50%", float, "wrong-type", None),
        ("true", int, "wrong-type", None),
        ("true", float, "wrong-type", None),
        ("1", bool, "wrong-type", "true"),
        ("yes", bool, "wrong-type", "true"),
        ("off", bool, "wrong-type", "false"),
        (".inf", float, "wrong-type", None),
        (".nan", float, "wrong-type", None),
        ("nan", float, "wrong-type", None),
        ("1e999", float, "wrong-type", None),
        ("9" * 5000, int, "wrong-type", None),
        ("1" + "0" * 350, float, "wrong-type", None),
        ("1e-5x", float, "wrong-type", None),
        ("null", int, "null-not-allowed", None),
        ("null", str, "null-not-allowed", '"null"'),
        ("", int, "null-not-allowed", None),
        ("bfloat16", Literal["bf16", "fp32"], "not-a-choice", "bf16"),
        ("BF16", Literal["bf16", "fp32"], "not-a-choice", "bf16"),
        ("a", list[str], "wrong-type", "[a]"),
        ("a, b", list[str], "wrong-type", "[a, b]"),
        ("x", dict[str, Any], "wrong-type", None),
    ],
)
def test_what_does_not_fit_is_refused_with_a_fix(
    text: str, hint: Any, code: str, suggestion: str | None
) -> None:
    found, problems = convert(text, hint)
    assert found is REFUSED
    assert [(item.code, item.suggestion) for item in problems] == [(code, suggestion)]


def test_quotes_make_text() -> None:
    assert convert("2", str, style="quoted") == ("2", [])
    assert convert("null", str | None, style="quoted") == ("null", [])
    found, (problem,) = convert("2", int, style="quoted")
    assert found is REFUSED
    assert problem.suggestion == "2"
    assert "quotes" in problem.message


def test_verbatim_text_of_the_command_line() -> None:
    assert convert("~", str, style="verbatim") == ("~", [])
    assert convert("", str, style="verbatim") == ("", [])
    assert convert(" 2e-5 ", float, style="verbatim") == (2e-5, [])
    assert convert(" x ", str, style="verbatim") == (" x ", [])
    assert convert("", int | None, style="verbatim") == (None, [])
    assert convert("null", str | None, style="verbatim") == (None, [])
    assert convert("null", str, style="verbatim")[0] is REFUSED


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("[1, 2]", list[int], [1, 2]),
        ("[0.9, 1]", tuple[float, float], (0.9, 1.0)),
        ("[1, 2, 3]", tuple[int, ...], (1, 2, 3)),
        ("{a: yess, b: 2}", dict[str, Any], {"a": "yess", "b": 2}),
        ("[a]", str | list[str], ["a"]),
        ("{a: 1.5}", dict[str, float], {"a": 1.5}),
    ],
)
def test_collections(text: str, hint: Any, value: Any) -> None:
    assert convert(text, hint, style="flow") == (value, [])


def test_every_wrong_item_is_reported_with_its_path() -> None:
    found, problems = convert("[1, x, 2, 3.5]", list[int], style="flow")
    assert found is REFUSED
    assert [item.path for item in problems] == ["x.1", "x.3"]
    assert convert("[0.9]", tuple[float, float], style="flow")[0] is REFUSED


def test_python_values_keep_their_types() -> None:
    problems: list[Diagnostic] = []
    converter = Converter(problems.append, lambda node, path, slot: node)

    def check(value: Any, hint: Any) -> Any:
        return converter.convert(PythonValue(HERE, value), TypeSpec.from_hint(hint), "x")

    assert check(1, float) == 1.0
    assert check(3, int) == 3
    for value, hint in ((True, int), (True, float), (1, bool), ("2", int), (1.0, int), (5, str), (None, int)):
        assert check(value, hint) is REFUSED
    assert check(float("nan"), float) is REFUSED
    assert len(problems) == 8


@pytest.mark.parametrize(
    ("annotation", "short"),
    [
        ("Optional[float]", "Optional[float]"),
        ("float | Tensor", "float"),
        ("Union[float, torch.Tensor]", "float"),
        ("tuple[Union[float, Tensor], Union[float, Tensor]]", "tuple[float, float]"),
        ("'int | None'", "Optional[int]"),
        ("Literal['a', None]", "Optional[a]"),
        ("list[str]", "list[str]"),
        ("Sequence[int]", "list[int]"),
        ("SomeAlias", "any"),
        ("float | SomeAlias", "any"),
        ("Callable[[int], str]", "any"),
        ("os.PathLike", "path"),
        ("str | Path", "str"),
        ("Optional[Tensor]", "Optional[Tensor]"),
    ],
)
def test_annotations_read_without_evaluating(annotation: str, short: str) -> None:
    node = ast.parse(annotation, mode="eval").body
    assert TypeSpec.from_annotation_ast(node).short() == short


def test_core_types() -> None:
    for text, value in {"010": 10, "0o10": 8, "no": "no", "1_0": "1_0", "2e-5": 2e-5, "1:30": "1:30"}.items():
        assert core_value(text) == value
        assert type(core_value(text)) is type(value)


def test_numbered_checkpoint_files_are_written_out() -> None:
    text = "{filename_format: 'model-{}-of-{}.safetensors', max_filename: %s}"
    for last in ("00003", '"00003"'):
        value, problems = convert(text % last, list[str] | None, style="flow")
        assert not problems
        assert value == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    for bad in (text % "0", text % "many", text % "999999999", "{filename_format: 'm-{}', max_filename: 3}"):
        value, problems = convert(bad, list[str] | None, style="flow")
        assert value is REFUSED
        assert [problem.code for problem in problems] == ["wrong-type"]


@pytest.mark.parametrize(
    ("word", "value", "meant"),
    [
        ("no", "no", "false"),
        ("Off", "Off", "false"),
        ("yes", "yes", "true"),
        ("ON", "ON", "true"),
        ("false", False, None),
        ("'no'", "no", None),
        ("1", 1, None),
    ],
)
@pytest.mark.parametrize("on_command_line", [False, True])
def test_yes_and_no_without_a_type_are_text_with_a_warning(word, value, meant, on_command_line):
    """A template that reads the text "no" takes it for true, so nobody must believe that it is false."""
    head = "output_dir: o\nmodel_checkpoint: m\nlr: 1e-3\n"
    dataset = "{_component_: chat, source: x, chat_template_kwargs: {thinking: WORD}}"
    named = "dataset.chat_template_kwargs.thinking"
    if on_command_line:
        text = head + f"dataset: {dataset.replace('WORD', '3')}\n"
        resolution = resolve(FullFinetuneParams, text=text, overrides=[f"{named}={word}"])
    else:
        resolution = resolve(FullFinetuneParams, text=head + f"dataset: {dataset.replace('WORD', word)}\n")
    assert resolution.params.dataset.kwargs["chat_template_kwargs"] == {"thinking": value}
    warned = [(item.code, item.path, item.suggestion) for item in resolution.warnings]
    assert warned == ([] if meant is None else [("yes-is-text", named, meant)])
