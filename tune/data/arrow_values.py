"""Values of Arrow tables as they were written, before a table gave all of a column's objects the same keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tune.data.json_text import parse

if TYPE_CHECKING:
    import pyarrow

Restore = Callable[[Any], Any]


def restorer(kind: pyarrow.DataType) -> Restore | None:
    """Return what makes a value of a column what it was; None where it is that already.

    A key that one object lacks and another has is null in a table, so nulls in objects are left out. JSON is read, and
    its nulls stay. The function raises ValueError where JSON is broken.
    """
    from pyarrow import types

    if getattr(kind, "extension_name", "") == "arrow.json":
        return lambda value: parse(value) if isinstance(value, str) else value
    if types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        inner = {field.name: restore for field in fields if (restore := restorer(field.type)) is not None}
        return lambda value: _restore_object(value, inner)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        restore = restorer(kind.value_type)
        if restore is not None:
            return lambda value: value if value is None else [restore(item) for item in value]
    return None


def _restore_object(value: Any, inner: dict[str, Restore]) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: inner[key](item) if key in inner else item for key, item in value.items() if item is not None
    }
