"""What reading, writing and converting a checkpoint takes: seconds, and memory at its peak beside the weights' size.

    python -m benchmarks.checkpoints --gigabytes 1.2 --rounds 3 --output checkpoints.json

A random Llama in bf16 is written once in each layout (sharded safetensors, pytorch_model*.bin, Meta's). Each contestant
is a fresh process that has imported what it needs; it says when it begins and when it ends, and is watched from
outside. Contestants take turns within each round, and each round begins with another one. The files are in the page
cache (they were just written), so that what is measured is the programs and not the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.setting import describe_machine, write_figures

# Folders of all layouts and what contestants write, in sizes of the checkpoint.
_DISK_COPIES = 8
_SAMPLE_SECONDS = 0.005
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def make_checkpoints(folder: Path, num_bytes: int) -> None:
    """Write the same random weights in bf16 as sharded safetensors, as pickles and in Meta's layout."""
    from tune.checkpoints import open_weights, save_model
    from tune.models.conversion import convert_checkpoint
    from tune.models.llama2 import llama2

    width = 2048 if num_bytes > 5e8 else 128
    hidden = width * 11 // 4
    in_layer = 4 * width * width + 3 * width * hidden
    num_layers = max(1, round((num_bytes / 2 - 32 * width * width) / in_layer))
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = llama2(16 * width, num_layers, width // 64, width, 2048, intermediate_dim=hidden)
    torch.set_default_dtype(torch.float32)
    save_model(model, folder / "safetensors", max_shard_bytes=num_bytes // 3)
    del model
    (folder / "bin").mkdir()
    shutil.copy(folder / "safetensors" / "config.json", folder / "bin")
    places = json.loads((folder / "safetensors" / "model.safetensors.index.json").read_text())["weight_map"]
    source = open_weights(folder / "safetensors")
    for file in sorted(set(places.values())):
        name = file.replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        own = [tensor for tensor, place in places.items() if place == file]
        torch.save({tensor: source.read(tensor).clone() for tensor in own}, folder / "bin" / name)
        places.update(dict.fromkeys(own, name))
    (folder / "bin" / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )
    convert_checkpoint(folder / "safetensors", folder / "meta", "meta")


def load_with_tune(folder: Path, layout: str, dtype: str) -> Callable[[], Any]:
    from tune.models import from_checkpoint

    return lambda: from_checkpoint(folder / layout, dtype=dtype)


def load_with_transformers(folder: Path, layout: str, dtype: str) -> Callable[[], Any]:
    from transformers import AutoModelForCausalLM
    from transformers.models.llama import modeling_llama  # noqa: F401 - imported before the clock starts
    from transformers.utils import logging

    logging.disable_progress_bar()
    return lambda: AutoModelForCausalLM.from_pretrained(folder / layout, dtype=_DTYPES[dtype])


def save_with_tune(folder: Path, layout: str, dtype: str) -> Callable[[], Any]:
    from tune.checkpoints import save_model
    from tune.models import from_checkpoint

    model = from_checkpoint(folder / layout, dtype=dtype)
    return lambda: save_model(model, folder / "written", max_shard_bytes=2**40)


def save_with_transformers(folder: Path, layout: str, dtype: str) -> Callable[[], Any]:
    model = load_with_transformers(folder, layout, dtype)()
    return lambda: model.save_pretrained(folder / "written", max_shard_size="1TB")


def convert_with_tune(folder: Path, layout: str, to: str) -> Callable[[], Any]:
    from tune.models.conversion import convert_checkpoint

    return lambda: convert_checkpoint(folder / layout, folder / "written", to)


# Each prepares its work, outside the clock, from the folder of all checkpoints and the two words after its name.
CONTESTANTS: dict[str, tuple[Callable[[Path, str, str], Callable[[], Any]], str, str]] = {
    "load safetensors as bf16, tune": (load_with_tune, "safetensors", "bf16"),
    "load safetensors as bf16, transformers": (load_with_transformers, "safetensors", "bf16"),
    "load safetensors as fp32, tune": (load_with_tune, "safetensors", "fp32"),
    "load safetensors as fp32, transformers": (load_with_transformers, "safetensors", "fp32"),
    "load .bin as bf16, tune": (load_with_tune, "bin", "bf16"),
    "load .bin as bf16, transformers": (load_with_transformers, "bin", "bf16"),
    "load Meta .pth as bf16, tune": (load_with_tune, "meta", "bf16"),
    "save bf16, tune": (save_with_tune, "safetensors", "bf16"),
    "save bf16, transformers": (save_with_transformers, "safetensors", "bf16"),
    "convert safetensors to Meta and verify, tune": (convert_with_tune, "safetensors", "meta"),
    "convert Meta to safetensors and verify, tune": (convert_with_tune, "meta", "hf"),
}


def work(name: str, folder: Path) -> None:
    """Be one contestant: prepare, say so, work, and say what was done."""
    prepare, layout, word = CONTESTANTS[name]
    job = prepare(folder, layout, word)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    print(json.dumps(read_memory(os.getpid())), flush=True)
    sys.stdin.readline()  # until somebody watches
    started, started_cpu = time.perf_counter(), time.process_time()
    result = job()
    figures: dict[str, Any] = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - started_cpu,
    }
    if isinstance(result, torch.nn.Module):
        # Who has only mapped the files reads them now.
        started = time.perf_counter()
        with torch.no_grad():
            result(torch.tensor([[1]]))
        figures["first_answer_seconds"] = time.perf_counter() - started
        some = [parameter.detach().flatten()[:1000].double() for parameter in result.parameters()]
        figures["sum"] = sum(float(numbers.sum()) for numbers in some)
    figures["peak_rss"] = read_memory(os.getpid())["VmHWM"]
    print(json.dumps(figures), flush=True)


def read_memory(pid: int) -> dict[str, int]:
    """Return bytes of a process: resident, its peak, and the anonymous part, which no file could give back.

    VmHWM is of this process alone; ru_maxrss also counts what its parent had when it was started.
    """
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        words[0].rstrip(":"): int(words[1]) * 1024
        for words in lines
        if words[0] in ("VmRSS:", "VmHWM:", "RssAnon:")
    }


def watch(name: str, folder: Path, threads: int) -> dict[str, float]:
    """Run one contestant in a process of its own; return its seconds and the memory it took beyond its start."""
    shutil.rmtree(folder / "written", ignore_errors=True)
    os.sync()  # what others have written is not to be waited for by this one
    command = [sys.executable, "-m", "benchmarks.checkpoints", "--contestant", name, "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{name} did not start")
        start = json.loads(line)
        process.stdin.write("\n")
        process.stdin.flush()
        peak = start["RssAnon"]
        while not select.select([process.stdout], [], [], _SAMPLE_SECONDS)[0]:
            # It may end between two looks, its answer being on the way.
            with contextlib.suppress(ProcessLookupError, FileNotFoundError, KeyError):
                peak = max(peak, read_memory(process.pid)["RssAnon"])
        answer = process.stdout.readline()
    if process.returncode != 0 or not answer:
        raise SystemExit(f"{name} failed")
    figures: dict[str, float] = json.loads(answer)
    figures["anonymous"] = peak - start["RssAnon"]
    figures["rss"] = figures.pop("peak_rss") - start["VmRSS"]
    return figures


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make the checkpoints, run the rounds and return every figure."""
    num_bytes = int(arguments.gigabytes * 1e9)
    if not any(arguments.only in name for name in CONTESTANTS):
        raise SystemExit(f"no contestant has {arguments.only!r} in its name: {'; '.join(CONTESTANTS)}")
    free = shutil.disk_usage(folder).free
    if free < _DISK_COPIES * num_bytes:
        raise SystemExit(
            f"{folder} has {free / 1e9:.1f} GB free, and {_DISK_COPIES * arguments.gigabytes:.1f} GB are needed: "
            "choose fewer --gigabytes, or another --folder"
        )
    make_checkpoints(folder, num_bytes)
    stored = sum(file.stat().st_size for file in (folder / "safetensors").glob("*.safetensors"))
    order = [name for name in CONTESTANTS if arguments.only in name]
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in order}
    for _ in range(arguments.rounds):
        for name in order:
            seen[name].append(watch(name, folder, arguments.threads))
        order = order[1:] + order[:1]
    sums = {name: figures[0]["sum"] for name, figures in seen.items() if "sum" in figures[0]}
    results = {}
    for name, rounds in seen.items():
        # One copy: the weights as the contestant holds them.
        copy = stored * (2 if CONTESTANTS[name][2] == "fp32" else 1)
        results[name] = {
            "seconds": statistics.median(figures["seconds"] for figures in rounds),
            "seconds_min": min(figures["seconds"] for figures in rounds),
            "cpu_seconds": statistics.median(figures["cpu_seconds"] for figures in rounds),
            **(
                {"first_answer_seconds": statistics.median(each["first_answer_seconds"] for each in rounds)}
                if "first_answer_seconds" in rounds[0]
                else {}
            ),
            "peak_anonymous_mb": max(figures["anonymous"] for figures in rounds) / 1e6,
            "peak_anonymous_copies": max(figures["anonymous"] for figures in rounds) / copy,
            "peak_rss_copies": max(figures["rss"] for figures in rounds) / copy,
        }
    return {
        "machine": {**describe_machine("cpu"), "threads": arguments.threads, "cpu": describe_cpu()},
        "work": {"weights_bytes": stored, "rounds": arguments.rounds, "note": arguments.note},
        "results": results,
        # Of those that load: none has read other numbers.
        "same_weights": max(sums.values()) - min(sums.values()) < 1e-9 * (1 + abs(max(sums.values()))),
    }


def describe_cpu() -> str:
    """Return the processor's name and how many there are."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{os.cpu_count()} x {line.partition(':')[2].strip()}"
    return f"{os.cpu_count()} processors"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=1.2, help="size of the weights")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", help="where to write; a temporary folder if left out")
    parser.add_argument("--only", default="", help="contestants with these words in their name")
    parser.add_argument("--note", default="", help="kept with the figures, such as who shares the machine")
    parser.add_argument("--output", help="also write the figures to this JSON file")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.contestant:
        work(arguments.contestant, Path(arguments.folder))
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = compare(arguments, Path(folder))
    write_figures(figures, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
