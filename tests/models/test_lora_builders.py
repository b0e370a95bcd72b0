"""The builders with adapters: the same model, frozen, with adapters where their arguments say."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import torch

import tune.models
from tune.config.signatures import Signature, read_signature
from tune.models import get_model
from tune.models.lora import LoRABuilder
from tune.modules.peft import adapter_parameters
from tune.modules.peft.frozen import FrozenLinear


def all_builders() -> dict[str, LoRABuilder]:
    """Dotted path of every thin name that a family's package exports."""
    found = {}
    for info in pkgutil.iter_modules(tune.models.__path__, "tune.models."):
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", ()):
            if isinstance(getattr(module, name), LoRABuilder):
                found[f"{info.name}.{name}"] = getattr(module, name)
    return found


BUILDERS = all_builders()


def test_the_names_people_know_are_there() -> None:
    names = {path.rpartition(".")[2] for path in BUILDERS}
    assert {"lora_llama2_7b", "qlora_llama2_7b", "lora_llama3_1_8b", "lora_qwen2_5_7b_instruct"} <= names
    assert {"lora_mistral_7b", "qlora_gemma2_9b", "lora_phi3_mini", "qlora_phi4_14b"} <= names
    # Each is of the builder it is named after.
    for path, builder in BUILDERS.items():
        name = path.rpartition(".")[2]
        assert builder._builder.__name__ == name.split("lora_", 1)[1], name
        assert builder._quantize_base == name.startswith("qlora_"), name


@pytest.mark.parametrize("path", BUILDERS)
def test_their_arguments_are_known_without_importing(path: str) -> None:
    signature = read_signature(path)
    assert isinstance(signature, Signature)
    assert [name for name, parameter in signature.parameters.items() if parameter.required] == [
        "lora_attn_modules"
    ]
    assert not signature.takes_any_keyword
    assert "torch.nn.modules.module.Module" in signature.kinds


@pytest.mark.parametrize("name", ["lora_qwen2_0_5b", "qlora_qwen2_0_5b"])
def test_adapters_are_where_the_arguments_say(name: str) -> None:
    with torch.device("meta"):
        model = get_model(
            name, lora_attn_modules=["q_proj", "output_proj"], apply_lora_to_mlp=True, lora_rank=3
        )
    adapters = adapter_parameters(model)
    adapted = {path.split(".", 2)[2].rsplit(".lora_", 1)[0] for path in adapters}
    assert adapted == {"attn.q_proj", "attn.output_proj", "mlp.w1", "mlp.w2", "mlp.w3"}
    assert {weight.shape[0] for path, weight in adapters.items() if path.endswith("lora_a.weight")} == {3}
    assert {path for path, weight in model.named_parameters() if weight.requires_grad} == set(adapters)
    frozen = [module for module in model.modules() if isinstance(module, FrozenLinear)]
    assert {module.quantize_base for module in frozen} == {name.startswith("qlora_")}
