"""One contestant in a process of its own: it trains on random tokens and prints what that took.

    python -m benchmarks.h200.contestant '{"tool": "tune", "size": "8b", "seq_len": 4096, ...}'

Started by `benchmarks.h200.train`; the fields are those of `Contestant`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.setting import DTYPES, LEARNING_RATE, SIZES, Step
from tune.models.llama2 import llama2
from tune.modules import flops_per_token
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum
from tune.modules.optim import AdamW
from tune.modules.peft import LoRAConfig, adapter_parameters, apply_lora, reset_adapters
from tune.training import checkpoint_activations, clip_gradients, compile_blocks

WARM_UP_STEPS = 3
LORA_ALPHA = 32.0


@dataclass(frozen=True)
class Contestant:
    """Who does what.

    Args:
        tool: "tune", or "transformers" (with peft for adapters).
        method: "full", "lora" or "qlora": rank 16 on all linear layers of the blocks.
        size: a name of `benchmarks.setting.SIZES`.
        batch_size, seq_len: of the one micro-batch of a step.
        dtype: of weights and moments; adapters are fp32.
        compile: each block.
        recompute: the blocks' activations.
        steps: measured ones, after three that warm up.
        device: "cuda" or "cpu".
    """

    tool: str
    method: str
    size: str
    batch_size: int
    seq_len: int
    dtype: str = "bf16"
    compile: bool = True
    recompute: bool = False
    steps: int = 8
    device: str = "cuda"


def build_tune(work: Contestant) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    """Return tune's model as its recipes make it, with random weights, and its forward pass."""
    with torch.device("meta"):
        model = llama2(**SIZES[work.size], max_seq_len=work.seq_len)
    model.to(DTYPES[work.dtype]).to_empty(device=work.device)
    model.reset_parameters()
    if work.method != "full":
        apply_lora(
            model,
            LoRAConfig(
                rank=16,
                alpha=LORA_ALPHA,
                attn_modules=("q_proj", "k_proj", "v_proj", "output_proj"),
                apply_to_mlp=True,
                quantize_base=work.method == "qlora",
            ),
        )
        reset_adapters(model, torch.float32)
    if work.recompute:
        checkpoint_activations(model.layers)
    if work.compile:
        compile_blocks(model.layers)
    loss_fn = LinearCrossEntropyLoss()

    def forward(tokens: Tensor, labels: Tensor) -> Tensor:
        return loss_sum(loss_fn, model, tokens, labels) / labels.numel()

    return model.train(), forward


def build_transformers(work: Contestant) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    """Return transformers' Llama of the same sizes, peft's adapters on it where asked, and its forward pass."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = SIZES[work.size]
    config = LlamaConfig(
        vocab_size=sizes["vocab_size"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        num_key_value_heads=sizes.get("num_kv_heads", sizes["num_heads"]),
        hidden_size=sizes["embed_dim"],
        intermediate_size=sizes["intermediate_dim"],
        max_position_embeddings=work.seq_len,
        tie_word_embeddings=False,
        use_cache=False,
    )
    with torch.device(work.device):
        base = AutoModelForCausalLM.from_config(config, dtype=DTYPES[work.dtype], attn_implementation="sdpa")
    layers = base.model.layers
    model: nn.Module = base
    if work.method != "full":
        model = add_peft(base)
    if work.recompute:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    if work.compile:
        for layer in layers:
            layer.compile()
    head = base.lm_head
    loss_fn = find_peer_loss()

    def forward(tokens: Tensor, labels: Tensor) -> Tensor:
        mixed = work.method != "full"  # peft's adapters are fp32, and would make all of it fp32
        with torch.autocast(work.device, DTYPES[work.dtype], enabled=mixed):
            hidden = base.model(tokens).last_hidden_state  # [b, s, d]
            return loss_fn(head.weight, hidden.flatten(0, 1), labels.flatten())

    return model.train(), forward


def add_peft(base: nn.Module) -> nn.Module:
    """Return the base with peft's adapters of rank 16 on all linear layers of its blocks."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=16, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model: nn.Module = get_peft_model(base, config)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
    return model


def find_peer_loss() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return Liger's fused loss where it is installed, and torch's over all logits elsewhere."""
    if importlib.util.find_spec("liger_kernel"):
        liger: Any = importlib.import_module("liger_kernel.transformers")
        fused: Callable[[Tensor, Tensor, Tensor], Tensor] = liger.LigerFusedLinearCrossEntropyLoss()
        return fused

    def plain(weight: Tensor, hidden: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(nn.functional.linear(hidden, weight).float(), labels)

    return plain


def make_step(work: Contestant, model: nn.Module, forward: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """Return a whole optimizer step: each with the AdamW that its users get."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    of_tune = work.tool == "tune"
    kind = AdamW if of_tune else torch.optim.AdamW
    optimizer = kind(trained, lr=LEARNING_RATE, fused=True)

    def step(tokens: Tensor, labels: Tensor) -> Tensor:
        loss = forward(tokens, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        if of_tune:
            clip_gradients(trained, 1.0)
        else:
            nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def run(work: Contestant) -> dict[str, Any]:
    """Train, and return tokens per second (median of steps), peak bytes, losses and compiled graphs.

    Raises:
        SystemExit: a loss is no number, or the compiler gave up and ran a function as it is.
    """
    torch.manual_seed(0)
    # Until it runs out, the compiler answers a new shape with a new graph, and then in silence with none.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    build = build_tune if work.tool == "tune" else build_transformers
    model, forward = build(work)
    step = make_step(work, model, forward)
    vocab_size = SIZES[work.size]["vocab_size"]
    shape = (WARM_UP_STEPS + work.steps, work.batch_size, work.seq_len + 1)
    batches = torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(1)).to(work.device)
    losses, seconds, started = [], [], time.perf_counter()
    for index, batch in enumerate(batches):
        if index == WARM_UP_STEPS and work.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        losses.append(float(step(batch[:, :-1], batch[:, 1:])))  # waits for the loss
        if work.device == "cuda":
            torch.cuda.synchronize()  # and for the optimizer
        seconds.append(time.perf_counter() - begun)
    if not all(map(math.isfinite, losses)):
        sys.exit(f"the losses are no numbers: {losses}")
    num_tokens = work.batch_size * work.seq_len
    flops = None
    if work.tool == "tune":
        adapters = sum(weight.numel() for weight in adapter_parameters(model).values())
        flops = flops_per_token(model.config, work.seq_len, num_adapter_parameters=adapters or None)  # type: ignore[arg-type]
    measured = seconds[WARM_UP_STEPS:]
    return {
        **asdict(work),
        "tokens_per_s": num_tokens / statistics.median(measured),
        "tokens_per_s_least": num_tokens / max(measured),
        "warm_up_s": time.perf_counter() - started - sum(measured),
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 1024**3 if work.device == "cuda" else None,
        "flops_per_token": flops,
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        "liger": work.tool != "tune" and importlib.util.find_spec("liger_kernel") is not None,
        "losses": losses,
    }


if __name__ == "__main__":
    print(json.dumps(run(Contestant(**json.loads(sys.argv[1])))))
