"""The file that shows what a run is taught: its first examples as the model reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tune.checkpoints.writers import replacing
from tune.data.preview import format_example, preview_tokens
from tune.errors import CheckpointError
from tune.training.saving.checkpoints import Checkpoints
from tune.utils import get_logger

__all__ = ["write_preview"]

_HEADER = "The first examples as the model reads them: ⟦learnt⟧, ⟨special token⟩, ⏎ line end.\n"


def write_preview(dataset: Any, tokenizer: Any, checkpoints: Checkpoints, num_examples: int = 5) -> None:
    """Write the first examples of what is trained on to `preview.txt`, beside the saved steps, and begin the record.

    A run that is resumed writes it anew. A file of that name which is none of ours is left as it is.

    Args:
        dataset: examples with `tokens` and `labels`.
        tokenizer: the one that made them.
        checkpoints: of the run.
        num_examples: to show.

    Raises:
        CheckpointError: the file cannot be written.
    """
    if not checkpoints.mesh.is_rank_zero:
        return
    if hasattr(dataset, "report"):
        report = dataset.report()
        checkpoints.record.note(data={**report.to_dict(), "text": str(report)})
    checkpoints.record.start(checkpoints.last_step)
    path = checkpoints.output_dir / "preview.txt"
    if not _is_own(path):
        get_logger().warning(f"{path} is no preview of tune's, so it is left as it is")
        return
    parts = [_HEADER]
    names = getattr(dataset, "document_names", ())
    for index in range(min(num_examples, len(dataset))):
        tokens = preview_tokens(tokenizer, dataset[index])
        parts.append(f"\n--- example {index} ---\n{format_example(tokens, names=names)}\n")
    try:
        with replacing(path) as staged:
            staged.write_text("".join(parts), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror}. Make room there, or choose another output_dir."
        ) from error


def _is_own(path: Path) -> bool:
    """Tell whether what is at `path`, if anything, was written here."""
    if not path.is_file():
        return not path.exists()
    with path.open(encoding="utf-8", errors="replace") as stream:
        return stream.read(len(_HEADER)) == _HEADER
