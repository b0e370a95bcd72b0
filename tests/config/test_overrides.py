"""Overrides: what they may say, what they do to a tree, and what is refused."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

import pytest

from tune.config import resolve
from tune.config.component import Component
from tune.config.nodes import plain_value
from tune.config.overrides import is_override, parse_overrides
from tune.config.params import param
from tune.config.resolve import Resolution
from tune.config.slots import LR_SCHEDULER, OPTIMIZER

FILE = """\
text: from file
items: [a, b, c]
table: {x: 1, y: {z: 2}}
optimizer: {_component_: AdamW, lr: 1e-3, fused: true}
"""


@dataclass(frozen=True)
class Params:
    text: str = param("", help="Text.")
    items: list[str] | None = param(None, help="Items.")
    table: dict[str, Any] = param({}, help="Table.")
    optimizer: Component = param("SGD", slot=OPTIMIZER, help="Optimizer.")
    lr: float | None = param(None, short_for="optimizer.lr", help="Rate.")
    lr_scheduler: Component | None = param(None, slot=LR_SCHEDULER, help="Schedule.")


def run(*overrides: str, text: str = FILE, removals: tuple[str, ...] = ()) -> Resolution[Params]:
    return resolve(Params, text=text, overrides=overrides, removals=removals)


def good(*overrides: str, text: str = FILE, removals: tuple[str, ...] = ()) -> Params:
    resolution = run(*overrides, text=text, removals=removals)
    assert resolution.params is not None, resolution.report()
    return resolution.params


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("text=a=b=c", "a=b=c"),
        ("text=", ""),
        ("text= spaced ", " spaced "),
        ("text=# no comment: here", "# no comment: here"),
        ("text=no", "no"),
        ("text=1e-3", "1e-3"),
        ("text='quoted'", "quoted"),
        ('text="tab\\t"', "tab\t"),
        ("text=~/models", "~/models"),
        ("text=*x &y !z", "*x &y !z"),
    ],
)
def test_text_is_verbatim_unless_it_starts_like_yaml(argument: str, value: str) -> None:
    assert good(argument).text == value


def test_paths_reach_into_mappings_lists_and_components() -> None:
    assert good("items.1=B").items == ["a", "B", "c"]
    assert good("items=[x, 'y, z']").items == ["x", "y, z"]
    assert good("table.y.z=3", "table.new.deep=no").table == {"x": 1, "y": {"z": 3}, "new": {"deep": "no"}}
    assert good("optimizer.lr=2e-3").optimizer == Component(
        "tune.modules.optim.AdamW", {"lr": 2e-3, "fused": True}
    )
    assert good("optimizer.lr=2e-3", text="text: x\n").optimizer == Component("torch.optim.SGD", {"lr": 2e-3})
    assert good("optimizer.momentum=0.5", text="optimizer: SGD\n").optimizer.kwargs == {"momentum": 0.5}


def test_replacing_a_component_says_what_it_drops() -> None:
    resolution = run("optimizer=SGD")
    assert resolution.params is not None
    assert resolution.params.optimizer == Component("torch.optim.SGD")
    (warning,) = resolution.warnings
    assert warning.code == "dropped-arguments"
    assert "lr, fused" in warning.message
    assert warning.suggestion == "optimizer._component_=SGD"
    kept = run("optimizer._component_=torch.optim.Adam")
    assert kept.params is not None
    assert kept.params.optimizer == Component("torch.optim.Adam", {"lr": 1e-3, "fused": True})
    assert not kept.warnings
    # null keeps nothing, so nothing of the kind is offered
    (warning,) = run(
        "lr_scheduler=null", text="lr_scheduler: {_component_: cosine, num_warmup_steps: 1}\n"
    ).warnings
    assert (warning.code, warning.suggestion) == ("dropped-arguments", None)
    # nothing is lost where everything is given anew
    assert not run("optimizer={_component_: Adam, lr: 1, fused: false}").warnings


def test_the_order_of_component_and_arguments_does_not_matter() -> None:
    expected = Component("torch.optim.SGD", {"lr": 0.5})
    assert good("optimizer.lr=0.5", "optimizer=SGD").optimizer == expected
    assert good("optimizer=SGD", "optimizer.lr=0.5").optimizer == expected


def test_the_last_of_two_counts_and_says_so() -> None:
    resolution = run("text=one", "text=two")
    assert resolution.params is not None
    assert resolution.params.text == "two"
    assert [(item.code, item.source.arg) for item in resolution.warnings] == [
        ("repeated-override", "text=one")
    ]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("text", "overrides", "kwargs", "said"),
    [
        # as torchtune's pages have it: what goes was in the file
        (FILE, ("optimizer=SGD", "~optimizer.fused"), {}, ["dropped-arguments"]),
        (FILE, ("optimizer=SGD", "~optimizer.fused", "optimizer.lr=2"), {"lr": 2.0}, ["dropped-arguments"]),
        (FILE, ("optimizer=SGD", "~optimizer.fused", "~optimizer.lr"), {}, []),
        (FILE, ("optimizer._component_=SGD", "~optimizer.fused"), {"lr": 1e-3}, []),
        # it was there all the same: at the default of the component that is replaced
        (FILE, ("optimizer=SGD", "~optimizer.foreach"), {}, ["dropped-arguments", "nothing-to-remove"]),
        ("optimizer: AdamW\nlr: 0.1\n", ("optimizer=SGD", "~optimizer.foreach"), None, ["nothing-to-remove"]),
        ("optimizer: AdamW\nlr: 0.1\n", ("optimizer=SGD", "~optimizer.lr"), {}, []),
        ("text: x\n", ("optimizer=AdamW", "~optimizer.momentum"), {}, ["nothing-to-remove"]),
        ("text: x\n", ("optimizer=Adam", "~optimizer.foreach", "lr=2"), {"lr": 2.0}, ["nothing-to-remove"]),
        (FILE, ("~optimizer.fused", "~optimizer.fused"), {"lr": 1e-3}, ["repeated-override"]),
    ],
)
def test_an_argument_is_removed_beside_its_component(
    text: str, overrides: tuple[str, ...], kwargs: dict[str, Any] | None, said: list[str], backwards: bool
) -> None:
    resolution = run(*(overrides[::-1] if backwards else overrides), text=text)
    assert resolution.params is not None, resolution.report()
    assert resolution.params.optimizer.kwargs == ({"lr": 0.1} if kwargs is None else kwargs)
    assert sorted(item.code for item in resolution.warnings) == said


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("text", "overrides", "suggestion"),
    [
        (FILE, ("optimizer=SGD", "~optimizer.fusedd"), "~optimizer.fused"),
        (FILE, ("optimizer=SGD", "~optimizer.nothing"), None),
        # nothing is replaced, so a default stays a default
        (FILE, ("optimizer._component_=SGD", "~optimizer.foreach"), None),
        (FILE, ("optimizer.lr=1", "~optimizer.foreach"), None),
        # momentum is of the new one, and was never there
        (FILE, ("optimizer=SGD", "~optimizer.momentum"), None),
        (FILE.replace("AdamW", "nobody.knows"), ("optimizer=SGD", "~optimizer.foreach"), None),
    ],
)
def test_what_never_was_cannot_be_removed(
    text: str, overrides: tuple[str, ...], suggestion: str | None, backwards: bool
) -> None:
    resolution = run(*(overrides[::-1] if backwards else overrides), text=text)
    assert [(item.code, item.suggestion) for item in resolution.errors] == [("nothing-to-remove", suggestion)]


def test_list_items_are_counted_as_the_file_has_them() -> None:
    resolution = run("~items.0", "~items.0")
    assert resolution.params is not None
    assert resolution.params.items == ["b", "c"]
    assert [item.code for item in resolution.warnings] == ["repeated-override"]


def test_removals() -> None:
    assert good("~table.y").table == {"x": 1}
    assert good(removals=("items.1",)).items == ["a", "c"]
    assert good("~items.0", "~items.1").items == ["c"]
    assert good("~items").items is None
    assert good("~optimizer.fused").optimizer.kwargs == {"lr": 1e-3}
    assert good("~lr").optimizer.kwargs == {"fused": True}
    assert good("~optimizer.lr", text="lr: 0.1\n").optimizer.kwargs == {}
    assert good("~table.x", "table.x=5").table == {"y": {"z": 2}, "x": 5}


@pytest.mark.parametrize(
    ("argument", "code", "suggestion"),
    [
        ("text", "override-without-value", None),
        ("text value", "override-without-value", "text=value"),
        ("text: value", "override-without-value", "text=value"),
        ("--text", "override-without-value", None),
        ("--text=x", "bad-override", "text=x"),
        ("+text=x", "bad-override", "text=x"),
        ("++text=x", "bad-override", "text=x"),
        ("text =x", "bad-override", "text=x"),
        ("=x", "bad-override", None),
        ("a..b=x", "bad-override", None),
        (".a=x", "bad-override", None),
        ("items[0]=x", "bad-override", "items.0=x"),
        ("table['x']=5", "bad-override", "table.x=5"),
        ("text=[a", "bad-override", "text='[a'"),
        ("text='it", "bad-override", "text='''it'"),
        ("text=[INST] hi", "bad-override", "text='[INST] hi'"),
        ("table={a: !!python/name:os.system }", "bad-override", "table='{a: !!python/name:os.system }'"),
        ("table=" + "[" * 99, "bad-override", "table='" + "[" * 99 + "'"),
        ("table=" + "[" * 9999, "bad-override", None),  # as long as the argument: nobody would copy it
        (".".join("a" * 100) + "=1", "bad-override", None),
        ("text=\udce9", "bad-encoding", None),
        ("~text=1", "bad-override", "~text"),
        ("~", "bad-override", None),
        ("~nothing", "nothing-to-remove", None),
        ("~textt", "nothing-to-remove", "~text"),
        ("~items.3", "nothing-to-remove", None),
        ("~lr_scheduler", "nothing-to-remove", None),
        ("items.3=x", "no-such-place", None),
        ("items.x=x", "no-such-place", None),
        ("items.-1=x", "no-such-place", None),
        ("text.sub=x", "no-such-place", None),
        ("lr_scheduler.num_cycles=1", "no-component", None),
        ("texte=x", "unknown-key", "text"),
        ("optimizer.lrr=1", "unknown-argument", "lr"),
        ("optimizer={lr: 1}", "missing-component-name", "_component_: SGD"),
    ],
)
def test_what_is_refused(argument: str, code: str, suggestion: str | None) -> None:
    resolution = run(argument)
    assert [(item.code, item.suggestion) for item in resolution.errors] == [(code, suggestion)]
    assert resolution.errors[0].source.kind == "cli"
    assert resolution.report().isprintable() or "\n" in resolution.report()
    resolution.report().encode("utf-8")


def test_an_alias_is_not_changed_through_another_place() -> None:
    params = good("table.a.n=2", text="table: {a: &x {n: 1}, b: *x}\n")
    assert params.table == {"a": {"n": 2}, "b": {"n": 1}}


def test_what_counts_as_an_override_among_bare_words() -> None:
    assert is_override("a=1")
    assert is_override("~a.b")
    assert not is_override("--a=1")
    assert not is_override("file.yaml")


def test_each_bad_argument_is_reported() -> None:
    edits, problems = parse_overrides(["a", "b=1", "c..d=1"], ["e", "f=2"])
    assert [edit.dotted for edit in edits] == ["b", "e"]
    assert [(item.code, item.source.index) for item in problems] == [
        ("override-without-value", 0),
        ("bad-override", 2),
        ("bad-override", 4),
    ]


def test_a_value_that_is_no_yaml_says_how_to_quote_it() -> None:
    for value, typed in (
        ("[INST] x", "\"prompt='[INST] x'\""),
        ('"a" b', '"prompt=\'\\"a\\" b\'"'),
        ("'tis", "\"prompt='''tis'\""),
    ):
        edits, (problem,) = parse_overrides([f"prompt={value}"])
        assert problem.message.endswith(f"for plain text give it quotes of its own: {typed}")
        # what is suggested is what the shell hands over for what is shown
        assert shlex.split(typed) == [problem.suggestion]
        again, problems = parse_overrides([problem.suggestion or ""])
        assert not problems
        assert [edit.path for edit in edits] == [("prompt",)]
        assert again[0].node is not None
        assert plain_value(again[0].node) == value


def test_carets_mark_the_part_of_the_key() -> None:
    (edit,), _ = parse_overrides(["optimizer.lr=1"])
    assert (edit.key_source().col, edit.key_source().length) == (1, 12)
    assert (edit.key_source(1).col, edit.key_source(1).length) == (11, 2)
    (removal,), _ = parse_overrides(["~optimizer.lr"])
    assert (removal.key_source().col, removal.key_source().length) == (2, 12)
