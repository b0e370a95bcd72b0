"""What a run is predicted to need, beside what autograd keeps, optimizers hold and a whole step allocates."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from live_bytes import LiveBytes
from torch import nn

from tune.config.component import Component
from tune.data import DataReport
from tune.modules import (
    ClampedSwiGLU,
    DecoderConfig,
    FullAttentionConfig,
    GatedDeltaConfig,
    MoEConfig,
    PerLayerInputConfig,
    SharedKVConfig,
    TransformerDecoder,
)
from tune.modules.kernels.gated_delta_rule import working_bytes
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum
from tune.modules.peft import LoRAConfig, apply_lora, reset_adapters
from tune.modules.short_conv_config import ShortConvConfig
from tune.training import (
    LongestRow,
    PlannedRun,
    build_optimizer,
    checkpoint_activations,
    longest_row,
    plan_memory,
    plan_precision,
)
from tune.training.memory.available import available_memory, held_memory
from tune.training.memory.measure import without_memory
from tune.training.memory.optimizer_sizes import OptimizerSizes
from tune.training.memory.plan import MemoryPlan
from tune.training.memory.prediction import predict, weigh

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 211,
    "num_layers": 4,
    "num_heads": 6,
    "num_kv_heads": 2,
    "embed_dim": 96,
    "head_dim": 24,
    "intermediate_dim": 256,
    "max_seq_len": 512,
}
ALL = ("q_proj", "k_proj", "v_proj", "output_proj")
STATES = {"delta": GatedDeltaConfig((0, 1, 3), 3, 6, 20, 24), "attn_gate": True, "norm_offset": 1.0}
GPT_OSS = {
    "attn_sinks": True,
    "attn_bias": "all",
    "sliding_window": 20,
    "sliding_layers": (0, 2),
    "moe": MoEConfig(5, 3, 64, bias=True, clamped=ClampedSwiGLU()),
}
SHARING: dict[str, Any] = {
    "num_layers": 6,
    "local_rope_base": 300.0,
    "sliding_window": 20,
    "sliding_layers": (0, 2, 3, 5),
    "full_attention": FullAttentionConfig(32, 3, keys_as_values=True),
    "shared_kv": SharedKVConfig(3, 300),
    "per_layer_input": PerLayerInputConfig(211, 24),
    "qk_norm": "head",
    "v_norm": True,
    "layer_scale": True,
    "norm_placement": "both",
}
GATED = {
    "attn_gate": True,
    "attn_gate_apart": True,
    "qk_norm": "scaleless",
    "embed_norm": True,
    "norm_placement": "both",
    "norm_offset": 1.0,
    "final_norm_offset": 0.0,
    "post_norm_eps": 1e-8,
    "nope_layers": (3,),
    "sliding_window": 20,
    "sliding_layers": (0, 1, 2),
}
BESIDE = {"moe": MoEConfig(5, 3, 64, is_beside=True), "norm_placement": "both"}
CASES: dict[str, dict[str, Any]] = {
    "sharing": {**SHARING},
    "sharing_fp32": {**SHARING, "dtype": "fp32", "packed": True},
    "sharing_autocast": {**SHARING, "param_dtype": "fp32"},
    "sharing_qlora": {**SHARING, "lora": LoRAConfig(quantize_base=True, apply_to_mlp=True)},
    "moe_beside": {**BESIDE},
    "bf16": {},
    "fp32": {"dtype": "fp32"},
    "autocast": {"param_dtype": "fp32"},
    "long": {"shape": (2, 200)},
    "qk_norm_post": {"qk_norm": "head", "norm_placement": "post"},
    "olmo2": {"qk_norm": "width", "norm_placement": "post", "dtype": "fp32"},
    "gemma2": {
        "attn_softcap": 50.0,
        "final_softcap": 30.0,
        "norm_placement": "both",
        "norm_offset": 1.0,
        "sliding_window": 20,
        "sliding_layers": (0, 2),
    },
    "gated": {**GATED},
    "gated_qlora": {
        **GATED,
        "packed": True,
        "lora": LoRAConfig(attn_modules=("gate_proj", "q_proj"), quantize_base=True),
    },
    "window": {"sliding_window": 20, "sliding_layers": (0, 2), "shape": (3, 150)},
    "dropout": {"attn_dropout": 0.1},
    "phi": {"rotary_dim": 12, "attn_bias": "all", "mlp_bias": True},
    "packed": {"packed": True},
    "states": {**STATES},
    "states_fp32": {**STATES, "dtype": "fp32", "packed": True, "shape": (2, 150)},
    "states_autocast": {**STATES, "param_dtype": "fp32"},
    "convolutions": {"conv": ShortConvConfig((0, 1, 3)), "qk_norm": "head"},
    "convolutions_packed": {"conv": ShortConvConfig((0, 1, 3), 4), "packed": True, "dtype": "fp32"},
    "moe": {"moe": MoEConfig(5, 3, 64)},
    "moe_fp32": {"moe": MoEConfig(7, 2, 80, dense_layers=(0,)), "dtype": "fp32"},
    "gpt_oss": {**GPT_OSS, "shape": (3, 150)},
    "gpt_oss_packed": {**GPT_OSS, "packed": True, "dtype": "fp32"},
    "gpt_oss_lora": {**GPT_OSS, "lora": LoRAConfig(apply_to_mlp=True)},
    "lora": {"lora": LoRAConfig(rank=4)},
    "lora_all": {"lora": LoRAConfig(apply_to_mlp=True, attn_modules=ALL, dropout=0.1)},
    "lora_fp32": {"lora": LoRAConfig(), "dtype": "fp32"},
    "lora_autocast": {"lora": LoRAConfig(), "param_dtype": "fp32"},
    "lora_moe": {"lora": LoRAConfig(), "moe": MoEConfig(5, 3, 64)},
    "lora_experts": {"lora": LoRAConfig(apply_to_mlp=True), "moe": MoEConfig(5, 3, 64)},
    "dora": {"lora": LoRAConfig(use_dora=True, apply_to_mlp=True)},
    "dora_dropout": {"lora": LoRAConfig(use_dora=True, dropout=0.1)},
    "qlora": {"lora": LoRAConfig(quantize_base=True, apply_to_mlp=True)},
    "qlora_dropout": {"lora": LoRAConfig(quantize_base=True, dropout=0.1)},
}


def make_model(lora: LoRAConfig | None = None, **sizes: Any) -> TransformerDecoder:
    torch.manual_seed(0)
    model = TransformerDecoder(DecoderConfig(**{**SIZES, **sizes}))
    if lora:
        apply_lora(model, lora)
    return model


def make(
    *,
    dtype: str = "bf16",
    param_dtype: str | None = None,
    lora: LoRAConfig | None = None,
    shape: tuple[int, int] = (3, 64),
    loss_fn: nn.Module | None = None,
    optimizer: str = "AdamW",
    device: torch.device = CPU,
    steps: int = 1,
    packed: bool = False,
    recompute: Any = False,
    in_backward: bool = False,
    **sizes: Any,
) -> tuple[TransformerDecoder, MemoryPlan]:
    precision = plan_precision(dtype, param_dtype, device)
    model = make_model(**sizes).to(precision.param_dtype)
    if lora:
        apply_lora(model, lora)
        reset_adapters(model, torch.float32)
    run = PlannedRun(
        model,
        loss_fn or LinearCrossEntropyLoss(),
        precision,
        optimizer=Component(f"torch.optim.{optimizer}", {"lr": 1e-3}),
        batch_size=shape[0],
        accumulates=steps > 1,
        activation_checkpointing=recompute,
        optimizer_in_backward=in_backward,
    )
    return model.train(), plan_memory(run, LongestRow(shape[1], is_packed=packed), device)


def make_batch(plan: MemoryPlan, seed: int = 0) -> dict[str, torch.Tensor | None]:
    b, s = plan.run.batch_size, plan.run.seq_len
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, SIZES["vocab_size"], (b, s), generator=generator)
    labels = torch.randint(0, SIZES["vocab_size"], (b, s), generator=generator)
    batch: dict[str, torch.Tensor | None] = {"tokens": tokens, "labels": labels}
    if plan.run.is_packed:
        batch["input_pos"] = torch.arange(s).repeat(b, 1)
    return batch


# ---- activations


@pytest.mark.parametrize("name", CASES)
def test_what_autograd_keeps_was_predicted(name: str) -> None:
    """Within 4%: left out are an adapter's weights cast to the products' dtype, and scalars."""
    model, plan = make(**CASES[name])
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    batch = make_batch(plan)
    precision = plan_precision(
        CASES[name].get("dtype", "bf16"), CASES[name].get("param_dtype"), torch.device("cpu")
    )
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precision.autocast():
        hidden = model.hidden(batch["tokens"], input_pos=batch.get("input_pos"))
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    parts = plan.prediction.parts
    predicted = parts["activations"][0]
    casts = parts.get("weights cast by autocast", (0.0,))[0]
    assert hidden.requires_grad
    assert predicted + casts == pytest.approx(measured, rel=0.04)


class ThreeGates(nn.Module):
    """A feed-forward that tune does not know: three wide products are kept, and a squared one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrices = nn.ModuleList(nn.Linear(width, 3 * width, bias=False) for _ in range(3))
        self.back = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, third = (matrix(x) for matrix in self.matrices)
        out: torch.Tensor = self.back((first.sigmoid() * second).square() * third)
        return out


def replan(plan: MemoryPlan, model: TransformerDecoder) -> MemoryPlan:
    return plan_memory(replace(plan.run, model=model), LongestRow(plan.run.seq_len), CPU)


def test_a_block_of_ones_own_is_measured_as_any_other() -> None:
    model, plan = make(dtype="fp32")
    model.layers[1].mlp = ThreeGates(SIZES["embed_dim"])  # type: ignore[assignment]
    own = replan(plan, model)
    measured = measure_moments(model, own, {"dtype": "fp32"})
    predicted = [
        size - own.prediction.parts["torch's own code, loaded on first use"][0]
        for size in own.prediction.moments
    ]
    assert predicted == pytest.approx(measured, rel=0.01)


class LooksAtValues(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * len(x.unique())


def test_what_cannot_be_measured_is_said() -> None:
    """A module whose shapes depend on values leaves weights and states, and no verdict but of those."""
    model, plan = make(dtype="fp32")
    model.layers[2].mlp = LooksAtValues()  # type: ignore[assignment]
    own = replan(plan, model)
    assert own.prediction.parts.keys() >= {"gradients", "optimizer (AdamW, 4 B per bf16 weight)"}
    assert "without activations and loss, which cannot be measured (" in own.verdict()
    assert with_room(own, 2.0).fits is None
    assert with_room(own, 0.9).fits is False
    assert own.advice() == ()  # nothing is compared with what is not known


def test_planning_takes_no_memory_and_leaves_the_model_alone() -> None:
    with torch.device("meta"):
        model = make_model(num_layers=3, embed_dim=8192, intermediate_dim=2**16, num_heads=64, head_dim=128)
    _, plan = make(dtype="fp32")
    before, held = dict(model.named_parameters()), held_memory(CPU)
    planned = replan(plan, model)
    assert planned.prediction.moments[2] > 2**34
    assert held_memory(CPU) - held < 2**28
    assert all(weight is before[name] and weight.grad is None for name, weight in model.named_parameters())


# ---- a whole step

STEPS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "fp32": {"dtype": "fp32"},
    "autocast": {"param_dtype": "fp32"},
    "accumulated": {"steps": 2},
    "recomputed": {"recompute": True, "dtype": "fp32"},
    "recomputed_autocast": {"recompute": True, "param_dtype": "fp32"},
    "in_backward": {"in_backward": True, "shape": (3, 30)},
    "few_tokens": {"shape": (1, 8), "dtype": "fp32"},
    "large_head": {"vocab_size": 4001},
    "tied_head": {"vocab_size": 3001, "tie_word_embeddings": True},
    "all_logits": {"loss_fn": nn.CrossEntropyLoss(reduction="sum"), "vocab_size": 2011},
    "all_logits_fp32": {"loss_fn": nn.CrossEntropyLoss(reduction="sum"), "vocab_size": 2011, "dtype": "fp32"},
    "sgd": {"optimizer": "SGD"},
    "lora": {"lora": LoRAConfig()},
    "qlora": {"lora": LoRAConfig(quantize_base=True)},
    "moe": {"moe": MoEConfig(5, 3, 64)},
    "packed": {"packed": True},
    "states": {**STATES, "packed": True},
    "gemma2": CASES["gemma2"],
    "gpt_oss": CASES["gpt_oss"],
    "sharing": CASES["sharing"],
    "sharing_inputs": {
        **SHARING,
        "num_layers": 24,
        "intermediate_dim": 50,
        "sliding_layers": tuple(layer for layer in range(24) if layer % 6 < 5),
        "shared_kv": SharedKVConfig(12, 50),
        "per_layer_input": PerLayerInputConfig(211, 100),
        "recompute": True,
        "shape": (5, 200),
    },
    "sharing_recomputed": {**SHARING, "recompute": True, "dtype": "fp32", "packed": True},
    "moe_beside": CASES["moe_beside"],
    "convolutions": CASES["convolutions_packed"],
}


@pytest.mark.parametrize("name", STEPS)
def test_the_peak_of_a_step_was_predicted(name: str) -> None:
    """Within 2%, where it is not the fullest moment 3%: casts and 4-bit weights are taken for the largest there is."""
    case = STEPS[name]
    model, plan = make(**case)
    measured = measure_moments(model, plan, case)
    if delta := case.get("delta"):  # what the operator takes for itself shows in none of its results
        sizes = (delta.num_value_heads, delta.key_head_dim, delta.value_head_dim)
        measured[1] += working_bytes(plan.run.batch_size, plan.run.seq_len, *sizes)
    parts = {part: sizes for part, sizes in plan.prediction.parts.items() if "first use" not in part}
    predicted = [sum(sizes[i] for sizes in parts.values()) for i in range(3)]
    assert max(predicted) == pytest.approx(max(measured), rel=0.02)
    assert predicted[0] == pytest.approx(measured[0], rel=0.03)
    assert predicted[2] == pytest.approx(measured[2], rel=0.02)
    if name.startswith("all_logits"):  # their gradient beside them
        assert parts["loss"][1] == pytest.approx(2 * parts["loss"][0], rel=0.01)


def measure_moments(model: TransformerDecoder, plan: MemoryPlan, case: dict[str, Any]) -> list[int]:
    """Return the most bytes alive in the forward pass, in the backward pass and at the step, of a second step."""
    checkpoint_activations(model.layers[: plan.num_recomputed])
    in_backward = plan.run.optimizer_in_backward
    component = Component(f"torch.optim.{case.get('optimizer', 'AdamW')}", {"lr": 1e-3})
    optimizer = build_optimizer(component, model.parameters(), in_backward=in_backward)
    precision = plan_precision(case.get("dtype", "bf16"), case.get("param_dtype"), CPU)
    loss_fn = case.get("loss_fn") or LinearCrossEntropyLoss()
    peaks = [0, 0, 0]
    with LiveBytes() as live:
        live.adopt(*model.parameters(), *model.buffers())
        for step in range(2):
            peaks = [0, 0, 0]
            for micro_step in range(case.get("steps", 1)):
                batch = make_batch(plan, seed=2 * step + micro_step)
                labels, tokens = batch["labels"], batch["tokens"]
                assert labels is not None
                assert tokens is not None
                live.peak = live.now
                with precision.autocast():
                    loss = loss_sum(loss_fn, model, tokens, labels, None, batch.get("input_pos"))
                peaks[0], live.peak = max(peaks[0], live.peak), live.now
                loss.backward()
                del loss
                peaks[1], live.peak = max(peaks[1], live.peak), live.now
            if not in_backward:
                optimizer.step()
            peaks[2] = live.peak
            optimizer.zero_grad()
    return peaks


def pretend_available(num_bytes: float, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "meminfo").write_text(f"MemAvailable: {int(num_bytes / 1024)} kB\n")
    monkeypatch.setattr("tune.training.memory.available._PROC", folder)


def test_as_few_blocks_as_fit_are_recomputed(tmp_path: Path, monkeypatch) -> None:
    case: dict[str, Any] = {"shape": (4, 120), "dtype": "fp32"}
    _, every = make(**case, recompute=True)
    _, none = make(**case)
    assert every.peak < none.peak
    found = []
    for room in (none.peak, (none.peak + every.peak) / 2, every.peak, every.peak / 2):
        pretend_available(room / 0.75 + 2048, tmp_path, monkeypatch)
        model, plan = make(**case, recompute="auto")
        found.append(plan.num_recomputed)
        assert plan.is_tight == (room == every.peak / 2)
        if plan.num_recomputed:  # one less would not do
            assert predict(replace(plan.run, num_recomputed=plan.num_recomputed - 1)).peak > room
        own_code = plan.prediction.parts["torch's own code, loaded on first use"][0]
        assert max(measure_moments(model, plan, case)) == pytest.approx(plan.peak - own_code, rel=0.12)
    assert 0 == found[0] < found[1] < found[2] == 3  # what the last block keeps is wanted at once
    assert found[3] == 4
    assert "4 of 4 blocks recomputed (auto: none can be left out)" in plan.verdict()


def test_all_blocks_are_recomputed_where_nothing_is_known(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tune.training.memory.available._PROC", tmp_path)
    _, plan = make(recompute="auto")
    assert (plan.available, plan.num_recomputed) == (None, 4)


# ---- weights and optimizers


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("AdamW", {}),
        ("Adam", {"amsgrad": True}),
        ("SGD", {}),
        ("SGD", {"momentum": 0.9}),
        ("RMSprop", {"momentum": 0.9, "centered": True}),
        ("Adagrad", {}),
        ("Adafactor", {}),
        ("Muon", {}),
        ("NAdam", {}),
    ],
)
def test_what_an_optimizer_keeps_was_predicted(name: str, settings: dict[str, Any]) -> None:
    weight = nn.Parameter(torch.ones(60, 70, dtype=torch.bfloat16))
    optimizer = getattr(torch.optim, name)([weight], lr=0.01, **settings)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    )
    sizes = OptimizerSizes(Component(f"torch.optim.{name}", settings), "cpu")
    # Beside it stand counts of steps.
    assert sizes.state_of((60, 70), torch.bfloat16).kept == pytest.approx(kept, abs=20)
    assert "unknown" not in str(sizes)


def test_8_bit_and_unknown_optimizers() -> None:
    eight = OptimizerSizes(Component("bitsandbytes.optim.AdamW8bit", {"lr": 1e-3}), "cpu")
    assert eight.state_of((4096, 512), torch.bfloat16).kept / (4096 * 512) == pytest.approx(2, rel=0.02)
    assert eight.state_of((96,), torch.bfloat16).kept == 2 * 96 * 4
    unknown = OptimizerSizes(Component("mine.Lamb", {}), "cpu")
    assert str(unknown) == "Lamb: unknown, taken as 2 tensors per weight"
    assert unknown.state_of((30, 7), torch.float32).kept == 2 * 30 * 7 * 4


def test_a_step_in_pieces_is_measured_on_two_of_them() -> None:
    """All 16,384 of this weight would take a minute."""
    sizes = OptimizerSizes(Component("tune.modules.optim.AdamW", {"lr": 1e-3}), "cpu")
    vast, few = sizes.state_of((1 << 30,), torch.bfloat16), sizes.state_of((1 << 17,), torch.bfloat16)
    assert (vast.kept, few.kept) == (4 << 30, 4 << 17)
    assert 0 < few.working <= vast.working < 1 << 24


def test_weights_are_counted_to_the_byte_with_memory_and_without() -> None:
    for lora in (None, LoRAConfig(), LoRAConfig(quantize_base=True, apply_to_mlp=True)):
        for tied in (False, True):
            model, plan = make(lora=lora, tie_word_embeddings=tied)
            weights = weigh(plan.run.model)
            held = (*model.parameters(), *model.buffers())
            own = sum(tensor.nbytes for name, tensor in model.named_buffers() if "nf4" in name)
            assert weights.total == sum(tensor.nbytes for tensor in held)
            assert weights.quantized == own
            assert weights.trained == sum(p.nbytes for p in model.parameters() if p.requires_grad)
            with torch.device("meta"):
                empty = make_model(lora, tie_word_embeddings=tied).to(torch.bfloat16)
            assert weigh(without_memory(empty, torch.bfloat16)) == weights


def test_a_judged_lora_is_the_lora_there_would_be() -> None:
    """The advice to use adapters rests on a model that has none."""
    _, full = make(embed_dim=192, num_layers=5)
    for quantize in (False, True):
        _, real = make(embed_dim=192, num_layers=5, lora=LoRAConfig(quantize_base=quantize))
        setting = "tune run lora_finetune" + (" quantize_base=true" if quantize else "")
        found = {advice.setting: advice.saved for advice in full.advice()}
        assert full.peak - found[setting] == pytest.approx(real.peak, rel=0.01)


@pytest.mark.parametrize("sizes", [{}, STATES, {"moe": MoEConfig(5, 3, 64)}], ids=["", "states", "moe"])
def test_a_judged_4_bit_base_is_the_one_there_would_be(sizes: dict[str, Any]) -> None:
    sizes = {**sizes, "embed_dim": 384, "intermediate_dim": 2048, "shape": (1, 8)}
    _, plain = make(lora=LoRAConfig(), **sizes)
    _, real = make(lora=LoRAConfig(quantize_base=True), **sizes)
    (advice,) = (each for each in plain.advice() if each.setting == "quantize_base=true")
    changed = predict(replace(plain.run, **advice.changes)).parts
    assert changed["4-bit base"] == real.prediction.parts["4-bit base"]
    assert plain.peak - advice.saved == pytest.approx(real.peak)


# ---- many ranks


def test_shards_and_what_is_gathered() -> None:
    """The states are cut into four; of the weights two blocks, and what is outside them, stand whole."""
    model, plan = make(dtype="fp32")
    sharded = predict(replace(plan.run, shard_dim=4))
    whole, parts = plan.prediction.parts, sharded.parts
    for name in whole:
        if name.startswith(("weights", "optimizer", "gradients")):
            assert parts[name][2] == pytest.approx(whole[name][2] / 4, rel=1e-6)
    block = sum(weight.nbytes for weight in model.layers[0].parameters())
    outside = sum(weight.nbytes for name, weight in model.named_parameters() if "layers" not in name)
    assert parts["FSDP's gathered blocks"][0] == 2 * block + outside
    assert parts["activations"] == whole["activations"]
    offloaded = predict(replace(plan.run, shard_dim=4, cpu_offload=True))
    states = sum(weight.nbytes for weight in model.parameters()) * 4  # with gradients and two moments
    assert offloaded.on_host == pytest.approx(states / 4, rel=1e-6)
    assert not any(name.startswith(("weights", "optimizer", "gradients")) for name in offloaded.parts)


def test_offloaded_activations_are_on_the_host() -> None:
    _, plan = make(device=CPU)
    moved = predict(replace(plan.run, activation_offloading=True))
    kept = plan.prediction.parts["activations"][0]
    assert moved.on_host == pytest.approx(kept, rel=0.05)
    assert moved.parts["activations"][0] < 0.35 * kept  # one block of four, and the last norm


# ---- what is said


def with_room(plan: MemoryPlan, share: float | None) -> MemoryPlan:
    return replace(plan, available=None if share is None else int(plan.peak * share))


def test_a_plan_that_fits_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    _, plan = make()
    caplog.set_level(logging.INFO, logger="tune")
    with_room(plan, 2.0).log()
    record = caplog.records[-1]
    assert record.levelname == "INFO"
    assert record.message.endswith("available on cpu: fits")
    assert with_room(plan, 1.1).verdict().endswith("tight")
    assert with_room(plan, None).verdict().endswith("what cpu has is not known")


def test_a_plan_that_does_not_fit_warns_with_what_would(caplog: pytest.LogCaptureFixture) -> None:
    _, plan = make(shape=(8, 128))
    with_room(plan, 0.9).log()
    record = caplog.records[-1]
    assert record.levelname == "WARNING"
    lines = record.message.splitlines()
    assert "at the loss" in lines[0]
    assert any(line.startswith("weights, ") for line in lines)
    assert any("it will probably run out of memory" in line for line in lines)
    assert any("enable_activation_checkpointing=true: -" in line for line in lines)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_advice_says_what_the_changed_run_would_be_predicted(dtype: str) -> None:
    case = {"shape": (8, 128), "dtype": dtype, "vocab_size": 2011}
    loss_fn = nn.CrossEntropyLoss(reduction="sum")
    _, plan = make(**case, loss_fn=loss_fn)
    found = {advice.setting: advice.saved for advice in plan.advice()}
    changed = {
        "enable_activation_checkpointing=true": {**case, "loss_fn": loss_fn, "recompute": True},
        "batch_size=4": {**case, "loss_fn": loss_fn, "shape": (4, 128), "steps": 2},
        "batch_size=1": {**case, "loss_fn": loss_fn, "shape": (1, 128), "steps": 8},
        "tokenizer.max_seq_len=64": {**case, "loss_fn": loss_fn, "shape": (8, 64)},
        "loss=LinearCrossEntropyLoss": case,
    }
    if dtype == "fp32":
        changed["dtype=bf16 param_dtype=bf16"] = {**case, "loss_fn": loss_fn, "dtype": "bf16"}
    for setting, arguments in changed.items():
        _, other = make(**arguments)
        assert found[setting] == pytest.approx(plan.peak - other.peak), setting
        assert found[setting] > 0
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_settings_that_fit_only_together_are_named_together() -> None:
    _, plan = make(shape=(8, 128), dtype="fp32")
    best = max(advice.saved for advice in plan.advice(usable=plan.peak))
    usable = 0.98 * (plan.peak - best)
    together = plan.advice(usable)[-1]
    assert " and " in together.setting
    assert plan.peak - together.saved <= usable
    # Where nothing suffices, nothing is promised.
    assert not any(plan.peak - advice.saved <= 1e4 for advice in plan.advice(usable=1e4))


def test_the_longest_row() -> None:
    assert longest_row(DataReport(longest=70)) == LongestRow(70)
    assert longest_row(DataReport(longest=70, max_seq_len=50)) == LongestRow(50)
    assert longest_row(DataReport(longest=40, max_seq_len=50)) == LongestRow(40)
    assert longest_row(DataReport(longest=40, max_seq_len=50, num_packs=3)) == LongestRow(50, is_packed=True)


def test_predicted_beside_measured() -> None:
    _, plan = make()
    seen = (plan.run.batch_size, plan.run.seq_len)
    line = plan.compare(0.5 * plan.peak, seen)
    assert line.startswith("memory: ")
    assert "measured (-50%): on a CPU only growth is seen" in line  # a large difference is explained
    close = plan.compare(0.9 * plan.peak, seen)
    assert close.endswith("measured (-10%)")
    shorter = plan.compare(plan.peak, (3, 8))
    assert "(+" in shorter  # fewer tokens were predicted to need less
    first = re.search(r"memory: [\d.]+ GiB predicted", plan.verdict())
    assert first
    assert shorter.startswith(first.group())  # one prediction, the same in both lines
    held = [torch.ones(30, 2**20) for _ in range(2)]  # 240 MiB
    grown = replace(plan, held_before=held_memory(CPU) - 2 * held[0].nbytes)
    measured = re.search(r"([\d.]+) GiB measured", grown.compare(grown.measure(), seen))
    assert measured
    assert float(measured[1]) >= 0.22


# ---- what there is


def test_ranks_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = available_memory(CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    shared = available_memory(CPU)
    assert alone is not None
    assert shared is not None
    assert shared == pytest.approx(alone / 4, rel=0.3)  # others come and go meanwhile


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: int) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
    (proc / "self/cgroup").write_text("4:memory:/jobs/a\n" if version == 1 else "0::/jobs/a\n")
    root = groups / "memory" if version == 1 else groups
    (root / "jobs/a").mkdir(parents=True)
    limit = "memory.limit_in_bytes" if version == 1 else "memory.max"
    usage = "memory.usage_in_bytes" if version == 1 else "memory.current"
    (root / "jobs" / limit).write_text("3000000000\n")
    (root / "jobs" / usage).write_text("1000000000\n")
    (root / "jobs/memory.stat").write_text(f"{'total_' if version == 1 else ''}inactive_file 300000000\n")
    (root / "jobs/a" / limit).write_text("9223372036854771712\n" if version == 1 else "max\n")
    (root / "jobs/a" / usage).write_text("900000000\n")
    monkeypatch.setattr("tune.training.memory.available._PROC", proc)
    monkeypatch.setattr("tune.training.memory.available._CGROUPS", groups)
    assert available_memory(CPU) == 2_300_000_000
    (root / "jobs" / limit).write_text("90000000000\n")
    assert available_memory(CPU) == 8_192_000_000


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["bf16", "autocast", "recomputed", "all_logits", "lora", "qlora", "packed"])
def test_the_peak_on_a_gpu_was_predicted(name: str) -> None:
    device = torch.device("cuda", 0)
    case = {
        **STEPS[name],
        "shape": (4, 512),
        "num_layers": 6,
        "embed_dim": 768,
        "head_dim": 64,
        "num_heads": 12,
        "num_kv_heads": 4,
        "intermediate_dim": 2048,
    }
    model, plan = make(**case, device=device)
    model.to(device)
    checkpoint_activations(model.layers[: plan.num_recomputed])
    optimizer = build_optimizer(
        Component("torch.optim.AdamW", {"lr": 1e-3}), model.parameters(), in_backward=False
    )
    loss_fn = case.get("loss_fn") or LinearCrossEntropyLoss()
    precision = plan_precision(case.get("dtype", "bf16"), case.get("param_dtype"), device)
    before = torch.cuda.memory_allocated(device) - int(weigh(plan.run.model).total)
    torch.cuda.reset_peak_memory_stats(device)
    for step in range(3):
        batch = {key: value.to(device) for key, value in make_batch(plan, step).items() if value is not None}
        with precision.autocast():
            positions = batch.get("input_pos")
            loss = loss_sum(loss_fn, model, batch["tokens"], batch["labels"], None, positions)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    measured = torch.cuda.max_memory_allocated(device) - before
    assert plan.peak == pytest.approx(measured, rel=0.15)
