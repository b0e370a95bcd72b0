"""Running a chat template that a stranger may have written: no code, no files, no endless loops, no flood of memory.

jinja2's sandbox keeps a template from Python itself. What it leaves open is bounded here: every pass of a loop and
every character made counts against a budget, and whatever can make a text or a number large is refused before it
does. Not bounded is the time of a single filter over data of allowed size.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

# Characters of one text, or items of one list: several times the longest context.
MAX_CHARS = 20_000_000
# Characters made while rendering once, in all.
MAX_CHARS_MADE = 10 * MAX_CHARS
MAX_PASSES = 2_000_000
MAX_SECONDS = 20.0
_MAX_NUMBER = 1_000_000
_MAX_BITS = 4096
_MAX_SOURCE = 1_000_000
_SIZED = "_sized"
# What fills or shuffles text and has no place in a chat template.
_REFUSED_FILTERS = ("urlize", "wordwrap", "pprint", "xmlattr", "random")
_REFUSED_GLOBALS = ("lipsum", "cycler", "joiner")
_WIDE = re.compile(r"\d{5,}|\*")


class TemplateLimitError(SecurityError):
    """A template would run for too long or write too much."""


class Budget:
    """What one rendering may still use."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begins a rendering."""
        self._passes = self._chars = 0
        self._deadline = time.monotonic() + MAX_SECONDS

    def tick(self, num_chars: int) -> str:
        """Count a pass of a loop whose body holds so much text."""
        self._passes += 1
        self.spend(num_chars)
        if self._passes > MAX_PASSES:
            raise TemplateLimitError(f"its loops run more than {MAX_PASSES:,} times")
        if self._passes % 64 == 0 and time.monotonic() > self._deadline:
            raise TemplateLimitError(f"it runs for more than {MAX_SECONDS:.0f} seconds")
        return ""

    def spend(self, num_chars: int) -> None:
        """Count a text or list that is about to be made."""
        self._chars += num_chars
        if num_chars > MAX_CHARS:
            raise TemplateLimitError(f"it makes a text of {num_chars:,} characters, at most {MAX_CHARS:,}")
        if self._chars > MAX_CHARS_MADE:
            raise TemplateLimitError(f"it makes more than {MAX_CHARS_MADE:,} characters of text in all")

    def sized(self, value: Any) -> Any:
        """Return a value that was made, and counts it."""
        if isinstance(value, str | list | tuple):
            self.spend(len(value))
        return value

    def written(self, value: Any) -> Any:
        """Return a value that is about to be written out, and counts all that it holds."""
        if isinstance(value, str):
            self.spend(len(value))
            return value
        # A list of lists of the same list is small until it is written.
        waiting, num_parts = [value], 0
        while waiting:
            part = waiting.pop()
            num_parts += 1
            if num_parts > MAX_PASSES:
                raise TemplateLimitError(f"it writes a value of more than {MAX_PASSES:,} parts")
            if isinstance(part, Mapping):
                waiting += [*part.keys(), *part.values()]
            elif isinstance(part, list | tuple | set):
                waiting += part
            else:
                self.spend(len(part) if isinstance(part, str) else 1)
        return value


class _Counted(NodeTransformer):
    """Puts a tick into every loop and macro, and a count on text that jinja2 joins by itself."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._with_tick(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._with_tick(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._with_tick(node)

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        # A block may be written many times over, by `self.name()`.
        return self._with_tick(node)

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        self.generic_visit(node)
        node.filter = nodes.Filter(node.filter, _SIZED, [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        # `a ~ b` is `[a, b] | join`, whose sizes are looked at before.
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "join", [], [], None, None, lineno=node.lineno)

    def _with_tick(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        num_chars = sum(len(text.data) for text in node.find_all(nodes.TemplateData))
        # An attribute of the environment: a name is something that a template could set anew.
        call = nodes.Call(nodes.EnvironmentAttribute("tick"), [nodes.Const(num_chars)], [], None, None)
        node.body = [nodes.ExprStmt(call).set_lineno(node.lineno), *node.body]
        return node  # type: ignore[no-any-return]


class _GenerationTag(Extension):
    """`{% generation %} ... {% endgeneration %}`, by which some templates mark what the model writes."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Macro) -> str:
        return caller()


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox of chat templates, with what Hugging Face gives them beside jinja2's own."""

    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def __init__(self, budget: Budget) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, loopcontrols],
            finalize=_write,
            # Nothing is worked out at compile time, where no budget counts.
            optimized=False,
        )
        self.budget = budget
        self.tick = budget.tick
        self.filters.update({"tojson": _to_json, _SIZED: budget.sized})
        for name in _REFUSED_FILTERS:
            del self.filters[name]
        for name in _REFUSED_GLOBALS:
            del self.globals[name]
        for name, function in self.filters.items():
            self.filters[name] = self._guarded(name, function)
        self.globals.update(
            {
                "raise_exception": _raise_exception,
                "strftime_now": _strftime_now,
                "namespace": _TemplateNamespace,
                "dict": _make_dict,
            }
        )

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        __self._check_call(getattr(__obj, "__name__", ""), owner, [*args, *kwargs.values()])
        return __self.budget.sized(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def guarded(*args: Any, **kwargs: Any) -> str:
            self._check_call("format", value.__self__, [*args, *kwargs.values()])
            return wrapped(*args, **kwargs)

        return guarded

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * max(right, 1))
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
            self.budget.written(right)
        elif operator == "*":
            self._check_product(left, right)
        elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, type(left)):
            self.budget.spend(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def _check_product(self, left: Any, right: Any) -> None:
        for value, times in ((left, right), (right, left)):
            if isinstance(value, str | list | tuple) and isinstance(times, int):
                self.budget.spend(len(value) * max(times, 0))
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter that refuses arguments which would make it write without measure."""
        # Some filters are handed jinja2's context first.
        start = 1 if hasattr(function, "jinja_pass_arg") else 0

        def guarded(*args: Any, **kwargs: Any) -> Any:
            values = list(args)
            if name == "join" and not isinstance(values[start], str | list | tuple):
                values[start] = list(values[start])
            self._check_call(name, values[start], [*values[start + 1 :], *kwargs.values()])
            return self.budget.sized(function(*values, **kwargs))

        for mark in ("jinja_pass_arg", "jinja_async_variant"):
            if hasattr(function, mark):
                setattr(guarded, mark, getattr(function, mark))
        return guarded

    def _check_call(self, name: str, owner: Any, args: list[Any]) -> None:
        """Refuse a function, method or filter that is about to write without measure."""
        texts = [value for value in args if isinstance(value, str)]
        numbers = [abs(value) for value in args if isinstance(value, int)]
        if max(numbers, default=0) > _MAX_NUMBER:
            raise TemplateLimitError(f"it calls {name} with a number above {_MAX_NUMBER:,}")
        if name in ("tojson", "string", "format", "join"):
            self.budget.written([owner, *args])
        if name == "sum" and any(isinstance(value, list | tuple) for value in args):
            raise TemplateLimitError("it adds up lists, each time making all anew")
        if name == "tojson" and max(numbers, default=0) > 100:
            raise TemplateLimitError("it indents JSON by more than 100")
        if name == "join":
            parts = owner if isinstance(owner, list | tuple) else args[0] if args else ()
            between = owner if isinstance(owner, str) else texts[0] if texts else ""
            if isinstance(parts, list | tuple):
                length = sum(len(part) if isinstance(part, str) else 1 for part in parts)
                self.budget.spend(length + len(parts) * len(between))
        elif not isinstance(owner, str):
            return
        elif name == "replace" and len(texts) > 1:
            times = owner.count(texts[0]) if texts[0] else len(owner) + 1
            self.budget.spend(len(owner) + times * len(texts[1]))
        elif name == "format":
            _check_format(owner)
            self.budget.spend(len(owner) * max([1, *map(len, texts), *numbers]))
        elif name in ("translate", "expandtabs", "indent"):
            self.budget.spend(
                (owner.count("\n") + owner.count("\t") + 1) * max([8, *map(len, texts), *numbers])
            )


class _TemplateNamespace(Namespace):
    """`namespace(...)` without names that reach into Python."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"it sets {name!r} on a namespace, where no name starts with an underscore")
        super().__setitem__(name, value)


@pass_context
def _write(context: Context, value: Any) -> Any:
    """Count what is written out. It takes the context so that jinja2 does not call it at compile time."""
    environment = context.environment
    return environment.budget.written(value) if isinstance(environment, ChatEnvironment) else value


def compile_template(source: str) -> tuple[Template, Budget]:
    """Return a template ready to render, and the budget that is started with each rendering.

    Raises:
        jinja2.TemplateError: the source is no template.
    """
    if len(source) > _MAX_SOURCE:
        raise TemplateLimitError(f"it has {len(source):,} characters, and at most {_MAX_SOURCE:,} are read")
    budget = Budget()
    environment = ChatEnvironment(budget)
    tree = _Counted().visit(environment.parse(source))
    try:
        code = environment.compile(tree, filename="<chat template>")
    except (SyntaxError, RecursionError, MemoryError, OverflowError) as error:
        raise TemplateError(f"it is nested too deeply ({error})") from error
    return Template.from_code(environment, code, environment.make_globals(None)), budget


def render(template: Template, budget: Budget, variables: Mapping[str, Any]) -> str:
    """Return the text a template writes.

    Raises:
        jinja2.TemplateError: the template raised it, or went beyond what is allowed.
    """
    budget.start()
    pieces: list[str] = []
    size = 0
    for piece in template.generate(**variables):
        size += len(piece)
        if size > MAX_CHARS:
            raise TemplateLimitError(f"it writes more than {MAX_CHARS:,} characters")
        pieces.append(piece)
    return "".join(pieces)


def _raise_exception(message: str) -> None:
    raise TemplateError(str(message)[:500])


def _strftime_now(form: str) -> str:
    _check_format(form)
    return datetime.now().strftime(form)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


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


def _check_bits(num_bits: int) -> None:
    if num_bits > _MAX_BITS:
        raise TemplateLimitError(f"it computes a number of {num_bits:,} bits")


def _check_format(form: str) -> None:
    if _WIDE.search(form):
        raise TemplateLimitError(f"it formats text with the width in {form[:40]!r}")
