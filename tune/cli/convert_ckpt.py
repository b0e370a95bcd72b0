"""`tune convert-ckpt`: a checkpoint in another layout or type, verified by reading it again."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tune.cli.arguments import Command, Given, Option
from tune.cli.terminal import columns, format_size, say
from tune.config.diagnostics import printable
from tune.utils.precision import DTYPE_NAMES

if TYPE_CHECKING:
    from tune.models.conversion import ConversionReport

LAYOUTS = ("hf", "meta", "tune")
_PHASES = {"write": "Writing", "verify": "Reading again"}


def run(given: Given) -> int:
    """Convert one checkpoint and say what was verified."""
    src, dest = given.operands
    to = given.one("to") or "hf"

    from tqdm import tqdm

    from tune.models.conversion import convert_checkpoint

    bar = ExitStack()

    def progress(phase: str, num_bytes: int) -> Callable[[int], None]:
        bar.close()
        shown = bar.enter_context(tqdm(total=num_bytes, unit="B", unit_scale=True, leave=False, disable=None))
        if shown.disable:  # no terminal
            say(f"{_PHASES[phase]}: {format_size(num_bytes)}\n", sys.stderr)

        def advance(done: int) -> None:
            shown.update(done)

        return advance

    try:
        with bar:
            report = convert_checkpoint(
                src, dest, to, given.one("dtype"), force="force" in given.switches, progress=progress
            )
    except KeyboardInterrupt:
        say(f"\nStopped. No half-written model is left in {printable(dest)}.", sys.stderr)
        raise
    say(format_written("converted", report.source, report.directory, _rows(report), report.notes))
    return 0


def _rows(report: ConversionReport) -> list[tuple[str, str]]:
    verified = f"{report.num_exact} tensors read back equal to the source's, bit for bit"
    if report.num_cast:
        exact = f", {report.num_exact} of them bit for bit" if report.num_exact else ""
        number = report.num_exact + report.num_cast
        verified = f"{number} tensors read back equal to the source's in {', '.join(report.dtypes)}{exact}"
    rows = [
        ("model", f"{report.family}, {report.num_tensors} tensors, {format_size(report.num_bytes)}"),
        ("layout", f"{report.from_layout} -> {report.to_layout}, {', '.join(report.dtypes)}"),
        ("verified", verified),
    ]
    if report.num_carried:
        rows.append(("untouched", f"{report.num_carried} tensors beside the text model, byte for byte"))
    if report.side_files:
        rows.append(("carried over", ", ".join(report.side_files)))
    if report.left_out:
        names = ", ".join(report.left_out[:3]) + (" ..." if len(report.left_out) > 3 else "")
        rows.append(("left out", f"{len(report.left_out)} tensors that the model does not need: {names}"))
    return rows


def format_written(
    done: str, source: Path, directory: Path, rows: Iterable[tuple[str, str]], notes: Iterable[str]
) -> str:
    """Return what was `done` with a model that has been written, what is known of it, and the next command."""
    table = [(name, printable(text)) for name, text in (*rows, *(("note", note) for note in notes))]
    return (
        f"{printable(str(source))} is {done}, in {printable(str(directory))}:\n{columns(table)}\n"
        f"Next:\n  {_next_command(source, directory)}\n"
    )


def _next_command(source: Path, directory: Path) -> str:
    """Return what to type next: a model that knows a chat is talked to, another one is asked as it was trained."""
    from tune.checkpoints.run_folder import find_run, read_run_record

    folder = shlex.quote(str(directory))
    with contextlib.suppress(OSError):
        settings = directory / "tokenizer_config.json"
        has_template = settings.is_file() and '"chat_template"' in settings.read_text(errors="replace")
        if has_template or (directory / "chat_template.jinja").is_file():
            return f"tune chat {folder}"
    run = find_run(source)
    record = read_run_record(run) if run is not None else None
    template = ((record or {}).get("result") or {}).get("template")
    asked = f" prompt_template={shlex.quote(str(template))}" if template else ""
    return f"tune run generate {folder}{asked} prompt=" + ("'...'" if template else '"Once upon a time"')


COMMAND = Command(
    name="convert-ckpt",
    summary="Convert a checkpoint to another layout or type.",
    description=(
        "Writes a checkpoint in another layout: hf, Hugging Face safetensors, which most tools load; meta, Meta's "
        "consolidated.00.pth with params.json; tune, torchtune's own names in one .pt file. The source may be any of "
        "these, pytorch_model*.bin, or a saved step of a run. Tokenizer, settings and licence come along.\n\n"
        "One tensor is in memory at a time, whatever the model's size. What was written is read again and compared "
        "with the source, tensor by tensor, before it gets its place; an interrupted conversion leaves nothing."
    ),
    examples=(
        ("tune convert-ckpt Llama-3.2-1B/original llama-hf", "Meta's files to Hugging Face safetensors"),
        (
            "tune convert-ckpt out/latest out-meta --to meta",
            "the newest step of a run, for Meta's own programs",
        ),
        ("tune convert-ckpt big big-bf16 --dtype bf16", "half the size"),
    ),
    run=run,
    operands=(
        ("SRC", "A model's folder, a saved step, an output directory, or one weight file."),
        ("DEST", "Folder to write to: empty or new, and not inside SRC."),
    ),
    options=(
        Option(("--to",), "Layout to write: hf (the default), meta or tune.", "LAYOUT", choices=LAYOUTS),
        Option(
            ("--dtype",),
            "What the weights become: fp32, fp16 or bf16; as they are if left out.",
            "DTYPE",
            choices=DTYPE_NAMES,
        ),
        Option(
            ("--force", "-f"),
            "Replace a model that DEST holds, with its tokenizer, once the new one is whole; other files stay.",
        ),
    ),
)
