"""Weights that are frozen by name, and weights that an optimizer treats by rules of their own."""

from __future__ import annotations

import pytest
import torch

from tune.config.component import Component
from tune.errors import ConfigError
from tune.models.llama2 import llama2
from tune.models.qwen2 import qwen2
from tune.modules import TransformerDecoder
from tune.modules.peft import LoRAConfig, apply_lora
from tune.training import build_lr_scheduler, build_optimizer, freeze

SIZES = {
    "vocab_size": 31,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embed_dim": 24,
    "max_seq_len": 11,
}


@pytest.fixture
def model() -> TransformerDecoder:
    torch.manual_seed(5)
    return llama2(**SIZES, intermediate_dim=17)


def frozen(model: TransformerDecoder) -> set[str]:
    return {name for name, weight in model.named_parameters() if not weight.requires_grad}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("tok_embeddings", lambda name: name.startswith("tok_embeddings.")),
        ("layers.0-1", lambda name: name.startswith(("layers.0.", "layers.1."))),
        ("layers.2.attn", lambda name: name.startswith("layers.2.attn.")),
        ("attn.q_proj", lambda name: ".attn.q_proj." in name),
        ("*norm", lambda name: "norm" in name),
        ("layers.1-1.mlp", lambda name: name.startswith("layers.1.mlp.")),
    ],
)
def test_names_and_ranges_freeze_what_they_say(model, pattern: str, expected) -> None:
    assert freeze(model, [pattern]) is model
    meant = {name for name, _ in model.named_parameters() if expected(name)}
    assert meant
    assert frozen(model) == meant


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["tok_embedings"], "did you mean tok_embeddings?"),
        (["model.embed_tokens"], "did you mean tok_embeddings?"),
        (["layers.3-9"], "layers.0-2"),
        (["layers"], None),
        (["layer.0"], "layers.0-2"),
        (["*"], "nothing is left to train"),
    ],
)
def test_what_freezes_nothing_or_all_is_refused(model, patterns: list[str], said: str | None) -> None:
    if said is None:
        assert len(frozen(freeze(model, patterns))) == 27
        return
    with pytest.raises(ConfigError) as error:
        freeze(model, patterns)
    assert said in str(error.value)


def test_beside_adapters_only_they_can_be_frozen(model) -> None:
    apply_lora(model, LoRAConfig(rank=2, alpha=4.0, attn_modules=("q_proj",)))
    with pytest.raises(ConfigError, match="nothing of 'tok_embeddings' is trained"):
        freeze(model, ["tok_embeddings"])
    freeze(model, ["layers.0-1", "layers.1.attn"])
    left = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert [name.split(".")[1] for name in left] == ["2", "2"]


@pytest.mark.parametrize("in_backward", [False, True])
def test_norms_and_biases_keep_their_length_without_decay(in_backward: bool) -> None:
    """With gradients of zero, what decays is all that moves."""
    torch.manual_seed(5)
    model = qwen2(**SIZES, intermediate_dim=17)  # its projections have biases
    with torch.no_grad():
        for weight in model.parameters():
            weight.uniform_(0.5, 1.5)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    component = Component("torch.optim.AdamW", {"lr": 0.25, "weight_decay": 0.5})
    optimizer = build_optimizer(component, model, in_backward, decay_norms_and_biases=False)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    for part in getattr(optimizer, "parts", [optimizer]):
        part.step()
    for name, weight in model.named_parameters():
        kept = "norm" in name or name.endswith("bias")
        assert torch.allclose(weight, before[name] * (1.0 if kept else 1 - 0.25 * 0.5)), name


def test_the_embedding_has_a_rate_that_follows_the_schedule(model) -> None:
    component = Component("torch.optim.SGD", {"lr": 0.5})
    optimizer = build_optimizer(component, model, embedding_lr=0.125)
    cosine = Component("tune.training.lr_schedulers.get_cosine_schedule_with_warmup", {"num_warmup_steps": 4})
    schedule = build_lr_scheduler(cosine, optimizer, 8)
    optimizer.step()
    schedule.step()
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert optimizer.param_groups[0]["lr"] == 0.125
    for name, weight in model.named_parameters():
        assert rates[id(weight)] == (0.03125 if name == "tok_embeddings.weight" else 0.125)


def test_the_second_matrices_of_adapters_learn_faster(model) -> None:
    apply_lora(model, LoRAConfig(rank=2, alpha=4.0, attn_modules=("q_proj", "v_proj")))
    optimizer = build_optimizer(Component("torch.optim.AdamW", {"lr": 0.5}), model, loraplus_lr_ratio=16.0)
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    trained = {name: rates[id(weight)] for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(trained) == 12
    assert all(rate == (8.0 if "lora_b" in name else 0.5) for name, rate in trained.items())


@pytest.mark.parametrize(
    ("component", "settings", "said"),
    [
        (Component("torch.optim.AdamW", {"lr": 0.5}), {"loraplus_lr_ratio": 2.0}, "no effect"),
        (Component("torch.optim.AdamW"), {"loraplus_lr_ratio": 2.0}, "set lr"),
        (
            Component("torch.optim.Rprop", {"lr": 0.5}),
            {"decay_norms_and_biases": False},
            "has no weight_decay",
        ),
    ],
)
def test_a_rule_about_nothing_is_refused(model, component: Component, settings, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_optimizer(component, model, **settings)
