"""Answer one instruction with a model that was fine-tuned on Alpaca: the historic command, kept working.

    python -m recipes.alpaca_generate --native-checkpoint-path P --tokenizer-path T --input "Name three rivers."

P is a folder (Hugging Face or Meta layout, or a saved step of a run) or one weight file: .pth, .pt, .bin or
.safetensors, with Meta's, Hugging Face's or torchtune's own names. T is the tokenizer's file. The answer alone goes
to standard output. For everything else, use `tune run generate`.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from tune.checkpoints import WeightSource, find_model_dir, load_into, open_weights
from tune.data import AlpacaToMessages
from tune.errors import CheckpointError, TuneError
from tune.generation import stream_text
from tune.models import auto
from tune.models.llama2 import LLAMA, llama2, llama2_7b, llama2_13b, llama2_70b
from tune.modules import TransformerDecoder
from tune.tokenizers import SentencePieceTokenizer
from tune.utils import expand_path, get_device, get_dtype
from tune.utils.escape import escape_lines

# Parameters whose shapes tell a Llama's sizes.
EMBEDDING = "tok_embeddings.weight"
QUERY, KEY, GATE = (f"layers.{{}}.{name}.weight" for name in ("attn.q_proj", "attn.k_proj", "mlp.w1"))


def load_model(
    path: Path, num_heads: int | None, device: torch.device, dtype: torch.dtype
) -> TransformerDecoder:
    """Return the model whose weights are at ``path``, a folder or a file."""
    with torch.device("meta"):
        if path.is_dir():
            path = find_model_dir(path)
            model, source = auto(str(path)), open_weights(path)
        elif any((path.parent / name).is_file() for name in ("config.json", "params.json")):
            model, source = auto(str(path.parent)), open_weights(path)
        else:
            source = open_weights(path)
            model = build_from_shapes(source, num_heads)
    load_into(model, source, dtype=dtype, device=device)
    return model.eval()


def build_from_shapes(source: WeightSource, num_heads: int | None) -> TransformerDecoder:
    """Return the Llama 2 whose parameters have the shapes of ``source``.

    Args:
        source: Weights without a description beside them.
        num_heads: Query heads. Shapes do not tell them; None takes those of the Llama 2 with these sizes.

    Raises:
        CheckpointError: The weights are no Llama's, or the number of heads is needed.
    """
    layouts = [{rule.ours: rule.theirs for rule in layout.rules} for layout in LLAMA.layouts]
    shapes = source.shapes
    names = next((names for names in layouts if names[QUERY].format(0) in shapes), None)
    if names is None or any(names[ours].format(0) not in shapes for ours in (EMBEDDING, KEY, GATE)):
        raise CheckpointError(
            f"{source.path} holds no Llama 2 weights that can be recognised by their names."
        )
    pattern = re.escape(names[QUERY]).replace(r"\{\}", r"(\d+)")
    num_layers = len([name for name in shapes if re.fullmatch(pattern, name)])
    vocab_size, embed_dim = shapes[names[EMBEDDING]]
    sizes = (num_layers, embed_dim, shapes[names[QUERY].format(0)][0])
    for build in (llama2_7b, llama2_13b, llama2_70b):
        if num_heads is None:
            config = build().config
            if sizes == (config.num_layers, config.embed_dim, config.embed_dim):
                num_heads = config.num_heads
    if num_heads is None:
        raise CheckpointError(
            f"{source.path} is a model of {num_layers} layers and width {embed_dim}, which is none of Llama 2's sizes, "
            "and weights alone do not tell how many heads it has. Give --num-heads, or put its config.json or "
            "params.json beside it."
        )
    head_dim = embed_dim // num_heads
    return llama2(
        vocab_size=vocab_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=shapes[names[KEY].format(0)][0] // head_dim,
        embed_dim=embed_dim,
        intermediate_dim=shapes[names[GATE].format(0)][0],
        max_seq_len=4096,  # what Llama 2 was trained for; weights do not tell
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.alpaca_generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--native-checkpoint-path",
        metavar="P",
        required=True,
        help="Folder with the weights, or one weight file.",
    )
    parser.add_argument(
        "--tokenizer-path", metavar="T", required=True, help="SentencePiece file, tokenizer.model."
    )
    parser.add_argument("--instruction", help="What the model shall do.")
    parser.add_argument("--input", help="What to do it with; without --instruction, the instruction itself.")
    parser.add_argument(
        "--max-gen-len", type=int, default=64, help="Longest answer, in tokens (default: 64)."
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest token (default: 0)."
    )
    parser.add_argument("--top-k", type=int, help="Sample among the k likeliest tokens only.")
    parser.add_argument("--seed", type=int, help="Seed of the sampling.")
    parser.add_argument(
        "--num-heads", type=int, help="Query heads, where a lone weight file leaves them open."
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps; by default a GPU when there is one.")
    parser.add_argument(
        "--dtype", choices=("bf16", "fp32", "fp16"), help="Default: bf16 on a GPU, fp32 on a CPU."
    )
    arguments = parser.parse_args(argv)
    if not arguments.instruction and not arguments.input:
        parser.error("give --input, --instruction, or both: there is nothing to answer")
    if arguments.num_heads is not None and arguments.num_heads < 1:
        parser.error(f"--num-heads is {arguments.num_heads}; it must be at least 1")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Print the answer to the instruction."""
    tokenizer = SentencePieceTokenizer(arguments.tokenizer_path)
    device = get_device(arguments.device)
    dtype = get_dtype(arguments.dtype or ("fp32" if device.type == "cpu" else "bf16"), device)
    path = expand_path(arguments.native_checkpoint_path)
    if not path.exists():
        raise CheckpointError(f"there is no file or folder {path}.")
    model = load_model(path, arguments.num_heads, device, dtype)

    # The prompt as training saw it, from the same code.
    row = {"instruction": arguments.instruction, "input": arguments.input or "", "output": ""}
    if not arguments.instruction:
        row = {"instruction": arguments.input, "input": "", "output": ""}
    prompt = AlpacaToMessages()(row)["messages"][0].content
    stream = stream_text(
        model,
        tokenizer,
        prompt,
        max_new_tokens=arguments.max_gen_len,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        seed=arguments.seed,
    )
    started = time.perf_counter()
    with stream:
        for piece in stream:
            print(escape_lines(piece) if sys.stdout.isatty() else piece, end="", flush=True)
    print(flush=True)
    print(f"{stream.num_tokens} tokens in {time.perf_counter() - started:.2f} s", file=sys.stderr)


def recipe_main(argv: Sequence[str] | None = None) -> int:
    """Answer one instruction; returns the exit code."""
    arguments = parse_arguments(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="replace"
        )  # a terminal that cannot show a character must not end the run
    try:
        run(arguments)
    except TuneError as error:
        print(f"error: {escape_lines(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever was reading has seen enough (`| head`); Python would complain when it flushes once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE
    return 0


if __name__ == "__main__":
    sys.exit(recipe_main())
