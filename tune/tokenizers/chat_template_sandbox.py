"""Running a chat template that a stranger may have written: what it can reach is bounded here, by jinja2's sandbox.

How long it runs and how much memory it takes, no sandbox bounds: these functions are called in a worker process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# Characters of one text: several times the longest context.
MAX_CHARS = 20_000_000
_MAX_SOURCE = 1_000_000
# What a template does wrong in Python's own words: it called a text, divided by zero, recursed without end, ...
_PYTHON_ERRORS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)

_NAMES_OF_DICT = frozenset(dir(dict))
# But for those that take the text apart as a format, which the sandbox wraps.
_METHODS_OF_STR = frozenset(name for name in dir(str) if name[0] != "_") - {"format", "format_map"}


class TemplateFailure(Exception):
    """Why a template wrote nothing.

    Args:
        kind: "syntax" (it is no template), "stopped" (it did what none may do), "refused" (it raised an error of its
            own) or "failed" (Python did).
        reason: in the words of the template or of Python.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason


def render(source: str, variables: Mapping[str, Any]) -> str:
    """Return the text a template writes.

    Raises:
        TemplateFailure: it is none, or wrote nothing.
    """
    return "".join(render_pieces(_compile(source), variables))


def render_pieces(template: Template, variables: Mapping[str, Any]) -> Iterator[str]:
    """Yield the text that a template writes as it is written.

    Raises:
        TemplateFailure: it wrote nothing more.
    """
    size = 0
    try:
        for piece in template.generate(**variables):
            size += len(piece)
            if size > MAX_CHARS:
                raise SecurityError(f"it writes more than {MAX_CHARS:,} characters")
            yield piece
    except SecurityError as error:
        raise TemplateFailure("stopped", str(error)[:500]) from None
    except TemplateError as error:
        raise TemplateFailure("refused", str(error)[:500]) from None
    except _PYTHON_ERRORS as error:
        raise TemplateFailure("failed", f"{type(error).__name__}: {str(error)[:200]}") from None


def names_in(source: str) -> frozenset[str]:
    """Return the names that a template reads.

    Raises:
        TemplateFailure: it is none.
    """
    return frozenset(meta.find_undeclared_variables(parse(source)))


def parse(source: str) -> nodes.Template:
    """Return the parts of a template.

    Raises:
        TemplateFailure: it is none.
    """
    return _compile(source).environment.parse(source)


def compile_tree(tree: nodes.Template) -> Template:
    """Return the template that some parts make."""
    return _environment().from_string(tree)


@lru_cache(maxsize=16)
def _compile(source: str) -> Template:
    if len(source) > _MAX_SOURCE:
        reason = f"it has {len(source):,} characters, and at most {_MAX_SOURCE:,} are read"
        raise TemplateFailure("syntax", reason)
    try:
        return _environment().from_string(source)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        raise TemplateFailure("syntax", f"{f'line {line}: ' if line else ''}{str(error)[:500]}") from None
    except ValueError:
        # Python's own words name a function of Python.
        raise TemplateFailure("syntax", "it holds a number of too many digits") from None
    except (SyntaxError, RecursionError, OverflowError) as error:
        raise TemplateFailure("syntax", f"it is nested too deeply ({str(error)[:200]})") from None
    except MemoryError:
        # What CPython's parser raises for deep nesting.
        raise TemplateFailure("syntax", "it is nested too deeply, or too large, to be compiled") from None


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, which finds what chat templates ask for all the time at once.

    Entries of messages, methods of texts and plain values of a namespace or a loop are what it allows in any case; to
    find that out takes it ten times as long as to fetch them.
    """

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return what `obj.attribute` is."""
        kind = type(obj)
        if kind is dict:
            if attribute in obj and attribute not in _NAMES_OF_DICT:
                return obj[attribute]
        elif kind is str:
            if attribute in _METHODS_OF_STR:
                return getattr(obj, attribute)
        elif (kind is LoopContext or kind is Namespace) and not attribute.startswith("_"):
            value = getattr(obj, attribute, None)
            if type(value) in (bool, int, str):
                return value
        return super().getattr(obj, attribute)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    """Return the sandbox, with what Hugging Face gives chat templates beside jinja2's own."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationTag(Extension):
    """`{% generation %} ... {% endgeneration %}`, by which some templates mark what the model writes."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Macro) -> str:
        return caller()


def _raise_exception(message: str) -> None:
    raise TemplateError(str(message)[:500])


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter writes HTML escapes; Hugging Face's is plain json.dumps.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
