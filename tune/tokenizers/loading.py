"""Finding the tokenizer that belongs to a checkpoint."""

from __future__ import annotations

from pathlib import Path

from tune.errors import TokenizerError
from tune.tokenizers.settings import read_settings
from tune.tokenizers.spm import SentencePieceTokenizer
from tune.tokenizers.templates import PromptTemplateSpec
from tune.utils.paths import expand_path


def from_checkpoint(
    directory: str | Path, max_seq_len: int | None = None, prompt_template: PromptTemplateSpec | None = None
) -> SentencePieceTokenizer:
    """Returns the tokenizer that stands in a model's directory.

    What `tokenizer_config.json`, `generation_config.json` and `config.json` say beside it is honoured:
    special tokens, whether a BOS is used, what ends a generation, and the longest sequence.

    Args:
        directory: holds `tokenizer.model` (or, as Meta ships it, its parent directory does); or the file itself;
            or a saved step or output directory of a run.
        max_seq_len: tokens after which examples are truncated; by default what the model was made for.
        prompt_template: how conversations are written, see `tune.tokenizers.get_prompt_template`.

    Raises:
        TokenizerError: no tokenizer there, or only kinds that cannot be read yet.
    """
    try:
        file, folder = _find(expand_path(directory))
    except OSError as error:
        raise TokenizerError(f"cannot read {error.filename or directory}: {error.strerror}") from error
    if folder is None:
        return SentencePieceTokenizer(file, max_seq_len, prompt_template)
    settings = read_settings(folder)
    limit = max_seq_len if max_seq_len is not None else settings.max_seq_len
    return SentencePieceTokenizer(file, limit, prompt_template, settings=settings)


def auto(
    path: str = "",
    checkpoint_dir: str = "",
    max_seq_len: int | None = None,
    prompt_template: str | dict[str, list[str]] | None = None,
) -> SentencePieceTokenizer:
    """Returns the tokenizer at `path`, or else the one that stands beside the model's weights.

    Args:
        path: a tokenizer file or a directory that holds one.
        checkpoint_dir: the model's directory, used where `path` is not given.
        max_seq_len: tokens after which examples are truncated; by default what the model was made for.
        prompt_template: how conversations are written, see `tune.tokenizers.get_prompt_template`.

    Raises:
        TokenizerError: neither is given, or nothing readable is there.
    """
    if path:
        return from_checkpoint(path, max_seq_len, prompt_template)
    if checkpoint_dir:
        return from_checkpoint(checkpoint_dir, max_seq_len, prompt_template)
    raise TokenizerError(
        "no tokenizer: set tokenizer.path to a tokenizer.model, or checkpointer.checkpoint_dir to a directory "
        "that holds one beside the weights"
    )


def _find(place: Path) -> tuple[Path, Path | None]:
    """Returns the tokenizer's file, and the directory whose settings belong to it."""
    if place.is_file():
        # Under another name it need not belong to the files beside it.
        return place, place.parent if place.name == "tokenizer.model" else None
    if not place.is_dir():
        raise TokenizerError(f"there is no file or directory {place} to read a tokenizer from")
    for folder in (place, place / "model", place / "latest" / "model"):
        if (folder / "tokenizer.model").is_file():
            return folder / "tokenizer.model", folder
    # Meta's download keeps one tokenizer.model beside the directories of its models.
    if (place / "params.json").is_file() and (place.parent / "tokenizer.model").is_file():
        return place.parent / "tokenizer.model", place
    raise TokenizerError(_what_is_missing(place))


def _what_is_missing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if "tokenizer.json" in names:
        return (
            f"{folder} holds a tokenizer.json but no tokenizer.model. tokenizer.json cannot be read yet; "
            "Llama 2 and its kin ship a tokenizer.model, which can be copied in from the original model"
        )
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return (
        f"no tokenizer.model in {folder}, which holds {shown or 'nothing'}; "
        "set tokenizer.path to the file that belongs to this model"
    )
