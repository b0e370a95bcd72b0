"""The builders with adapters: the same model, frozen, with adapters where their arguments say."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch

from tune.config.component_check import list_components
from tune.config.instantiate import import_component
from tune.config.signatures import Signature, read_signature
from tune.config.slots import MODEL
from tune.errors import ConfigError
from tune.models import get_model
from tune.models.builders import LoRABuilder
from tune.modules.peft import adapter_parameters
from tune.modules.peft.frozen import FrozenLinear

BUILDERS = {
    path: builder
    for path in list_components(MODEL).values()
    if isinstance(builder := import_component(path), LoRABuilder)
}


def test_the_names_people_know_are_there() -> None:
    names = {path.rpartition(".")[2] for path in BUILDERS}
    assert {"lora_llama2_7b", "qlora_llama2_7b", "lora_llama3_1_8b", "lora_qwen2_5_7b_instruct"} <= names
    assert {"lora_mistral_7b", "qlora_gemma2_9b", "lora_phi3_mini", "qlora_phi4_14b"} <= names
    # Each is of the builder it is named after.
    for path, builder in BUILDERS.items():
        module, _, name = path.rpartition(".")
        assert builder.builder is getattr(importlib.import_module(module), name.split("lora_", 1)[1]), name
        assert builder.quantize_base == name.startswith("qlora_"), name


def test_their_arguments_are_known_without_importing() -> None:
    for path, builder in BUILDERS.items():
        signature = read_signature(path)
        assert isinstance(signature, Signature)
        at_run_time = inspect.signature(builder).parameters
        assert list(signature.parameters) == list(at_run_time), path
        for name, parameter in signature.parameters.items():
            assert parameter.required == (at_run_time[name].default is inspect.Parameter.empty), name
            assert parameter.required or parameter.default == at_run_time[name].default, name
        assert not signature.takes_any_keyword
        assert not signature.takes_any_positional
        assert "torch.nn.modules.module.Module" in signature.kinds


def test_a_wrong_argument_of_either_builder_is_refused() -> None:
    sizes = {"vocab_size": 61, "num_layers": 2, "num_heads": 6, "num_kv_heads": 2, "embed_dim": 48}
    with torch.device("meta"):
        model = get_model("lora_llama3", lora_attn_modules=["q_proj"], lora_rank=3, max_seq_len=40, **sizes)
        assert model.config.num_layers == 2
        with pytest.raises(ConfigError, match="num_layer"):
            get_model("lora_llama3", lora_attn_modules=["q_proj"], max_seq_len=40, num_layer=2, **sizes)
        with pytest.raises(ConfigError, match="max_seq_len"):
            get_model("lora_llama3", lora_attn_modules=["q_proj"], **sizes)


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
