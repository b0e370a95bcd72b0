"""torchtune's functions for adapters: its arguments, and the numbers of plain formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tune.errors import ConfigError
from tune.models.llama2 import llama2
from tune.modules import TransformerDecoder, peft

IN, OUT, RANK, ALPHA = 5, 9, 3, 7.0


class Gate(nn.Module):
    """An adapter of one's own, with torchtune's switch."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.gate = nn.Linear(IN, OUT), nn.Linear(IN, 1)
        self.disabled = False

    def adapter_params(self) -> list[str]:
        return ["gate.weight", "gate.bias"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) if self.disabled else self.base(x) * self.gate(x)


@pytest.fixture(params=[False, True], ids=["lora", "dora"])
def model(request: pytest.FixtureRequest) -> TransformerDecoder:
    torch.manual_seed(0)
    model = llama2(
        vocab_size=29,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        embed_dim=24,
        intermediate_dim=40,
        max_seq_len=19,
    ).eval()
    peft.apply_lora(model, peft.LoRAConfig(rank=RANK, alpha=ALPHA, apply_to_mlp=True, use_dora=request.param))
    with torch.no_grad():
        for parameter in peft.adapter_parameters(model).values():
            parameter.add_(torch.rand_like(parameter) / 9)
    return model


def test_adapters_parameters_are_found_by_name(model: TransformerDecoder) -> None:
    found = peft.get_adapter_params(model)
    expected = peft.adapter_parameters(model)
    assert sorted(found) == sorted(expected)
    assert all(found[name] is expected[name] for name in expected)


def test_adapters_of_ones_own_count_as_well() -> None:
    both = nn.Sequential(peft.LoRALinear(IN, OUT, RANK, ALPHA), Gate())
    assert list(peft.get_adapter_params(both)) == [
        "0.lora_a.weight",
        "0.lora_b.weight",
        "1.gate.weight",
        "1.gate.bias",
    ]
    assert isinstance(both[1], peft.AdapterModule)
    assert not isinstance(both[1].base, peft.AdapterModule)
    peft.set_trainable_params(both, peft.get_adapter_params(both))
    trained = {name for name, parameter in both.named_parameters() if parameter.requires_grad}
    assert trained == set(peft.get_adapter_params(both))
    x = torch.randn(4, IN)
    with peft.disable_adapter(both):
        torch.testing.assert_close(both[1](x.repeat(1, 1)), both[1].base(x))


def test_state_dicts_of_adapters_are_chosen_by_name(model: TransformerDecoder) -> None:
    state = {**model.state_dict(), "mine.lora_extra": torch.ones(2, dtype=torch.float64)}
    chosen = peft.get_adapter_state_dict(state, device="cpu")
    assert set(chosen) == {*peft.adapter_parameters(model), "mine.lora_extra"}
    assert set(peft.get_adapter_state_dict(state, "meta")) == set(chosen)


def test_a_merged_state_dict_does_the_same(model: TransformerDecoder) -> None:
    tokens = torch.randint(0, 29, (2, 7))
    expected = model(tokens)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    merged = peft.get_merged_lora_ckpt(state, RANK, ALPHA)
    assert merged is state
    peft.merge_adapters(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.load_state_dict(merged)
    torch.testing.assert_close(model(tokens), expected)


def test_merging_asks_for_the_matrix() -> None:
    layer = peft.LoRALinear(64, 32, RANK, ALPHA, quantize_base=True)
    layer.fill_weight(torch.randn(32, 64))
    with pytest.raises(ConfigError, match=r"^weight is not in the state dict .*merge_adapters"):
        peft.get_merged_lora_ckpt(dict(layer.state_dict()), RANK, ALPHA)


def test_without_its_adapters_a_model_is_its_base(model: TransformerDecoder) -> None:
    tokens = torch.randint(0, 29, (2, 7))
    adapted = model(tokens)
    base = llama2(
        vocab_size=29,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        embed_dim=24,
        intermediate_dim=40,
        max_seq_len=19,
    ).eval()
    base.load_state_dict(
        {name: value for name, value in model.state_dict().items() if name in base.state_dict()}
    )
    with peft.disable_adapter(model):
        assert torch.equal(model(tokens), base(tokens))
        module = model.layers[0].attn.q_proj
        assert torch.equal(module.merged_weight(), module.weight)
        with peft.disable_adapter(model):
            pass
        assert torch.equal(model(tokens), base(tokens))
    assert torch.equal(model(tokens), adapted)
    assert not torch.allclose(adapted, base(tokens))


def test_dora_stretches_rows_to_their_magnitudes() -> None:
    layer = peft.DoRALinear(in_dim=IN, out_dim=OUT, rank=RANK, alpha=ALPHA, use_bias=True)
    nn.init.normal_(layer.bias)
    nn.init.normal_(layer.weight)  # as when weights are loaded into it
    layer.initialize_dora_magnitude()
    x = torch.randn(4, IN)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    nn.init.normal_(layer.lora_b.weight)
    nn.init.normal_(layer.magnitude)
    weight = layer.weight + ALPHA / RANK * layer.lora_b.weight @ layer.lora_a.weight
    weight = layer.magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(layer(x), F.linear(x, weight, layer.bias))


def test_a_builders_module_counts_as_dora_with_magnitudes() -> None:
    class Mine(peft.DoRALinear):
        pass

    with_magnitudes = peft.LoRALinear(IN, OUT, RANK, ALPHA, use_dora=True)
    assert isinstance(with_magnitudes, peft.DoRALinear)
    assert isinstance(peft.DoRALinear(IN, OUT, RANK, ALPHA), peft.DoRALinear)
    assert not isinstance(peft.LoRALinear(IN, OUT, RANK, ALPHA), peft.DoRALinear)
    assert not isinstance(with_magnitudes, Mine)
