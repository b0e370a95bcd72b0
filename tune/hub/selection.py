"""Which files of a repository are worth fetching: one copy of the weights, and what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # documented there

from tune.errors import HubError
from tune.hub.listing import RemoteFile, Repository

__all__ = ["LAYOUT_PATTERNS", "WEIGHT_ENDINGS", "Selection", "select_files"]

# Other programs' formats, code (which tune never runs) and leftovers of training.
# fmt: off
_NOT_FOR_US = [
    "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "*.gguf", "*.ggml", "*.tflite", "*.mlmodel",
    "*.mlpackage/*", "*.nemo", "*.engine", "onnx/*", "openvino/*", "coreml/*", "flax_model*", "tf_model*",
    "rust_model*", "*.py", "*.ipynb", ".gitattributes", ".gitignore", "runs/*", "*.tfevents.*",
    "optimizer.*", "scheduler.*", "training_args.bin", "trainer_state.json", "rng_state*.pth", "*.distcp",
]
# fmt: on

# The layouts of weights, the preferred one first; each is a copy of the same numbers.
LAYOUT_PATTERNS: dict[str, tuple[str, ...]] = {
    "safetensors": ("model*.safetensors", "ft-model*.safetensors", "*model*.safetensors.index.json"),
    "pickle": ("pytorch_model*.bin", "pytorch_model*.bin.index.json"),
    "meta": ("consolidated*.pth", "params.json"),
    "meta_original": ("original/*",),
    # Mistral's own, beside the usual one in its repositories; tune does not read it.
    "mistral": ("consolidated*.safetensors", "consolidated*.safetensors.index.json", "params.json"),
}
# fmt: off
WEIGHT_ENDINGS = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".nemo")
# fmt: on
_WEIGHTS = [f"*{ending}" for ending in WEIGHT_ENDINGS]


@dataclass(frozen=True)
class Selection:
    """What is fetched, and why the rest is not.

    Args:
        files: the files to fetch.
        skipped: the others.
        layout: key of LAYOUT_PATTERNS, "adapter", or None where no weights are among the files.
    """

    files: tuple[RemoteFile, ...]
    skipped: tuple[RemoteFile, ...]
    layout: str | None


def select_files(repository: Repository, ignored: Sequence[str] | None) -> Selection:
    """Return the files to fetch.

    Args:
        repository: what there is.
        ignored: patterns of files a person does not want. None stands for what no run here needs. Of what is left,
            one copy of the weights is taken: safetensors, else pickles, else Meta's. An empty pattern takes all.

    Raises:
        HubError: nothing would be left, or no weights that can be read although none were ruled out.
    """
    patterns = _NOT_FOR_US if ignored is None else [pattern for pattern in ignored if pattern.strip()]
    if not patterns:
        return Selection(repository.files, (), _layout_of(repository.files))
    unwanted = _matching(repository.files, patterns)
    wanted = [file for file in repository.files if file not in unwanted]
    layout = _layout_of(wanted)
    if layout is None and ignored is None:
        raise HubError(_no_weights(repository))
    if layout is not None:
        others = [pattern for name, found in LAYOUT_PATTERNS.items() if name != layout for pattern in found]
        own, copies = _matching(wanted, LAYOUT_PATTERNS.get(layout, ())), _matching(wanted, others)
        wanted = [file for file in wanted if file in own or file not in copies]
    if not wanted:
        raise HubError(
            f"--ignore-patterns leaves nothing of the {len(repository.files)} files of {repository.name}"
        )
    skipped = tuple(file for file in repository.files if file not in wanted)
    return Selection(tuple(wanted), skipped, layout)


def _layout_of(files: Sequence[RemoteFile]) -> str | None:
    """Return which layout that tune reads the weights among `files` have; an index or params.json alone is none."""
    weights = _matching(files, _WEIGHTS)
    for layout, patterns in LAYOUT_PATTERNS.items():
        if layout != "mistral" and _matching(weights, patterns):
            return layout
    return "adapter" if _matching(weights, ("adapter_model.safetensors", "adapter_model.bin")) else None


def _matching(files: Sequence[RemoteFile], patterns: Sequence[str]) -> list[RemoteFile]:
    return list(filter_repo_objects(files, allow_patterns=list(patterns), key=lambda file: file.name))


def _no_weights(repository: Repository) -> str:
    kinds = sorted({PurePosixPath(f.name).suffix for f in _matching(repository.files, _WEIGHTS)})
    if not kinds:
        return (
            f"{repository.name} holds no weights at all ({len(repository.files)} files). To fetch what there is, "
            'give --ignore-patterns ""'
        )
    return (
        f"{repository.name} holds no weights that tune reads, only {', '.join(kinds)}: it reads model*.safetensors, "
        "pytorch_model*.bin and consolidated.*.pth. The repository it was made from usually has those"
    )
