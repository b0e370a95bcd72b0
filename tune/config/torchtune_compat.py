"""Forms that torchtune's configs use and ours do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tune.config.diagnostics import Diagnostic
from tune.config.fields import ParamInfo
from tune.config.nodes import (
    MappingNode,
    Scalar,
    SequenceNode,
    is_null,
    with_entry,
    without_entry,
)

_MAX_FILES = 1000


def expand_file_names(node: MappingNode) -> SequenceNode | None:
    """Return the list of file names that ``{filename_format, max_filename}`` stands for; None for any other mapping.

    ``model-{}-of-{}.safetensors`` with ``"00003"`` is ``model-00001-of-00003.safetensors`` and so on.
    """
    if set(node.entries) != {"filename_format", "max_filename"}:
        return None
    pattern, last = node.entries["filename_format"], node.entries["max_filename"]
    if not isinstance(pattern, Scalar) or not isinstance(last, Scalar):
        return None
    parts = pattern.text.split("{}")
    if len(parts) != 3 or len(last.text) > 9 or not (last.text.isascii() and last.text.isdecimal()):
        return None
    if not 1 <= int(last.text) <= _MAX_FILES:
        return None
    before, between, after = parts
    names = [
        f"{before}{str(number).zfill(len(last.text))}{between}{last.text}{after}"
        for number in range(1, int(last.text) + 1)
    ]
    items = tuple(Scalar(pattern.source, name, "quoted") for name in names)
    return SequenceNode(node.source, items)


def expand_torchtune_forms(
    root: MappingNode, infos: Mapping[str, ParamInfo], report: Callable[[Diagnostic], None]
) -> MappingNode:
    """Take out of a tree what its configs say and ours need not, with a warning for each.

    ``tensor_parallel_dim: 1`` asks for what is so in any case, and the plan beside it is then not followed;
    ``fsdp: {cpu_offload: ...}`` is what became fsdp_cpu_offload. Where nothing is trained, ``quantizer: null`` and
    ``resume_from_checkpoint: False`` ask for nothing. Anything else stays, to be judged as usual.
    """
    if "tasks" in infos:
        return _drop_idle_keys(root, infos, report)
    if "fsdp_cpu_offload" not in infos:
        return root
    degree = root.entries.get("tensor_parallel_dim")
    if isinstance(degree, Scalar) and degree.text.strip() == "1" and degree.style != "quoted":
        for name in ("tensor_parallel_dim", "tensor_parallel_plan"):
            if name in root.entries:
                message = (
                    f"{name} has no effect: only data is parallel here, as with a tensor_parallel_dim of 1"
                )
                report(Diagnostic("no-effect", name, message, root.key_source(name), severity="warning"))
                root = without_entry(root, name)
    section = root.entries.get("fsdp")
    if isinstance(section, MappingNode) and set(section.entries) == {"cpu_offload"}:
        value = section.entries["cpu_offload"]
        if is_null(value) or "fsdp_cpu_offload" in root.entries:
            return root
        source = root.key_source("fsdp")
        message = "fsdp.cpu_offload is read as fsdp_cpu_offload"
        report(Diagnostic("renamed-parameter", "fsdp", message, source, severity="warning"))
        root = with_entry(
            without_entry(root, "fsdp"), "fsdp_cpu_offload", value, section.key_source("cpu_offload")
        )
    return root


def _drop_idle_keys(
    root: MappingNode, infos: Mapping[str, ParamInfo], report: Callable[[Diagnostic], None]
) -> MappingNode:
    for name in ("quantizer", "resume_from_checkpoint"):
        value = root.entries.get(name)
        is_off = value is not None and (
            is_null(value) or (isinstance(value, Scalar) and value.text.strip().lower() == "false")
        )
        if name not in infos and is_off:
            message = f"{name} has no effect here; remove it"
            report(Diagnostic("no-effect", name, message, root.key_source(name), severity="warning"))
            root = without_entry(root, name)
    checkpointer = root.entries.get("checkpointer")
    output_dir = checkpointer.entries.get("output_dir") if isinstance(checkpointer, MappingNode) else None
    if isinstance(checkpointer, MappingNode) and output_dir is not None and is_null(output_dir):
        # One of theirs refers to an output_dir that is not there; nothing is written by it here.
        kept = without_entry(checkpointer, "output_dir")
        root = with_entry(root, "checkpointer", kept, root.key_source("checkpointer"))
    return root
