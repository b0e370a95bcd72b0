"""How fast adapters are trained, and what memory that takes: tune's LoRA beside peft's, on the same weights and tokens.

    OMP_NUM_THREADS=1 python -m benchmarks.lora --size 110m --seq-len 256 --cpu-time
    python -m benchmarks.lora --size 7b --device cuda --dtype bf16 --seq-len 4096 --modules all --base nf4

Contestants start from the same files, base and adapter, and take the same optimizer steps (fused AdamW) on the same
random tokens, in turn, each round beginning with another one; their losses must agree, or the figures are worth
nothing. Then each trains once more in a process of its own, which says how much memory it took. peft works on a base
in 4 bits where bitsandbytes is installed; elsewhere tune is alone with it. Formulas are in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.checkpoints import describe_cpu, read_memory
from benchmarks.setting import (
    DTYPES,
    LOSS_TOLERANCE,
    SIZES,
    Step,
    check_same_work,
    describe_machine,
    describe_rates,
    draw_batches,
    make_step,
    measure_limit,
    parse_steps,
    take_turns,
    write_figures,
)
from tune.checkpoints import load_adapter, load_into, open_weights, save_adapter, save_model
from tune.models.llama2 import llama2
from tune.modules import DecoderConfig, flops_per_token
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum
from tune.modules.peft import LoRAConfig, adapter_parameters, apply_lora, reset_adapters
from tune.training import compile_blocks

MIB = 1024**2
NF4_BLOCK = 64
# The second step is the first one that holds the optimizer's state from its beginning.
MEMORY_STEPS = 2


def lora_config(arguments: argparse.Namespace) -> LoRAConfig:
    all_linears = arguments.modules == "all"
    return LoRAConfig(
        rank=arguments.rank,
        alpha=arguments.alpha,
        attn_modules=("q_proj", "k_proj", "v_proj", "output_proj") if all_linears else ("q_proj", "v_proj"),
        apply_to_mlp=all_linears,
        quantize_base=arguments.base == "nf4",
    )


def make_start(arguments: argparse.Namespace, folder: Path) -> tuple[DecoderConfig, int]:
    """Write a random base and a random adapter, whose B is not zero; return the sizes and the adapter's."""
    torch.manual_seed(0)
    model = llama2(**SIZES[arguments.size], max_seq_len=arguments.seq_len)
    save_model(model, folder / "base", dtype=DTYPES[arguments.dtype])
    apply_lora(model, lora_config(argparse.Namespace(**{**vars(arguments), "base": "dense"})))
    adapters = adapter_parameters(model)
    with torch.no_grad():
        for name, weight in adapters.items():
            if ".lora_b." in name:
                weight.normal_(std=0.02)
    save_adapter(model, folder / "adapter", str(folder / "base"))
    return model.config, sum(weight.numel() for weight in adapters.values())


def prepare_tune(arguments: argparse.Namespace, folder: Path) -> tuple[nn.Module, Iterable[nn.Module], Step]:
    """Return the model as tune's recipe makes it, its blocks, and a forward pass."""
    with torch.device("meta"):
        model = llama2(**SIZES[arguments.size], max_seq_len=arguments.seq_len)
        apply_lora(model, lora_config(arguments))
    model.to(DTYPES[arguments.dtype])
    load_into(model, open_weights(folder / "base"), device=torch.device(arguments.device))
    reset_adapters(model, torch.float32)
    load_adapter(model, folder / "adapter")
    if arguments.compile:
        compile_blocks(model.layers)
    loss_fn = LinearCrossEntropyLoss()

    def forward(tokens: Tensor, labels: Tensor) -> Tensor:
        return loss_sum(loss_fn, model, tokens, labels) / labels.numel()

    return model, model.layers, forward


def prepare_peft(arguments: argparse.Namespace, folder: Path) -> tuple[nn.Module, Iterable[nn.Module], Step]:
    """Return the model as transformers and peft make it, its blocks, and a forward pass as Trainer has it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    dtype = DTYPES[arguments.dtype]
    in_4_bits: dict[str, Any] = {}
    if arguments.base == "nf4":
        in_4_bits["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    base = AutoModelForCausalLM.from_pretrained(
        folder / "base", dtype=dtype, device_map=arguments.device, **in_4_bits
    )
    if arguments.device == "cpu":
        # Out of the mapped file, all of whose pages would count for as long as one tensor stays in it.
        for weight in base.parameters():
            weight.data = weight.data.clone()
    model = PeftModel.from_pretrained(base, str(folder / "adapter"), is_trainable=True)
    if arguments.compile:
        for layer in base.model.layers:
            layer.compile()
    # Adapters are fp32, here as there: without autocast, so would be all that they compute.
    mixed = dtype != torch.float32

    def forward(tokens: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(arguments.device, dtype) if mixed else nullcontext():
            logits = model(tokens, use_cache=False).logits.float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    return model, base.model.layers, forward


Prepare = Callable[[argparse.Namespace, Path], tuple[nn.Module, Iterable[nn.Module], Step]]
CONTESTANTS: dict[str, Prepare] = {"tune": prepare_tune, "peft": prepare_peft}


def measure_memory(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Be one contestant: train alone, and return what memory that took beyond what was there before its model."""
    device = torch.device(arguments.device)
    prepare = CONTESTANTS[name]
    # What any first step brings along (imports, work spaces) is no part of what this model takes.
    trifling = argparse.Namespace(**{**vars(arguments), "size": "tiny", "compile": False})
    with tempfile.TemporaryDirectory() as trifle:
        make_start(trifling, Path(trifle))
        model, _, forward = prepare(trifling, Path(trifle))
        make_step(model.train(), forward)(*torch.ones(2, 1, 8, dtype=torch.long, device=device))
        del model, forward
    before = read_memory(os.getpid())["VmRSS"]
    model, blocks, forward = prepare(arguments, folder)
    step = make_step(model.train(), forward)
    batches = draw_batches(arguments, SIZES[arguments.size]["vocab_size"])[:MEMORY_STEPS]
    reset_peak(device)
    losses = [float(step(batch[:, :-1], batch[:, 1:])) for batch in batches]
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = read_memory(os.getpid())["VmHWM"] - before
    saved, saved_in_blocks = saved_bytes(
        model, blocks, lambda: forward(batches[0][:, :-1], batches[0][:, 1:])
    )
    return {
        "peak_memory_mib": peak / MIB,
        "saved_activations_mib": saved / MIB,
        "saved_activations_mib_per_block": saved_in_blocks / len(list(blocks)) / MIB,
        "losses": losses,
    }


def reset_peak(device: torch.device) -> None:
    """Begin the peak anew, so that what loading took is no part of it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): VmHWM becomes VmRSS


def saved_bytes(
    model: nn.Module, blocks: Iterable[nn.Module], forward: Callable[[], Tensor]
) -> tuple[int, int]:
    """Return bytes that one forward pass keeps for the backward pass, besides weights: in all, and in the blocks.

    Each piece of memory counts once, where it is first kept.
    """
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[torch.UntypedStorage, bool]] = {}
    inside = False

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept.setdefault(storage.data_ptr(), (storage, inside))
        return tensor

    def mark(is_inside: bool) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            nonlocal inside
            inside = is_inside

        return hook

    hooks = [block.register_forward_pre_hook(mark(True)) for block in blocks]
    hooks += [block.register_forward_hook(mark(False)) for block in blocks]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    del loss  # alive until here, so that no address was used twice
    for hook in hooks:
        hook.remove()
    sizes = [(storage.nbytes(), is_inside) for storage, is_inside in kept.values()]
    return sum(size for size, _ in sizes), sum(size for size, is_inside in sizes if is_inside)


def peft_takes_part(arguments: argparse.Namespace) -> bool:
    """Whether peft can work on such a base here: in 4 bits it needs bitsandbytes."""
    if arguments.base == "dense":
        return True
    # On a CPU, bitsandbytes 0.50 dequantises rows that are no whole blocks to other numbers (error 0.24, not 0.09).
    sizes = SIZES[arguments.size]
    whole = not any(sizes[width] % NF4_BLOCK for width in ("embed_dim", "intermediate_dim"))
    return importlib.util.find_spec("bitsandbytes") is not None and (arguments.device != "cpu" or whole)


def run_alone(name: str, words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return what a contestant says of itself in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.lora", *words, "--contestant", name, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{name} failed in a process of its own")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(
    arguments: argparse.Namespace, words: Sequence[str], folder: Path, matmul_rate: float
) -> dict[str, Any]:
    """Run the rounds of one kind of base and one choice of modules, and return every figure.

    Raises:
        SystemExit: the contestants' losses differ, so they did not do the same work.
    """
    names = [name for name in CONTESTANTS if name == "tune" or peft_takes_part(arguments)]
    config, num_adapter = make_start(arguments, folder)
    tolerance = LOSS_TOLERANCE[arguments.dtype]
    # Before the models of all contestants are here: a GPU has room for them, or for one of them and this.
    alone = {name: run_alone(name, words, folder) for name in names}
    steps: dict[str, Step] = {}
    for name in names:
        model, _, forward = CONTESTANTS[name](arguments, folder)
        steps[name] = make_step(model.train(), forward)
    turns = take_turns(steps, draw_batches(arguments, config.vocab_size), arguments)
    apart = check_same_work(turns.losses, tolerance)
    for name in names:
        check_same_work(
            {"in turn": turns.losses[name][:MEMORY_STEPS], "alone": alone[name]["losses"]}, tolerance
        )

    num_tokens = arguments.batch_size * arguments.seq_len
    limit = matmul_rate / flops_per_token(config, arguments.seq_len, num_adapter_parameters=num_adapter)
    return {
        "work": {**vars(arguments), "parameters": config.num_parameters(), "adapter_parameters": num_adapter},
        "limit_tokens_per_s": limit,
        "losses_apart": apart if len(names) > 1 else None,
        "losses_apart_at_most": tolerance,
        "results": {
            name: {
                **describe_rates(turns.seconds[name], num_tokens, limit),
                **alone[name],
                "losses": turns.losses[name],
            }
            for name in names
        },
    }


def describe(arguments: argparse.Namespace, matmul_rate: float) -> dict[str, Any]:
    """Return what holds for every run of the command."""
    machine = {**describe_machine(arguments.device), "matmul_tflop_per_s": matmul_rate / 1e12}
    if arguments.device == "cpu":
        machine["cpu"] = describe_cpu()
    return {"clock": "processor" if arguments.cpu_time else "wall", "machine": machine | versions()}


def versions() -> dict[str, str]:
    """Return the versions of the packages compared with, where they are installed."""
    from importlib.metadata import version

    found = [name for name in ("peft", "bitsandbytes") if importlib.util.find_spec(name)]
    return {name: version(name) for name in found}


def main(argv: Sequence[str] | None = None) -> int:
    parser = parse_steps(__doc__)
    parser.add_argument(
        "--modules", choices=("attention", "all"), nargs="+", default=["attention"], help="attention: q and v"
    )
    parser.add_argument(
        "--base", choices=("dense", "nf4"), nargs="+", default=["dense"], help="the frozen matrices"
    )
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=32.0)
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = parser.parse_args(words)
    contestant, start = arguments.contestant, arguments.folder
    choices = list(product(arguments.base, arguments.modules))
    del arguments.contestant, arguments.folder
    if contestant:
        arguments.base, arguments.modules = choices[0]
        print(json.dumps(measure_memory(contestant, arguments, Path(start))))
        return 0
    matmul_rate = measure_limit(arguments)
    runs = []
    for base, modules in choices:
        arguments.base, arguments.modules = base, modules
        own = [*words, "--base", base, "--modules", modules]
        with tempfile.TemporaryDirectory() as folder:
            runs.append(compare(arguments, own, Path(folder), matmul_rate))
    command = f"OMP_NUM_THREADS={torch.get_num_threads()} python -m benchmarks.lora {' '.join(words)}"
    write_figures({"command": command, **describe(arguments, matmul_rate), "runs": runs}, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
