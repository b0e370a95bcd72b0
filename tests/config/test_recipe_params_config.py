"""The shipped params classes through the whole of `tune.config`, and how long that takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tune.cli.catalogue import find_recipe
from tune.config import TuneArgumentParser, resolve
from tune.config.component import Component
from tune.config.component_check import resolve_component
from tune.config.params import fields_of
from tune.recipes.params.full_finetune import FullFinetuneParams
from tune.recipes.params.generate import GenerateParams

REPOSITORY = Path(__file__).parents[2]

FLAT = """\
output_dir: out
model: llama2_7b
model_checkpoint: ck
tokenizer: llama2_tokenizer
tokenizer_checkpoint: ${model_checkpoint}/tokenizer.model
dataset: alpaca
train_on_input: false
optimizer: AdamW
lr: 2e-5
loss: CrossEntropyLoss
"""
NESTED = """\
output_dir: out
model: {_component_: tune.models.llama2.llama2_7b}
checkpointer: {_component_: tune.training.FullModelCheckpointer, checkpoint_dir: ck}
tokenizer: {_component_: torchtune.models.llama2.llama2_tokenizer, path: ck/tokenizer.model}
dataset: {_component_: tune.datasets.alpaca_dataset, train_on_input: False}
optimizer: {_component_: tune.modules.optim.AdamW, lr: 2e-5}
loss: {_component_: torch.nn.CrossEntropyLoss}
"""


def test_both_styles_and_the_constructor_mean_the_same() -> None:
    flat = resolve(FullFinetuneParams, text=FLAT)
    nested = resolve(FullFinetuneParams, text=NESTED)
    assert flat.params is not None, flat.report()
    assert flat.params == nested.params, nested.report()
    assert [item.code for item in nested.warnings] == ["renamed-package"]
    built = FullFinetuneParams(
        output_dir="out",
        model="llama2_7b",  # type: ignore[arg-type]
        model_checkpoint="ck",
        tokenizer="llama2_tokenizer",  # type: ignore[arg-type]
        tokenizer_checkpoint="ck/tokenizer.model",
        dataset="alpaca",  # type: ignore[arg-type]
        train_on_input=False,
        optimizer={"_component_": "AdamW", "lr": 2e-5},  # type: ignore[arg-type]
        loss="CrossEntropyLoss",  # type: ignore[arg-type]
    )
    assert built == flat.params


@pytest.mark.parametrize("params_cls", [FullFinetuneParams, GenerateParams])
def test_every_declared_default_is_a_good_value(params_cls: type) -> None:
    for info in fields_of(params_cls).values():
        if info.slot is not None and info.default:
            for name in (info.default,) if isinstance(info.default, str) else info.default:
                resolved = resolve_component(name, info.slot)
                assert not resolved.errors, (info.name, resolved.errors)
                if "." in name:
                    assert resolved.path == name, "a default with a dot is taken as a full path"
        elif not info.required:
            assert info.find_fault(info.default) is None


def test_many_renamed_names_are_one_warning() -> None:
    text = NESTED.replace("tune.models.llama2.llama2_7b", "torchtune.models.llama2.llama2_7b")
    resolution = resolve(FullFinetuneParams, text=text.replace("tune.datasets", "torchtune.datasets"))
    assert [(item.code, item.path, item.source.line) for item in resolution.warnings] == [
        ("renamed-package", "model", 2)
    ]
    assert "and 2 more names" in resolution.warnings[0].message


@pytest.mark.parametrize(
    ("cls", "recipe"), [(FullFinetuneParams, "full_finetune"), (GenerateParams, "generate")]
)
def test_params_know_the_names_of_their_recipe(cls: type, recipe: str) -> None:
    built_in = find_recipe(recipe)
    assert built_in is not None
    assert cls.recipe_names == (built_in.name, *built_in.aliases)  # type: ignore[attr-defined]


def test_a_program_refuses_the_config_of_another_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/my_copy.py"])
    config = tmp_path / "c.yaml"
    parser = TuneArgumentParser(params=FullFinetuneParams)
    for name in ("full_finetune", "full_finetune_distributed", "my_copy", "recipes/full_finetune.py"):
        config.write_text(f"recipe: {name}\n{FLAT}")
        assert parser.parse_params(["--config", str(config)]).output_dir == "out"
    config.write_text(f"recipe: generate\n{FLAT}")
    with pytest.raises(SystemExit) as caught:
        parser.parse_params(["--config", str(config)])
    assert caught.value.code == 2
    assert "error[wrong-recipe]" in capsys.readouterr().err


def test_a_device_is_refused_in_words() -> None:
    resolution = resolve(FullFinetuneParams, text=FLAT, overrides=["device=gpu:1"])
    (error,) = resolution.errors
    assert error.message == "device must be cpu, cuda, cuda:N or mps, not 'gpu:1'"
    assert error.suggestion == "cuda:1"


def test_nothing_follows_from_a_value_that_was_reported() -> None:
    for text, overrides, wanted in (
        # a reference to it
        (
            FLAT.replace("model_checkpoint: ck", "model_checkpoint: [a]"),
            (),
            [("wrong-type", "model_checkpoint")],
        ),
        # a misspelt short form of a required argument
        (
            FLAT.replace("tokenizer_checkpoint", "tokenizr_checkpoint"),
            (),
            [("unknown-key", "tokenizr_checkpoint")],
        ),
        # a value on the command line that cannot be read
        (FLAT.replace("output_dir: out\n", ""), ("output_dir=[INST] x",), [("bad-override", "output_dir")]),
        # the argument of a component that is refused itself
        (
            FLAT.replace("optimizer: AdamW", "optimizer: os.system").replace("lr: 2e-5", "lr: fast"),
            (),
            [("untrusted-component", "optimizer"), ("wrong-type", "lr")],
        ),
        # the argument of one in a list
        (
            FLAT.replace("dataset: alpaca", "dataset: [nothing]").replace("_input: false", "_input: 3"),
            (),
            [("unknown-component", "dataset.0"), ("wrong-type", "train_on_input")],
        ),
    ):
        errors = resolve(FullFinetuneParams, text=text, overrides=overrides).errors
        assert [(item.code, item.path) for item in errors] == wanted


def test_problems_between_fields_point_at_what_was_set() -> None:
    resolution = resolve(
        FullFinetuneParams,
        text=FLAT + "device: cpu\nfsdp_cpu_offload: true\noptimizer_in_bwd: true\n",
        overrides=["gradient_accumulation_steps=4"],
        name="c.yaml",
    )
    assert [(item.code, item.path, item.source.line) for item in resolution.errors] == [
        ("inconsistent", "fsdp_cpu_offload", 12),
        ("inconsistent", "optimizer_in_bwd", 13),
    ]


def test_generate_needs_no_file() -> None:
    resolution = resolve(
        GenerateParams, overrides=["model_checkpoint=ck", "prompt=Once: upon", "temperature=0"]
    )
    assert resolution.params is not None, resolution.report()
    assert resolution.params.checkpointer.kwargs == {"checkpoint_dir": "ck"}
    assert resolution.params.model == Component("tune.models.auto")
    assert resolution.params.prompt == "Once: upon"


MEASURE = """\
import sys, time
start = time.process_time()
from tune.config import TuneArgumentParser
from tune.recipes.params.full_finetune import FullFinetuneParams
params = TuneArgumentParser(params=FullFinetuneParams).parse_params()
print(time.process_time() - start)
heavy = {"torch", "numpy", "datasets", "transformers", "sentencepiece"} & set(sys.modules)
assert not heavy, heavy
"""


def test_resolving_a_flat_config_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "flat.yaml").write_text(FLAT)
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONPYCACHEPREFIX": str(tmp_path / "cache"),
        "PYTHONDONTWRITEBYTECODE": "",
    }
    times = []
    for _ in range(6):  # the first one compiles
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, "--config", str(tmp_path / "flat.yaml")],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        times.append(float(done.stdout))
    # CPU time beyond the interpreter's start; about 0.06 s on a quiet machine, several times that on a busy one
    assert min(times) < 0.3, times
