"""Tools and calls of them, as OpenAI, ShareGPT and others write them, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune.data.columns import TOOL_COLUMNS
from tune.data.json_text import parse
from tune.data.rows import describe
from tune.data.values import is_empty
from tune.errors import DataError
from tune.utils.escape import escape_control


def read_calls(calls: Any, where: str) -> tuple[dict[str, Any], ...]:
    """Return calls in OpenAI's form, with arguments that are written as JSON text read.

    Args:
        calls: a list of calls, or one; with or without `{"function": ...}` around name and arguments; or the JSON text
            of these.
        where: what errors call the message.

    Raises:
        DataError: it is no call, or its arguments are neither an object nor the JSON text of one.
    """
    if calls is None or calls == [] or (isinstance(calls, str) and not calls.strip()):
        return ()
    if isinstance(calls, str):
        calls = read_json(calls, f"{where} calls a tool with what is")
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, list):
        raise DataError(f"{where} has {describe(calls)} as tool_calls, expected a list")
    return tuple(_read_call(call, where) for call in calls)


def _read_call(call: Any, where: str) -> dict[str, Any]:
    if isinstance(call, str):
        call = read_json(call, f"{where} calls a tool with what is")
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f"{where} calls {describe(call)}, expected an object with 'function' and its 'name'")
    name = escape_control(function["name"], 60)
    arguments = function.get("arguments")
    if arguments is None:
        arguments = function.get("parameters")  # as Llama 3.1 writes them
    if isinstance(arguments, str) and arguments.strip():
        # Columns of parquet files cannot hold objects of varying keys, and OpenAI writes text as well.
        arguments = read_json(arguments, f"{where} calls {name} with arguments that are")
    if arguments and not isinstance(arguments, Mapping):
        raise DataError(f"{where} calls {name} with {describe(arguments)} as arguments, expected an object")
    parts = {key: value for key, value in function.items() if value is not None and key != "parameters"}
    rest = {} if function is call else {key: value for key, value in call.items() if value is not None}
    return {"type": "function", **rest, "function": {**parts, "arguments": arguments or {}}}


def read_tools(row: Mapping[str, Any], told: str | None = None) -> tuple[list[dict[str, Any]], str | None]:
    """Return the schemas of a row's tools, each as `{"type": "function", "function": ...}`, and their column.

    A column may hold a list, or its JSON text; so may a tool, and its `parameters`.

    Args:
        row: column name to value.
        told: the column; by default one of those known.

    Raises:
        DataError: the column holds something else.
    """
    for column in (told,) if told else TOOL_COLUMNS:
        tools = row.get(column)
        if is_empty(tools):
            continue
        where = f"column {column!r} is"
        if isinstance(tools, str):
            tools = read_json(tools, where)
        if isinstance(tools, Mapping):
            tools = [tools]
        if not isinstance(tools, list | tuple | None):
            raise DataError(f"{where} {describe(tools)}, expected a list of objects")
        return [_read_tool(tool, where) for tool in tools or ()], column
    return [], None


def _read_tool(tool: Any, where: str) -> dict[str, Any]:
    if isinstance(tool, str):
        tool = read_json(tool, f"{where} a list with a text that is")
    if not isinstance(tool, Mapping):
        raise DataError(f"{where} a list with {describe(tool)}, expected a list of objects")
    if "function" not in tool and "name" in tool:
        # A bare function, as in OpenAI's `functions` and ShareGPT; templates and servers speak of tools.
        tool = {"type": "function", "function": tool}
    function = tool.get("function")
    if isinstance(function, Mapping) and isinstance(function.get("parameters"), str):
        text = function["parameters"]
        parameters = (
            read_json(text, f"{where} a list of tools with parameters that are") if text.strip() else {}
        )
        tool = {**tool, "function": {**function, "parameters": parameters}}
    return dict(tool)


def read_json(text: str, what: str) -> Any:
    """Return the value of a JSON text. Raises DataError: "`what` no JSON: ..."."""
    try:
        return parse(text)
    except ValueError as error:
        raise DataError(f"{what} no JSON: {describe(text)}") from error
