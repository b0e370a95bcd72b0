"""A form that torchtune's configs use and ours do not: the numbered parts of a checkpoint by their last number."""

from __future__ import annotations

from tune.config.nodes import Listing, Mapped, Scalar, listing, text_weight

_MAX_FILES = 1000


def expand_file_names(node: Mapped) -> Listing | None:
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
    items = [Scalar(pattern.source, name, "quoted", weight=text_weight(name)) for name in names]
    return listing(node.source, items)
