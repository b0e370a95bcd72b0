"""Adapters on every family against peft on transformers' implementation, from the same values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from cases import CASES
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

import tune.models
from tune.checkpoints import (
    load_adapter,
    load_into,
    open_weights,
    read_adapter_config,
    save_adapter,
    save_model,
)
from tune.modules import TransformerDecoder
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum
from tune.modules.peft import (
    LoRAConfig,
    adapted_modules,
    adapter_parameters,
    apply_lora,
    is_adapter,
    merge_adapters,
    reset_adapters,
)

ALL_ATTENTION = ("q_proj", "k_proj", "v_proj", "output_proj")
ALL_STATE = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")
ALL_PER_LAYER = ("per_layer_input_gate", "per_layer_projection", "per_layer_model_projection")
# fp32 sums in another order; logits here have a deviation of about 1.
TOLERANCE = {"rtol": 1e-5, "atol": 3e-5}
# The reference's delta rule is always in fp32, and grows what it rounds: measured against ours in fp64 its logits err
# by 1e-4, ours in fp32 by 7e-6.
STATE_TOLERANCE = {"rtol": 1e-5, "atol": 2e-4}


class Base(NamedTuple):
    """A reference in a directory, without adapters."""

    directory: Path
    vocab_size: int

    def theirs(self) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.directory, attn_implementation="eager").eval()

    def ours(self) -> TransformerDecoder:
        return tune.models.from_checkpoint(self.directory)

    def tokens(self, b: int, s: int) -> Tensor:
        return torch.randint(0, self.vocab_size, (b, s), generator=torch.Generator().manual_seed(b * s))


_BASES: dict[str, Base] = {}


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Base]]:
    def make(name: str) -> Base:
        if name not in _BASES:
            torch.manual_seed(5)
            config = CASES[name]()
            reference = AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for parameter in reference.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.2)
            directory = tmp_path_factory.mktemp("base")
            reference.save_pretrained(directory)
            _BASES[name] = Base(directory, config.vocab_size)
        return _BASES[name]

    yield make
    _BASES.clear()


def on_all_matrices(model: TransformerDecoder, **others: Any) -> LoRAConfig:
    return LoRAConfig(
        rank=4,
        alpha=9.0,
        attn_modules=(
            *ALL_ATTENTION,
            *(("gate_proj",) if model.config.attn_gate_apart else ()),
            *(ALL_STATE if model.config.delta is not None else ()),
            *(("in_proj", "out_proj") if model.config.conv is not None else ()),
            *(ALL_PER_LAYER if model.config.per_layer_input is not None else ()),
        ),
        apply_to_mlp=model.config.moe is None or not others.get("use_dora"),
        apply_to_output=model.output is not None,
        **others,
    )


def stir(parameters: list[nn.Parameter]) -> None:
    """Give adapters values as training would: B no longer zero, magnitudes no longer the rows' lengths."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1)


# Scaled by the root of the rank: matrices, and experts of which peft makes one adapter of two.
BY_ROOT = ("llama-biases", "mixtral")
# One case of each reference: what DoRA adds stands beside a matrix, and knows nothing of the settings of a family.
WITH_DORA = {case.config_class: name for name, case in reversed(CASES.items())}.values()


@pytest.mark.parametrize(
    ("case", "use_dora"), [*((name, False) for name in CASES), *((name, True) for name in WITH_DORA)]
)
def test_any_family_with_adapters(
    case: str, use_dora: bool, base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    base = base_of(case)
    tokens = base.tokens(2, 23)
    ours = base.ours()
    with torch.no_grad():
        plain = ours(tokens)
    apply_lora(ours, on_all_matrices(ours, use_dora=use_dora, use_rslora=case in BY_ROOT))
    with torch.no_grad():
        assert torch.equal(ours(tokens), plain)

    stir(list(adapter_parameters(ours).values()))
    with torch.no_grad():
        adapted = ours(tokens)
    assert (adapted - plain).abs().mean() > 0.01
    save_adapter(ours, tmp_path / "adapter", base=str(base.directory))
    theirs = PeftModel.from_pretrained(base.theirs(), tmp_path / "adapter").eval()
    tolerance = TOLERANCE if ours.config.delta is None else STATE_TOLERANCE
    with torch.no_grad():
        torch.testing.assert_close(adapted, theirs(tokens).logits, **tolerance)

    again = base.ours()
    load_adapter(again, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(again(tokens), adapted)
    assert {name for name, parameter in again.named_parameters() if parameter.requires_grad} == set(
        adapter_parameters(again)
    )

    save_model(again, tmp_path / "merged")
    merge_adapters(again)
    assert not adapted_modules(again)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager")
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, adapted, **tolerance)
        assert torch.equal(tune.models.from_checkpoint(tmp_path / "merged")(tokens), again(tokens))


SETTINGS = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "rsdora": {"use_dora": True, "use_rslora": True},
    "lora-dropout": {"lora_dropout": 0.3},
    "dora-dropout": {"use_dora": True, "lora_dropout": 0.3},
}
TARGETS = {
    "q-v": ["q_proj", "v_proj"],
    "mlp": ["gate_proj", "up_proj", "down_proj"],
    "all": "all-linear",
}


def train(forward: Callable[[], Tensor], parameters: list[nn.Parameter], num_steps: int = 10) -> list[float]:
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.1)
    losses = []
    for step in range(num_steps):
        torch.manual_seed(step)  # the same numbers are dropped
        loss = forward()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize(
    ("case", "targets", "setting"),
    [
        *[("llama", "all", setting) for setting in SETTINGS],
        *[("llama", targets, "lora") for targets in ("q-v", "mlp")],
        *[
            (case, "all", setting)
            for case in ("qwen2", "gemma2", "qwen3.5")
            for setting in ("lora", "dora", "dora-dropout")
        ],
        ("llama-biases", "all", "dora"),
    ],
)
def test_ten_steps_are_those_of_peft(
    case: str, targets: str, setting: str, base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    base = base_of(case)
    torch.manual_seed(11)
    theirs = get_peft_model(
        base.theirs(),
        LoraConfig(
            r=4, lora_alpha=9, target_modules=TARGETS[targets], task_type="CAUSAL_LM", **SETTINGS[setting]
        ),
    ).train()
    stir([parameter for parameter in theirs.parameters() if parameter.requires_grad])
    theirs.save_pretrained(tmp_path / "start")
    ours = base.ours().train()
    load_adapter(ours, tmp_path / "start")

    tokens = base.tokens(3, 19)
    labels = tokens.roll(-1, 1)
    labels[1, 9:] = -100

    def their_loss() -> Tensor:
        return F.cross_entropy(theirs(tokens).logits.flatten(0, 1), labels.flatten(), reduction="mean")

    def our_loss() -> Tensor:
        return loss_sum(LinearCrossEntropyLoss(), ours, tokens, labels) / (labels != -100).sum()

    torch.manual_seed(0)
    their_loss().backward()
    torch.manual_seed(0)
    our_loss().backward()
    compare_gradients(ours, theirs)

    their_parameters = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    expected = train(their_loss, their_parameters)
    found = train(our_loss, list(adapter_parameters(ours).values()))
    assert expected[-1] < expected[0] - 0.05 or "dropout" in setting
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    theirs.save_pretrained(tmp_path / "theirs")
    save_adapter(ours, tmp_path / "ours", base=str(base.directory))
    end, their_end, start = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs", "start")
    )
    assert end.keys() == their_end.keys()
    for name, tensor in end.items():
        # AdamW's first steps depend on a gradient's sign alone, where it is as small as its rounding: on some machines
        # one element in 192 ends 1.4e-3 apart, after ten steps of up to 1e-2 each and losses that agree to 1e-5.
        off = (tensor - their_end[name]).abs()
        assert (off > 1e-3 + 1e-3 * their_end[name].abs()).float().mean() <= 0.01, name
        assert off.max() < 5e-3, name
        assert (tensor - start[name]).abs().max() > 0.005


def compare_gradients(ours: TransformerDecoder, theirs: nn.Module) -> None:
    names = {
        "self_attn": "attn", "linear_attn": "attn",
        "o_proj": "output_proj", "gate_proj": "w1", "down_proj": "w2", "up_proj": "w3",
        "lora_A.default": "lora_a", "lora_B.default": "lora_b",
        "lora_magnitude_vector.default.weight": "magnitude", "base_model.model.model.": "",
    }  # fmt: skip
    gradients = {}
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            for their_name, our_name in names.items():
                name = name.replace(their_name, our_name)
            gradients[name] = parameter.grad
    found = {
        name: parameter.grad for name, parameter in ours.named_parameters() if parameter.grad is not None
    }
    assert found.keys() == gradients.keys()
    for name, gradient in found.items():
        assert is_adapter(name)
        torch.testing.assert_close(gradient, gradients[name], rtol=2e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("modules", [ALL_ATTENTION, ("q_proj", "v_proj")], ids=["all", "q-v"])
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_fused_projections_train_as_the_blocks_of_one_adapter(
    modules: tuple[Any, ...], use_dora: bool, base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    base = base_of("phi4")
    ours = base.ours().train()
    apply_lora(
        ours,
        LoRAConfig(
            rank=3,
            alpha=7.0,
            attn_modules=modules,
            apply_to_mlp=len(modules) > 2,
            use_dora=use_dora,
            use_rslora=True,
        ),
    )
    stir(list(adapter_parameters(ours).values()))
    save_adapter(ours, tmp_path, base="")
    theirs = PeftModel.from_pretrained(base.theirs(), tmp_path, is_trainable=True).train()
    tokens = base.tokens(3, 17)
    logits = theirs(tokens).logits
    torch.testing.assert_close(ours(tokens), logits, **TOLERANCE)
    logits.square().mean().backward()
    ours(tokens).square().mean().backward()
    for index, layer in enumerate(theirs.base_model.model.model.layers):
        fused = layer.self_attn.qkv_proj
        a, b = fused.lora_A["default"].weight.grad, fused.lora_B["default"].weight.grad
        row = column = 0
        for name in ("q_proj", "k_proj", "v_proj"):
            module = getattr(ours.layers[index].attn, name)
            height = base.ours().get_parameter(f"layers.{index}.attn.{name}.weight").shape[0]
            if name in modules:
                part = slice(column, column + 3)
                torch.testing.assert_close(module.lora_a.weight.grad, a[part], rtol=2e-4, atol=2e-6)
                torch.testing.assert_close(
                    module.lora_b.weight.grad, b[row : row + height, part], rtol=2e-4, atol=2e-6
                )
                column += 3
            row += height
        assert a.shape[0] == column


def test_an_adapter_of_a_fused_projection_made_by_peft(
    base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    base = base_of("phi4-mini")
    theirs = get_peft_model(
        base.theirs(),
        LoraConfig(r=5, lora_alpha=9, target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM"),
    ).eval()
    stir([parameter for parameter in theirs.parameters() if parameter.requires_grad])
    theirs.save_pretrained(tmp_path / "theirs")
    ours = base.ours()
    load_adapter(ours, tmp_path / "theirs")
    assert {module.rank for module in adapted_modules(ours).values()} == {5}
    tokens = base.tokens(2, 19)
    with torch.no_grad():
        expected = theirs(tokens).logits
        torch.testing.assert_close(ours(tokens), expected, **TOLERANCE)
        # Written again, each of the three has its own A: the rank of the one adapter is three times theirs.
        save_adapter(ours, tmp_path / "ours", base="")
        again = PeftModel.from_pretrained(base.theirs(), tmp_path / "ours").eval()
        torch.testing.assert_close(again(tokens).logits, expected, **TOLERANCE)


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_a_model_built_without_memory(use_dora: bool, base_of: Callable[[str], Base], tmp_path: Path) -> None:
    base = base_of("qwen2")
    expected = base.ours()
    config = on_all_matrices(expected, use_dora=use_dora)
    apply_lora(expected, config)
    stir(list(adapter_parameters(expected).values()))
    save_adapter(expected, tmp_path, base="")
    with torch.device("meta"):
        ours = tune.models.auto(str(base.directory))
        apply_lora(ours, config)
    load_into(ours, open_weights(base.directory))
    reset_adapters(ours)
    tokens = base.tokens(2, 13)
    with torch.no_grad():
        assert torch.equal(ours(tokens), base.ours()(tokens))
        load_adapter(ours, tmp_path)
        assert torch.equal(ours(tokens), expected(tokens))
    with torch.device("meta"):
        ours = tune.models.auto(str(base.directory))
        apply_lora(ours, read_adapter_config(tmp_path, ours))
    load_into(ours, open_weights(base.directory), dtype=torch.bfloat16)
    load_adapter(ours, tmp_path, dtype=torch.float32)
    kinds = {is_adapter(name): parameter.dtype for name, parameter in ours.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    with torch.no_grad():
        drift = (ours(tokens).float() - expected(tokens)).std() / expected(tokens).std()
    assert drift < 0.05
