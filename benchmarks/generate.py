"""How fast a model writes: tune with and without its KV cache, and transformers, on the same random weights.

    python -m benchmarks.generate --size 110m --prompt-tokens 128 --new-tokens 128
    python -m benchmarks.generate --size 7b --device cuda --dtype bf16 --output generate.json

Contestants take turns within each round, and each round begins with another one, so that a machine that warms up or
is shared favours nobody. Every contestant answers greedily and never stops early; in fp32 the answers are compared.
Formulas are in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.setting import SIZES, describe_machine, timed, write_figures
from tune.checkpoints import save_model
from tune.generation import generate_batch
from tune.models import from_checkpoint
from tune.models.llama2 import llama2
from tune.modules import DecoderConfig, TransformerDecoder

# Continue these prompts [b][s] by so many tokens: the new tokens of each row.
Contestant = Callable[[list[list[int]], int], list[list[int]]]


def make_contestants(
    arguments: argparse.Namespace, dtype: torch.dtype
) -> tuple[TransformerDecoder, dict[str, Contestant]]:
    """Return our model and each contestant under its name, all with the same weights."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    ours = llama2(**SIZES[arguments.size], max_seq_len=arguments.prompt_tokens + arguments.new_tokens + 1)
    with tempfile.TemporaryDirectory() as folder:
        save_model(ours, folder, dtype=dtype)
        ours = from_checkpoint(folder, dtype=dtype, device=arguments.device)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(arguments.device).eval()
    theirs.generation_config.eos_token_id = None
    theirs.generation_config.pad_token_id = 0

    def run_tune(prompts: list[list[int]], num_tokens: int, use_cache: bool = True) -> list[list[int]]:
        return generate_batch(ours, prompts, max_new_tokens=num_tokens, use_cache=use_cache)

    def run_transformers(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        tokens = torch.tensor(prompts, device=arguments.device)
        answer = theirs.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=num_tokens, do_sample=False
        )
        rows: list[list[int]] = answer[:, tokens.shape[1] :].tolist()
        return rows

    contestants: dict[str, Contestant] = {"tune": run_tune, "transformers": run_transformers}
    if not arguments.skip_uncached:
        contestants["tune, no cache"] = lambda prompts, num_tokens: run_tune(
            prompts, num_tokens, use_cache=False
        )
    return ours, contestants


def measure_bandwidth(device: str) -> float:
    """Return the bytes per second at which a matrix-vector product of 1 GiB (CPU: 256 MiB) reads its matrix."""
    rows, columns = (16_384 if device == "cpu" else 65_536), 4096
    matrix = torch.randn(rows, columns, device=device)
    vector = torch.randn(columns, device=device)
    # .sum().item() waits for the device and costs nothing beside the product.
    seconds = min(timed(lambda: (matrix @ vector).sum().item(), device, time.perf_counter) for _ in range(10))
    return matrix.nbytes / seconds


def bytes_per_step(config: DecoderConfig, batch_size: int, num_keys: float, itemsize: int) -> float:
    """Return what one decoding step must read: each matrix once, and the keys and values of every row."""
    matrices = config.num_block_parameters() + config.vocab_size * config.embed_dim
    cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * num_keys * batch_size
    return itemsize * (matrices + cache)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the rounds and return every figure."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    ours, contestants = make_contestants(arguments, dtype)
    config = ours.config
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    generator = torch.Generator().manual_seed(1)
    shape = (arguments.batch_size, arguments.prompt_tokens)
    prompts: list[list[int]] = torch.randint(config.vocab_size, shape, generator=generator).tolist()

    answers = {
        name: run(prompts, arguments.new_tokens) for name, run in contestants.items()
    }  # also the warm-up
    first: dict[str, list[float]] = {name: [] for name in contestants}
    whole: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for _ in range(arguments.rounds):
        for name in order:
            run = contestants[name]
            first[name].append(timed(partial(run, prompts, 1), arguments.device, clock))
            whole[name].append(timed(partial(run, prompts, arguments.new_tokens), arguments.device, clock))
        order = order[1:] + order[:1]

    bandwidth = measure_bandwidth(arguments.device)
    num_keys = arguments.prompt_tokens + arguments.new_tokens / 2
    limit = (
        arguments.batch_size
        * bandwidth
        / bytes_per_step(config, arguments.batch_size, num_keys, dtype.itemsize)
    )
    results = {}
    for name in contestants:
        # The rate of writing: what the tokens after the first took, with the prompt's share taken off.
        rates = [
            arguments.batch_size * (arguments.new_tokens - 1) / (all_of_it - one)
            for one, all_of_it in zip(first[name], whole[name], strict=True)
        ]
        results[name] = {
            "first_token_s": statistics.median(first[name]),
            "tokens_per_s": statistics.median(rates),
            "tokens_per_s_min": min(rates),
            "tokens_per_s_max": max(rates),
            "share_of_bandwidth_limit": statistics.median(rates) / limit,
            "same_tokens_as_tune": sum(
                a == b for row, other in zip(answers[name], answers["tune"]) for a, b in zip(row, other)
            )
            / (arguments.batch_size * arguments.new_tokens),
        }
    return {
        "machine": {**describe_machine(arguments.device), "bandwidth_gb_per_s": bandwidth / 1e9},
        "work": {**vars(arguments), "parameters": config.num_parameters()},
        "limit_tokens_per_s": limit,
        "results": results,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="15m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch-size", type=int, default=1, help="rows of equal length")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64, help="at least 2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-uncached", action="store_true", help="leave out the run without a cache")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count processor seconds of all threads, for a machine shared with others (set OMP_NUM_THREADS=1)",
    )
    parser.add_argument("--output", help="also write the figures to this JSON file")
    arguments = parser.parse_args(argv)
    figures = compare(arguments)
    write_figures(figures, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
