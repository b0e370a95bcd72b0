"""A configuration from a stranger must not get anything imported or called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.components import trusting
from tune.config.component_check import resolve_component
from tune.config.instantiate import instantiate
from tune.config.slots import MODEL, OPTIMIZER, SLOTS, Slot
from tune.config.trust import judge_name, parse_trust, trust
from tune.errors import ConfigError

ROOT = Path(__file__).parents[2]

HOSTILE = [
    "os.system",
    "subprocess.Popen",
    "builtins.eval",
    "torch.hub.load",
    "torch.load",
    "torch.save",
    "torch.os.system",
    "torch.nn.os.system",
    "torch.optim.os.system",
    "torch.jit.load",
    "torch.package.PackageImporter",
    "torch.utils.cpp_extension.load",
    "torch.utils.cpp_extension.load_inline",
    "torch.ops.load_library",
    "torch.nn.modules.module.torch.hub.load",
    "torch.nn.functional.torch.load",
    "torch.nn.functional.importlib.import_module",
    "torch.nn.init.normal_",
    "torch.multiprocessing.spawn",
    "torch.optim.__builtins__.eval",
    "torch.optim.__loader__.exec_module",
    "torch.nn.Module.__init__.__globals__",
    "torch.nn.Module.__class__",
    "torch.optim._multi_tensor.os",
    "torchaudio.load",
    "torch_evil.Adam",
    "torchtune_evil.models.x",
    "torchtune.config.instantiate",
    "torchtune.os.system",
    "tune_evil.models.llama2_7b",
    "tune.cli.main.main",
    "tune.config.instantiate.instantiate",
    "tune.config.trust.trust",
    "tune.config.instantiate",
    "tune.utils.paths.os.system",
    "tune.errors.TuneError",
    "tune.models.os.system",
    "tune.models._private.run",
    "tune.checkpoints.save_model",
    "tune.recipes.full_finetune.recipe_main",
    "sys.modules",
    "__main__.x",
    "..os.system",
    ".os.system",
    "torch.optim.",
    "torch..optim.SGD",
    "torch.optim.SGD()",
    "torch.optim.SGD\n",
    "torch.optim.SGD\x00",
    "torch. optim.SGD",
    "\uff54orch.optim.SGD",
    "torch.optim.SG\u0414",
    "lambda: __import__('os').system('id')",
    "../../evil.py",
    "torch/optim/SGD",
    "",
    ".",
    "a" * 10_000,
    "a." * 5_000 + "b",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("slot", [None, *SLOTS], ids=lambda slot: slot.kind if slot else "nested")
def test_hostile_names_are_refused_everywhere(name: str, slot: Slot | None) -> None:
    resolved = resolve_component(name, slot)
    assert resolved.errors, resolved
    assert resolved.path == ""
    assert all(len(error.message) < 1000 for error in resolved.errors)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("shape", ["text", "mapping", "nested", "in-list"])
def test_hostile_names_are_never_built(name: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = {"_component_": name, "command": "id"}
    component = {
        "text": name,
        "mapping": mapping,
        "nested": {"_component_": "torch.nn.GELU", "approximate": {"deep": mapping}},
        "in-list": {"_component_": "torch.nn.GELU", "approximate": [[mapping]]},
    }[shape]
    monkeypatch.setattr("os.system", lambda command: pytest.fail("os.system was called"))
    with pytest.raises(ConfigError):
        instantiate(component)


@given(st.text(max_size=60))
def test_any_text_gets_an_answer(name: str) -> None:
    resolve_component(name, MODEL)
    resolve_component(name, None)


@given(
    st.lists(
        st.sampled_from(["torch", "optim", "nn", "os", "hub", "load", "SGD", "tune", "models", "_C"]),
        min_size=1,
    )
)
def test_any_path_gets_an_answer(parts: list[str]) -> None:
    name = ".".join(parts)
    resolved = resolve_component(name, OPTIMIZER)
    if "os" in parts or "load" in parts:
        assert resolved.errors


def test_the_error_says_how_to_trust() -> None:
    (error,) = resolve_component("my_package.optim.Lion", OPTIMIZER).errors
    assert error.code == "untrusted-component"
    assert "--trust my_package" in error.message


def test_trust_covers_whole_packages_only() -> None:
    assert parse_trust(["a,b", " c.d "]) == ("a", "b", "c.d")
    with trusting("my_package"):
        assert judge_name("my_package.x") is None
        assert judge_name("my_package_evil.x") is not None
        assert judge_name("my_package.__loader__.x") is not None
    assert judge_name("my_package.x") is not None
    with trusting("my_package.part"):
        assert judge_name("my_package.part.x") is None
        assert judge_name("my_package.other.x") is not None


@pytest.mark.parametrize("value", ["a b", "../x", "a;b", "1a", "a..b"])
def test_trust_takes_package_names_only(value: str) -> None:
    with pytest.raises(ConfigError, match="--trust"):
        parse_trust([value])


def test_trust_lasts_for_the_process() -> None:
    with trusting():
        trust("my_package")
        assert judge_name("my_package.x") is None
    assert judge_name("my_package.x") is not None


@pytest.mark.parametrize("shadow", ["torch.py", "torch/__init__.py", "bitsandbytes.py", "yaml.py", "tune.py"])
def test_files_in_the_working_directory_shadow_no_packages(tmp_path: Path, shadow: str) -> None:
    target = tmp_path / shadow
    target.parent.mkdir(exist_ok=True)
    target.write_text("open('imported', 'w').close()\nclass optim: pass\n")
    code = (
        "import sys\n"
        f"sys.path.insert(1, {str(ROOT)!r})\n"
        "sys.path.remove('') ; sys.path.append('')\n"  # only for the import of tune itself
        "import tune.config ; tune.config.import_component\n"
        "sys.path.remove('') ; sys.path.insert(0, '')\n"
        "from tune.config.component_check import resolve_component\n"
        "from tune.config.slots import OPTIMIZER\n"
        "assert not resolve_component('torch.optim.SGD', OPTIMIZER).errors\n"
        "resolve_component('bitsandbytes.optim.Lion', OPTIMIZER)\n"
    )
    if shadow.startswith("torch"):
        code += "tune.config.import_component('torch.optim.SGD')\n"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert not (tmp_path / "imported").exists()


def test_the_working_directory_is_searched_for_trusted_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_lion.py").write_text("import torch\nclass Lion(torch.optim.SGD): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert resolve_component("my_lion.Lion", OPTIMIZER).errors
    with pytest.raises(ConfigError, match="--trust my_lion"):
        instantiate("my_lion.Lion", [])
    with trusting("my_lion"):
        resolved = resolve_component("my_lion.Lion", OPTIMIZER)
        assert resolved.errors == ()
        assert resolved.signature is not None
        assert "momentum" in resolved.signature.parameters
        import torch

        lion = instantiate("my_lion.Lion", [torch.nn.Parameter(torch.zeros(2))], lr=0.5)
        assert lion.param_groups[0]["lr"] == 0.5
