"""Where an adapter lies, and what its files say of the model that it was trained beside."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from safetensors import safe_open

from tune.checkpoints.adapter_config import CONFIG_FILE, find_adapter_dir, read_settings
from tune.checkpoints.locate import find_model_dir
from tune.checkpoints.weights import open_weights
from tune.errors import CheckpointError, TuneError
from tune.utils.paths import expand_path

WEIGHTS_FILES = ("adapter_model.safetensors", "adapter_model.bin")
QUANTIZATION = "base_quantization"  # the file's metadata: what the base was kept in; peft reads past it


def find_adapter_weights(folder: Path) -> Path:
    """Return the file with the numbers of the adapter in `folder`.

    Raises:
        CheckpointError: there is none.
    """
    file = next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(
            f"{folder} has {CONFIG_FILE}, but no {' or '.join(WEIGHTS_FILES)}: copy it as well"
        )
    return file


def read_metadata(file: Path) -> dict[str, str]:
    """Return the texts beside the tensors of a safetensors file; of another one, none."""
    if file.suffix != ".safetensors":
        return {}
    open_weights(file)  # which says what is wrong with a file that cannot be read
    with safe_open(file, framework="pt") as handle:
        return dict(handle.metadata() or {})


def read_adapter_base(directory: Path | str) -> str:
    """Return the name or path of the model that an adapter was trained on; "" where its configuration is silent.

    Raises:
        CheckpointError: there is no adapter, or it uses what is not supported.
    """
    return read_settings(find_adapter_dir(directory)).base


def read_base_quantization(directory: Path | str) -> str:
    """Return what an adapter's base was kept in while it was trained: "nf4", or "" where the adapter does not say.

    Raises:
        CheckpointError: there is no adapter, or its file cannot be read.
    """
    return read_metadata(find_adapter_weights(find_adapter_dir(directory))).get(QUANTIZATION, "")


def adapter_tokenizer_dir(base_dir: Path, directory: Path | str | None) -> Path:
    """Return where the tokenizer of a base with an adapter is: beside the adapter, if one was saved with it.

    That is the one it was trained with: its chat template, the token that ends its turns, and tokens added for it.

    Args:
        base_dir: of the base.
        directory: of the adapter; None: there is none.

    Raises:
        CheckpointError: there is no adapter, or its file cannot be read.
    """
    if directory is None:
        return base_dir
    folder = find_adapter_dir(directory)
    return folder if has_tokenizer(folder) else base_dir


def has_tokenizer(folder: Path) -> bool:
    """Return whether a tokenizer was saved in a folder."""
    return (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file()


def base_difference(base_dir: Path, directory: Path | str) -> str:
    """Return what to say where an adapter names another base: weights of the same shapes fit, whatever they are.

    "" where it names this one, or none.

    Raises:
        CheckpointError: as `read_adapter_base`.
    """
    named = read_adapter_base(directory)
    with suppress(TuneError, OSError):  # whatever a stranger's file calls it
        if not named or find_model_dir(expand_path(named)).samefile(base_dir):
            return ""
    own_names = (base_dir.name, base_dir.parent.name)
    if Path(named).name in own_names:  # a name of the hub, or a folder that was moved
        return ""
    return f"it says that it was trained beside {named[:200]}; whether {base_dir} is the same model cannot be told"
