"""What travels with weights whatever their layout: the tokenizer, how to generate, and the terms they come under."""

from __future__ import annotations

import shutil
from fnmatch import fnmatchcase
from pathlib import Path

from tune.errors import CheckpointError

# How a model that is more than text prepares pictures, videos and sound.
PROCESSOR_FILES = ("*processor_config.json",)
# Tokenizers of every kind with their chat templates, how to generate, and the processors around them.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer.model.v*", "tokenizer_config.json"),
    *(
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "*.tiktoken",
        "tekken.json",
    ),
    *("chat_template.json", "chat_template.jinja", "generation_config.json"),
    *PROCESSOR_FILES,
)
# Terms and description, in any case of letters.
_PATTERNS = (
    *TOKENIZER_FILES,
    *("license*", "licence*", "notice*", "copying*", "use_policy*", "readme*", "model_card*"),
)
_FOLDERS = {"additional_chat_templates": "*.jinja"}
_MAX_BYTES = 2**30


def copy_side_files(folder: Path, target: Path) -> list[str]:
    """Copy a model's tokenizer, generation settings, licence and description; return their names.

    Meta's downloads keep tokenizer.model and the licence one folder above the weights: they are found there.

    Args:
        folder: with the weights.
        target: an existing folder.

    Raises:
        CheckpointError: a file cannot be read or written.
    """
    found = {path.name: path for path in _side_files_in(folder)}
    if (folder / "params.json").is_file() and not any(name.startswith("tokenizer.") for name in found):
        above = folder.absolute().parent
        if (above / "tokenizer.model").is_file():
            found = {path.name: path for path in _side_files_in(above)} | found
    for name, pattern in _FOLDERS.items():
        if (folder / name).is_dir():
            (target / name).mkdir(exist_ok=True)
            found.update({f"{name}/{path.name}": path for path in (folder / name).glob(pattern)})
    for name, path in sorted(found.items()):
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise CheckpointError(
                    f"{path} has {path.stat().st_size} bytes, which no tokenizer or text has"
                )
            shutil.copyfile(path, target / name)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be copied to {target}: {error.strerror}") from error
    return sorted(found)


def _side_files_in(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if any(fnmatchcase(path.name.lower(), pattern) for pattern in _PATTERNS) and path.is_file()
    ]
