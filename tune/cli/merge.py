"""`tune merge`: an adapter made part of its base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune.cli.arguments import Command, Given, Option
from tune.cli.convert_ckpt import format_written
from tune.cli.terminal import say
from tune.utils.precision import DTYPE_NAMES

if TYPE_CHECKING:
    from tune.models.merging import MergeReport


def run(given: Given) -> int:
    """Merge one adapter and say what comparing the result gave."""
    (adapter,), base, to, dtype = given.operands, given.one("base"), given.one("to"), given.one("dtype")

    from tune.models.merging import merge_adapter
    from tune.utils import get_dtype

    report = merge_adapter(adapter, base, to, None if dtype is None else get_dtype(dtype))
    say(format_written("merged", report.adapter, report.directory, _rows(report), report.notes))
    return 0


def _rows(report: MergeReport) -> list[tuple[str, str]]:
    rows = [
        ("base", str(report.base)),
        ("matrices", f"{report.num_moved} of {report.num_matrices} with an adapter have moved"),
        ("logits", f"the adapter changes them by {report.logits_moved:.2%}"),
        ("verified", f"merged, they are off by {report.logits_off:.2e} of their length ({report.dtype})"),
    ]
    if drift := report.drift:
        text = (
            f"trained beside a base in 4 bits ({drift.quantization}): from what training saw, logits are off by "
            f"{drift.logits_max:.3g} at most, {drift.logits_mean:.3g} on average; the likeliest token is the same "
            f"for {drift.num_same} of {drift.num_positions}"
        )
        rows.append(("drift", text))
    return rows


COMMAND = Command(
    name="merge",
    summary="Make an adapter part of its base.",
    description=(
        "Writes the one model that a base and its LoRA adapter are together, in Hugging Face layout. It is read again "
        "and asked beside the two: only if matrices have moved and the logits agree does it get its name. An adapter "
        "that was trained beside a base in 4 bits is merged into the full one, and how far that drifts from what "
        "training saw is measured and shown. It takes the memory of two copies of the model, and disk for one."
    ),
    examples=(
        ("tune merge out/mine", "the newest adapter of a run, into out/mine/step_000123-merged"),
        ("tune merge my_adapter --base checkpoints/Llama-3.2-1B --to merged", "one made elsewhere"),
    ),
    run=run,
    operands=(("ADAPTER", "A folder in PEFT layout, a saved step, or an output directory."),),
    options=(
        Option(
            ("--base",),
            "Folder of the model it was trained beside; what the adapter names if left out.",
            "DIR",
        ),
        Option(
            ("--to",),
            "Folder to write to, which must not exist; NAME-merged in the run, or here, if left out.",
            "DIR",
        ),
        Option(
            ("--dtype",),
            "What the weights become: fp32, fp16 or bf16; the base's if left out.",
            "DTYPE",
            choices=DTYPE_NAMES,
        ),
    ),
)
