"""Resolution as a whole: precedence, provenance, short forms, references, and diagnostics for all that is wrong."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from tune.config import resolution_of, resolve
from tune.config.component import Component
from tune.config.convert import shadowed
from tune.config.diagnostics import Diagnostic, problem
from tune.config.params import ParamsError, agreed_values, check_params, param
from tune.config.resolution import dump_params
from tune.config.resolve import Resolution, load_tree, read_recipe_name
from tune.config.slots import DATASET, LR_SCHEDULER, OPTIMIZER


@dataclass(frozen=True)
class Small:
    """A few parameters of each kind."""

    output_dir: str = param("", required=True, help="Where to.")
    batch_size: int = param(2, minimum=1, help="Sequences.", group="Data")
    epochs: int = param(1, minimum=1, maximum=100, help="Passes.")
    optimizer: Component = param("AdamW", slot=OPTIMIZER, help="Optimizer.")
    lr: float | None = param(None, short_for="optimizer.lr", minimum=0.0, help="Rate.")
    lr_scheduler: Component | None = param(None, slot=LR_SCHEDULER, help="Schedule.")
    dtype: Literal["bf16", "fp32"] = param("bf16", help="Precision.")
    clip: float | None = param(None, above=0.0, help="Clip.")
    device: str | None = param(None, pattern=r"cpu|cuda(:\d+)?", help="Device.")
    names: list[str] | None = param(None, help="Names.")
    extra: dict[str, Any] = param({}, help="Anything.")
    shuffle: bool = param(True, help="Shuffle.")
    note: str = param("none", help="Text.")
    _agreed: Any = agreed_values()

    def __post_init__(self) -> None:
        check_params(self)

    def cross_checks(self) -> Iterator[Diagnostic]:
        if self.dtype == "fp32" and self.device == "cuda":
            yield problem("needs a CPU when dtype is fp32", ("device", "dtype"))


def run(text: str, *overrides: str, **options: Any) -> Resolution[Small]:
    return resolve(Small, text=textwrap.dedent(text), overrides=overrides, name="c.yaml", **options)


def good(text: str, *overrides: str, **options: Any) -> Small:
    resolution = run(text, *overrides, **options)
    assert resolution.params is not None, resolution.report()
    return resolution.params


def faults(resolution: Resolution[Any]) -> list[tuple[str, str, int | None, str | None]]:
    return [(item.code, item.path, item.source.line, item.suggestion) for item in resolution.errors]


def test_command_line_beats_file_beats_default() -> None:
    params = good("output_dir: a\nbatch_size: 3\nepochs: 5\n", "batch_size=7")
    assert (params.output_dir, params.batch_size, params.epochs, params.dtype) == ("a", 7, 5, "bf16")
    resolution = resolution_of(params)
    assert resolution is not None
    places = resolution.places
    assert (places["batch_size"].source.kind, places["epochs"].source.kind) == ("cli", "file")
    assert "dtype" not in places
    assert places["epochs"].source.line == 3
    assert "'3' from c.yaml:2:13" in str(shadowed(places["batch_size"]))


def test_flat_and_component_style_mean_the_same() -> None:
    flat = good("output_dir: a\noptimizer: SGD\nlr: 2e-5\n")
    nested = good("output_dir: a\noptimizer: {_component_: torch.optim.SGD, lr: 2e-5}\n")
    built = Small(output_dir="a", optimizer="SGD", lr=2e-5)  # type: ignore[arg-type]
    assert flat == nested == built
    assert flat.optimizer == Component("torch.optim.SGD", {"lr": 2e-5})
    assert flat.lr == 2e-5


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("output_dir: a\n", ()),
        (
            "output_dir: a\nlr: 2e-5\nnames: [x, 'y: z', \"#\", '1', '']\n",
            ("extra={a: [1, 2.5, no, null], b: {c: 'x'}}",),
        ),
        (
            "output_dir: a\nnames: ['\\${HOME}/a']\n",
            ("note=  spaced  ",),
        ),
        (
            "output_dir: a\nlr_scheduler: {_component_: cosine, num_warmup_steps: 3}\n",
            ("lr_scheduler.num_cycles=0.25",),
        ),
        ('output_dir: "tab\\there \\x85 \\u2028 ünïcode 日本 \\U0001F600"\n', ("note='~'", "clip=1")),
        (
            "output_dir: null_\nnote: '2'\ndevice: cuda:1\n",
            ("optimizer.betas=[0.9, 0.95]", "optimizer.fused=true"),
        ),
        ("output_dir: |\n  two\n  lines\n", ("note=- x", "epochs=5")),
    ],
)
def test_a_dump_reads_back_to_equal_parameters(text: str, overrides: tuple[str, ...]) -> None:
    resolution = run(text, *overrides)
    assert resolution.params is not None, resolution.report()
    again = run(resolution.dump())
    assert again.params == resolution.params, again.report()
    plain = run(dump_params(dataclasses.replace(resolution.params)))
    assert plain.params == resolution.params


def test_a_dump_says_where_values_come_from() -> None:
    resolution = run("output_dir: a\nlr: 1e-4\n", "epochs=3")
    comments = {
        line.split(":")[0].strip(): line.split("#")[-1].strip() for line in resolution.dump().splitlines()
    }
    assert comments["output_dir"] == "c.yaml:1"
    assert comments["lr"] == "c.yaml:2"
    assert comments["epochs"] == "command line: epochs=3"
    assert comments["dtype"] == "default"
    assert comments["_component_"] == "default"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("batchsize: 3", ("unknown-key", "batchsize", 2, "batch_size")),
        ("batch-size: 3", ("unknown-key", "batch-size", 2, "batch_size")),
        ("learning_rate: 3", ("unknown-key", "learning_rate", 2, "lr")),
        ("num_train_epochs: 3", ("unknown-key", "num_train_epochs", 2, "epochs")),
        ("per_device_train_batch_size: 3", ("unknown-key", "per_device_train_batch_size", 2, "batch_size")),
        ("bf16: true", ("unknown-key", "bf16", 2, None)),
        ("weight_decay: 0.1", ("unknown-key", "weight_decay", 2, "optimizer.weight_decay")),
        ("amsgrad: true", ("unknown-key", "amsgrad", 2, "optimizer.amsgrad")),
        ("quite_unheard_of: 1", ("unknown-key", "quite_unheard_of", 2, None)),
        ("batch_size: two", ("wrong-type", "batch_size", 2, None)),
        ('batch_size: "2"', ("wrong-type", "batch_size", 2, "2")),
        ("batch_size: 2.0", ("wrong-type", "batch_size", 2, "2")),
        ("batch_size: [2]", ("wrong-type", "batch_size", 2, None)),
        ("batch_size: {a: 2}", ("wrong-type", "batch_size", 2, None)),
        ("batch_size:", ("null-not-allowed", "batch_size", 2, None)),
        ("batch_size: 0", ("out-of-range", "batch_size", 2, None)),
        ("epochs: 101", ("out-of-range", "epochs", 2, None)),
        ("clip: 0", ("out-of-range", "clip", 2, None)),
        ("lr: -1", ("out-of-range", "lr", 2, None)),
        ("lr: fast", ("wrong-type", "lr", 2, None)),
        ("shuffle: yes", ("wrong-type", "shuffle", 2, "true")),
        ("dtype: float32", ("not-a-choice", "dtype", 2, "fp32")),
        ("device: gpu", ("bad-value", "device", 2, "cuda")),
        ("names: x", ("wrong-type", "names", 2, "[x]")),
        ("extra: 3", ("wrong-type", "extra", 2, None)),
        ("optimizer: Adm", ("unknown-component", "optimizer", 2, "Adam")),
        ("optimizer: os.system", ("untrusted-component", "optimizer", 2, None)),
        ("optimizer: [SGD]", ("wrong-type", "optimizer", 2, None)),
        ("optimizer: null", ("null-not-allowed", "optimizer", 2, None)),
        ("optimizer: torch.nn.Linear", ("wrong-component-kind", "optimizer", 2, None)),
        ("optimizer.lr: 1", ("unknown-key", "optimizer.lr", 2, "lr")),
        ("optimizer: ''\nlr: 1", ("wrong-type", "optimizer", 2, None)),
        ("optimizer: {lr: 1e-5}", ("missing-component-name", "optimizer", 2, "_component_: AdamW")),
        ("optimizer: {_component_: 3.5}", ("bad-component-name", "optimizer", 2, None)),
        ("optimizer: {_component_: [a]}", ("wrong-type", "optimizer._component_", 2, None)),
        ("optimizer: {_component_: AdamW, lrr: 1}", ("unknown-argument", "optimizer.lrr", 2, "lr")),
        ("optimizer: {_component_: AdamW, epochs: 1}", ("unknown-argument", "optimizer.epochs", 2, None)),
        (
            "optimizer: {_component_: AdamW, learning_rate: 1}",
            ("unknown-argument", "optimizer.learning_rate", 2, "lr"),
        ),
        ("optimizer: {_component_: AdamW, params: []}", ("colliding-argument", "optimizer.params", 2, None)),
        ("optimizer: {_component_: AdamW, lr: x}", ("wrong-type", "optimizer.lr", 2, None)),
        ("optimizer: {_component_: AdamW, lr: -1}", ("out-of-range", "optimizer.lr", 2, None)),
        ("optimizer: {_component_: AdamW, betas: [1]}", ("wrong-type", "optimizer.betas", 2, None)),
        ("lr_scheduler: StepLR", ("missing-argument", "lr_scheduler.step_size", 2, None)),
        ("note: ${nothing}", ("dangling-reference", "note", 2, None)),
        ("note: ${output_dri}", ("dangling-reference", "note", 2, "${output_dir}")),
        ("note: ${note}", ("cyclic-reference", "note", 2, None)),
        ("note: ${output_dir", ("bad-reference", "note", 2, None)),
        ("note: ${}", ("bad-reference", "note", 2, None)),
        ("note: x${names}", ("bad-reference", "note", 2, None)),
        ("batch_size: ${note}", ("wrong-type", "batch_size", 2, None)),
        ("recipe: [a]", ("wrong-type", "recipe", 2, None)),
        ('note: "a\\0b"', ("wrong-type", "note", 2, None)),
    ],
)
def test_one_wrong_thing_is_one_error(line: str, fault: tuple[str, str, int, str | None]) -> None:
    resolution = run(f"output_dir: a\n{line}\n")
    assert faults(resolution) == [fault]
    assert resolution.params is None
    assert "c.yaml:2:" in resolution.report()


def test_everything_wrong_is_reported_in_one_pass_in_order() -> None:
    resolution = run(
        """\
        recipe: other
        batch_size: two
        epochs: 0
        batchsize: 3
        optimizer: {_component_: AdamW, lrr: 1, fused: maybe}
        epochs: 4
        device: cuda
        dtype: fp32
        note: ${nope}
        names: [a, *b]
        """,
        "clip=-1",
        "nonsense",
        "~absent",
        recipe="mine",
    )
    assert [(code, line) for code, _, line, _ in faults(resolution)] == [
        ("missing-required", 1),
        ("wrong-recipe", 1),
        ("wrong-type", 2),
        ("out-of-range", 3),
        ("unknown-key", 4),
        ("unknown-argument", 5),
        ("wrong-type", 5),
        ("duplicate-key", 6),
        ("inconsistent", 7),
        ("dangling-reference", 9),
        ("yaml-alias", 10),
        ("out-of-range", None),
        ("override-without-value", None),
        ("nothing-to-remove", None),
    ]


def test_a_golden_report() -> None:
    resolution = run(
        "output_dir: a\nbatch_size: two\nlearning_rate: 2e-5\n", "epochs=many", "clip=1", "clip=0"
    )
    assert resolution.report() == textwrap.dedent(
        """\
        error[wrong-type]: batch_size takes a whole number, not 'two'
          --> c.yaml:2:13
             2 | batch_size: two
               |             ^^^

        error[unknown-key]: there is no parameter 'learning_rate'; here that is called lr
          --> c.yaml:3:1
             3 | learning_rate: 2e-5
               | ^^^^^^^^^^^^^
               = suggestion: lr

        error[wrong-type]: epochs takes a whole number, not 'many'
          --> command line
               | epochs=many
               |        ^^^^

        warning[repeated-override]: clip is set twice on the command line; the last value counts
          --> command line
               | clip=1
               |      ^

        error[out-of-range]: clip must be above 0, not 0.0
          --> command line
               | clip=0
               |      ^
               = it overrides '1' from command line: clip=1

        4 errors, 1 warning"""
    )


def test_the_json_form() -> None:
    found = run("output_dir: a\nbatch_size: two\n", "epochs=x").to_json()
    assert json.loads(json.dumps(found)) == {
        "version": 1,
        "ok": False,
        "errors": [
            {
                "code": "wrong-type",
                "path": "batch_size",
                "message": "batch_size takes a whole number, not 'two'",
                "source": {"kind": "file", "file": "c.yaml", "line": 2, "col": 13},
                "suggestion": None,
            },
            {
                "code": "wrong-type",
                "path": "epochs",
                "message": "epochs takes a whole number, not 'x'",
                "source": {"kind": "cli", "file": None, "line": None, "col": None},
                "suggestion": None,
            },
        ],
        "warnings": [],
    }


def test_a_required_parameter() -> None:
    for text in ("epochs: 2\n", "output_dir: ''\nepochs: 2\n"):
        assert [code for code, *_ in faults(run(text))] == ["missing-required"]
    # a key that probably means it says enough
    assert [code for code, *_ in faults(run("output: x\n"))] == ["unknown-key"]
    # of a file that cannot be read nothing is missing
    assert [code for code, *_ in faults(run("epochs: 'open\n"))] == ["unclosed"]
    assert [code for code, *_ in faults(run("epochs: 2\noutput_dir:open\n"))] == ["yaml-syntax"]


def test_short_forms_conflict_within_one_source_only() -> None:
    both = run("output_dir: a\nlr: 1e-4\noptimizer: {_component_: SGD, lr: 1e-5}\n")
    (error,) = both.errors
    assert (error.code, error.source.line) == ("conflict", 3)
    assert "c.yaml:2:5" in error.message
    assert "c.yaml:3:" in error.message
    on_line = run("output_dir: a\n", "lr=1", "optimizer.lr=2")
    assert [item.code for item in on_line.errors] == ["conflict"]
    nested = "output_dir: a\noptimizer: {_component_: SGD, lr: 1e-5}\n"
    assert good(nested, "lr=1e-4").optimizer.kwargs == {"lr": 1e-4}
    assert good("output_dir: a\nlr: 1e-5\n", "optimizer.lr=1e-4").optimizer.kwargs == {"lr": 1e-4}
    # the component is replaced, the flat value is its neighbour and stays
    assert good("output_dir: a\nlr: 1e-5\n", "optimizer=SGD").optimizer == Component(
        "torch.optim.SGD", {"lr": 1e-5}
    )
    assert good("output_dir: a\nlr: null\noptimizer: {_component_: SGD, lr: 1e-5}\n").optimizer.kwargs == {
        "lr": 1e-5
    }


def test_references_are_resolved_after_merging_and_before_typing() -> None:
    params = good(
        """\
        output_dir: out/${note}-${epochs}
        batch_size: ${epochs}
        names: ["${output_dir}/x", "\\\\${y}"]
        lr: ${optimizer.weight_decay}
        optimizer: {_component_: "${extra.kind}", weight_decay: 0.25}
        extra: {kind: SGD, copy: "${names}", n: "${batch_size}"}
        """,
        "epochs=7",
    )
    assert params.output_dir == "out/none-7"
    assert params.batch_size == 7
    assert params.names == ["out/none-7/x", "${y}"]
    assert params.optimizer == Component("torch.optim.SGD", {"weight_decay": 0.25, "lr": 0.25})
    assert params.extra == {"kind": "SGD", "copy": ["out/none-7/x", "${y}"], "n": 7}
    assert good("output_dir: ${lr}\noptimizer: {_component_: SGD, lr: 0.5}\n").output_dir == "0.5"
    assert good("output_dir: ${optimizer._component_}\n", "optimizer=SGD").output_dir == "SGD"


def test_a_reference_joined_into_text_is_text() -> None:
    assert [code for code, *_ in faults(run("output_dir: a\nbatch_size: 1${epochs}\n"))] == ["wrong-type"]


def test_circles_are_reported_once() -> None:
    resolution = run("output_dir: a\nnote: ${device}\ndevice: ${names.0}\nnames: ['x${note}']\n")
    (error,) = resolution.errors
    assert (error.code, error.source.line) == ("cyclic-reference", 2)
    assert "note -> device -> names.0 -> note" in error.message


@pytest.mark.parametrize(
    "text",
    [
        "extra:\n"
        + "".join(f"  k{n}: ['${{extra.k{n + 1}}}', '${{extra.k{n + 1}}}']\n" for n in range(60))
        + "  k60: 1\n",
        "extra:\n"
        + "".join(f"  k{n}: '${{extra.k{n + 1}}}${{extra.k{n + 1}}}'\n" for n in range(60))
        + "  k60: abc\n",
        "extra:\n" + "".join(f"  k{n}: '${{extra.k{n + 1}}}'\n" for n in range(5000)) + "  k5000: 1\n",
        "extra: {a: '${extra}'}\n",
    ],
)
def test_references_cannot_be_made_into_bombs(text: str) -> None:
    resolution = run("output_dir: a\n" + text)
    assert resolution.errors
    assert all(
        item.code in ("config-too-large", "config-too-deep", "bad-reference", "cyclic-reference")
        for item in resolution.errors
    )


def test_edits_of_an_unreadable_file_are_not_judged() -> None:
    found = run("epochs: 'open\n", "~optimizer", "metric_logger.project=x", "a==", "no")
    assert [code for code, *_ in faults(found)] == ["unclosed", "override-without-value"]


def test_of_more_errors_than_anyone_reads_the_rest_is_counted() -> None:
    many = run("output_dir: a\n" + "".join(f"k{n}: 1\n" for n in range(20_000)))
    assert many.errors[-1].code == "more-errors"
    assert len(many.errors) < 300


def test_the_recipe_key_names_the_recipe(tmp_path: Path) -> None:
    assert good("recipe: mine\noutput_dir: a\n", recipe="mine").output_dir == "a"
    assert good("recipe: recipes/mine.py\noutput_dir: a\n", recipe="mine.py")
    assert good("recipe: other\noutput_dir: a\n", recipe="mine", recipe_aliases=("other",))
    assert good("recipe: other\noutput_dir: a\n")
    file = tmp_path / "c.yaml"
    file.write_text("recipe: other\noutput_dir: a\n")
    assert read_recipe_name(load_tree({}, config=file).root) == "other"
    assert read_recipe_name(load_tree({}, config=tmp_path / "none.yaml").root) is None
    assert "recipe: other" in resolve(Small, config=file).dump()


def test_lists_of_components_share_a_short_form() -> None:
    @dataclass(frozen=True)
    class Sets:
        dataset: Component | tuple[Component, ...] = param("", slot=DATASET, required=True, help="Data.")
        train_on_input: bool | None = param(None, short_for="dataset.train_on_input", help="Both.")

    text = "dataset: [alpaca, {_component_: alpaca, source: x.json}]\ntrain_on_input: false\n"
    resolution = resolve(Sets, text=text, overrides=["dataset.0.source=y.json"])
    assert resolution.params is not None, resolution.report()
    alpaca = "tune.datasets.alpaca_dataset"
    assert resolution.params.dataset == (
        Component(alpaca, {"source": "y.json", "train_on_input": False}),
        Component(alpaca, {"source": "x.json", "train_on_input": False}),
    )
    assert "dataset:\n  - _component_: tune.datasets.alpaca_dataset" in resolution.dump()
    again = resolve(Sets, text=resolution.dump())
    assert again.params == resolution.params
    missing = resolve(Sets, text="dataset: [alpaca, alpacca]\n")
    assert [(item.path, item.source.col) for item in missing.errors] == [("dataset.1", 19)]


@pytest.mark.parametrize("text", ["lr: 1e-4\n", "optimizer: {_component_: AdamW, lr: 1e-4}\n"])
def test_a_short_form_and_its_component_agree(text: str) -> None:
    params = good("output_dir: a\n" + text)
    assert params.lr == params.optimizer.kwargs["lr"] == 1e-4
    assert good(dump_params(params)) == params

    new_rate = dataclasses.replace(params, lr=5e-5)
    assert new_rate.lr == new_rate.optimizer.kwargs["lr"] == 5e-5
    assert dataclasses.replace(new_rate, lr=None).optimizer.kwargs == {}
    sgd = Component("torch.optim.SGD", {"lr": 0.1})
    changed = dataclasses.replace(new_rate, optimizer=sgd, epochs=2)
    assert (changed.lr, changed.optimizer, changed.epochs) == (0.1, sgd, 2)
    assert dataclasses.replace(new_rate, optimizer="SGD").optimizer.kwargs == {"lr": 5e-5}
    assert good(dump_params(changed)) == changed
    assert dataclasses.replace(params, lr=0.1, optimizer=sgd) == dataclasses.replace(params, optimizer=sgd)
    for made in (
        lambda: dataclasses.replace(params, lr=0.2, optimizer=sgd),
        lambda: Small("a", lr=1.0, optimizer=sgd),
    ):
        with pytest.raises(ParamsError, match=r"lr and optimizer\.lr are two spellings"):
            made()


def test_objects_built_in_python_are_checked_in_the_same_way() -> None:
    import torch

    with pytest.raises(ParamsError) as caught:
        Small(batch_size="3", epochs=0, optimizer={"_component_": "SGD", "lrr": 1}, dtype="fp8")  # type: ignore[arg-type]
    assert isinstance(caught.value, (TypeError, ValueError))
    fields = [item.path for item in caught.value.problems]
    assert sorted(fields) == ["batch_size", "dtype", "epochs", "optimizer.lrr", "output_dir"]
    for field in fields:
        assert field in str(caught.value)
    params = Small(output_dir="x", optimizer=torch.optim.SGD, clip=1)  # type: ignore[arg-type]
    assert params.optimizer.path == "torch.optim.sgd.SGD"
    assert type(params.clip) is float
    assert resolution_of(params) is None
    assert dataclasses.replace(params, epochs=2).optimizer == params.optimizer
    with pytest.raises(ParamsError, match="device needs a CPU"):
        Small(output_dir="x", dtype="fp32", device="cuda")


def test_a_dataclass_of_ones_own_may_refuse() -> None:
    @dataclass
    class Plain:
        model: str
        lr: float = 0.1

        def __post_init__(self) -> None:
            if self.lr > 1:
                raise TypeError("lr is too large")

    resolution = resolve(Plain, text="model: 7\nlr: 3\n")
    assert [(item.code, item.message) for item in resolution.errors] == [("inconsistent", "lr is too large")]
    assert resolve(Plain, text="model: 7\n").params == Plain("7")
    assert [item.code for item in resolve(Plain, text="lr: 1\n").errors] == ["missing-required"]


def test_nothing_is_called_wrong_twice_through_an_alias() -> None:
    resolution = run("output_dir: a\nextra: {a: &x {_component_: os.system}, b: *x}\n")
    # each place builds it, so each place is named, but at the one position they share
    assert {item.source.line for item in resolution.errors} == {2}
    assert all(isinstance(item, Diagnostic) for item in resolution.errors)


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("".join(f"key_number_{n}: 1\n" for n in range(20_000)), []),
        ("optimizer:\n  _component_: SGD\n" + "".join(f"  key_number_{n}: 1\n" for n in range(20_000)), []),
        ("names:\n" + "".join(f"- ${{key_number_{n}}}\n" for n in range(20_000)), []),
        ("names: [" + "[1]," * 10_000 + "]", []),
        ("extra: [" + "{_component_: torch.nn.Lineer}," * 5_000 + "]", []),
        ("note: '" + "\\" * 500_000 + " ${x}'\n", []),
        ("note: '" + "${" * 200_000 + "'\n", []),
        ("note: '" + "1_" * 400_000 + "'\nepochs: " + "1_" * 200_000 + "1\n", []),
        ("?" * 100_000 + "\n", []),
        ("", ["a" + " " * 120_000, "a[" + " " * 120_000 + "=1", "x" * 120_000, "a." * 60_000 + "b=1"]),
    ],
)
def test_no_configuration_takes_long(text: str, overrides: list[str]) -> None:
    import time

    start = time.process_time()
    resolution = run("output_dir: a\n" + text, *overrides)
    assert resolution.errors
    assert len(resolution.errors) <= 201
    assert len(resolution.report()) < 500_000
    assert time.process_time() - start < 10  # a second or so on a quiet machine
