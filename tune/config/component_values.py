"""Components in a configuration: what their name resolves to, and each argument typed by the signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tune.config.argument_ranges import Bounds, find_bounds
from tune.config.component import COMPONENT_KEY, Component
from tune.config.component_check import RENAMED, ResolvedName, resolve_component
from tune.config.convert import Converter, shadowed, show
from tune.config.diagnostics import Diagnostic, printable, shorten
from tune.config.fields import ParamInfo
from tune.config.merging import name_component
from tune.config.nodes import MAX_GUESSES, ErrorNode, MappingNode, Node, PythonValue, Scalar, SequenceNode
from tune.config.scalars import REFUSED
from tune.config.slots import SHUFFLE_BUFFER, STREAMING, WEIGHT, Slot
from tune.config.suggestions import amend, guess_argument
from tune.config.typing import ANY, BOOL, FLOAT, INT, TypeSpec

_MAX_COMPONENTS = 200  # each costs some milliseconds to look up
# What a component says to the recipe, beside what it is built with.
_FOR_RECIPE: dict[str, tuple[TypeSpec, Bounds | None]] = {
    WEIGHT: (FLOAT, Bounds(minimum=1e-6, maximum=1e6)),
    STREAMING: (BOOL, None),
    SHUFFLE_BUFFER: (INT, Bounds(minimum=1, maximum=10**7)),
}


class ComponentChecker:
    """Converts component nodes to `Component`s, and remembers what it learnt on the way.

    Args:
        infos: the declared parameters.
        report: called with every problem and warning.
    """

    def __init__(self, infos: Mapping[str, ParamInfo], report: Callable[[Diagnostic], None]) -> None:
        self._infos = infos
        self._report = report
        self._by_short_form = {info.short_for: info for info in infos.values() if info.short_for}
        self.converter = Converter(report, self)
        self._guesses = 0
        self._count = 0
        self.arguments: dict[str, set[str]] = {}  # by the path of the component
        self._types: dict[str, TypeSpec] = {}  # of each argument, by its path
        self.places: dict[str, Node] = {}  # where each argument stands, by its path
        self.guessed: set[str] = set()  # what unknown names probably meant, by path
        self._renamed: list[tuple[Diagnostic, str, Node]] = []
        self._missing: list[Diagnostic] = []  # kept until it is known what unknown keys meant

    def __call__(self, node: Node, path: str, slot: Slot | None) -> Any:
        component = _as_component(node)
        if component is None:
            kind = slot.kind if slot is not None else "component"
            article = "an" if kind[0] in "aeiou" else "a"
            wanted = f"{article} {kind}: a name, a dotpath, or a mapping with {COMPONENT_KEY}"
            message = f"{path} takes {wanted}, not {show(node)}"
            if isinstance(node, SequenceNode) and slot is not None:
                message = f"{path} takes one {kind}, not a list of them"
            return self.converter.refuse("wrong-type", path, message, node)
        name_node = component.entries.get(COMPONENT_KEY)
        if name_node is None:
            return self._without_name(component, path, slot)
        if isinstance(name_node, ErrorNode):
            self._untyped_arguments(component, path)
            return REFUSED
        name = _text_of(name_node)
        if name is None:
            message = f"{path}.{COMPONENT_KEY} takes the name of a component, not {show(name_node)}"
            return self.converter.refuse("wrong-type", f"{path}.{COMPONENT_KEY}", message, name_node)
        self.places[f"{path}.{COMPONENT_KEY}"] = name_node
        self._count += 1
        if self._count > _MAX_COMPONENTS:
            if self._count == _MAX_COMPONENTS + 1:
                message = f"there are more than {_MAX_COMPONENTS} components in this configuration"
                self.converter.refuse("config-too-large", path, message, name_node)
            return REFUSED
        resolved = resolve_component(name.strip(), slot)
        for finding in resolved.warnings:
            if finding.code == RENAMED:
                self._renamed.append((finding, path, name_node))
            else:
                self._found(finding, path, name_node, "warning")
        for finding in resolved.errors:
            self._found(finding, path, name_node, "error")
        if resolved.errors:
            self._untyped_arguments(component, path)
            return REFUSED
        kwargs = self._arguments(component, path, resolved, slot)
        return REFUSED if kwargs is None else Component(resolved.path, kwargs)

    def _found(self, found: Diagnostic, path: str, node: Node, severity: str) -> None:
        where = node.written or path
        self._report(
            replace(found, path=where, source=node.source, shadows=shadowed(node), severity=severity)
        )

    def _without_name(self, component: MappingNode, path: str, slot: Slot | None) -> Any:
        info = self._infos.get(path.split(".")[0])
        default = (
            info.default if info is not None and isinstance(info.default, str) and info.default else None
        )
        message = f"{path} is a mapping without {COMPONENT_KEY}, so there is nothing to pass its arguments to"
        if default:
            message += f"; add {COMPONENT_KEY}: {default} for the default"
        self._untyped_arguments(component, path)
        suggestion = f"{COMPONENT_KEY}: {default}" if default else None
        return self.converter.refuse("missing-component-name", path, message, component, suggestion)

    def _untyped_arguments(self, component: MappingNode, path: str) -> None:
        """Look through arguments nobody can type: nested components in them are still checked."""
        for key, node in component.entries.items():
            if key == COMPONENT_KEY:
                continue
            if node.written is not None:
                self._argument(node, ANY, f"{path}.{key}")  # a short form has a type of its own
            else:
                self.converter.convert(node, ANY, f"{path}.{key}")

    def _arguments(
        self, component: MappingNode, path: str, resolved: ResolvedName, slot: Slot | None
    ) -> dict[str, Any] | None:
        signature = resolved.signature
        for_recipe: list[str] = []
        if slot is not None:
            for_recipe += slot.of_recipe if resolved.path.startswith("tune.") else ()
            for_recipe += slot.of_entries if path.rpartition(".")[2].isdecimal() else ()
        types: dict[str, TypeSpec] = {}
        if signature is not None:
            types |= {
                name: parameter.type
                for name, parameter in signature.parameters.items()
                if parameter.kind != "positional" and name not in resolved.supplied
            }
        types |= {name: _FOR_RECIPE[name][0] for name in for_recipe}
        if signature is not None:
            self.arguments[path] = set(types)
            self._types |= {f"{path}.{name}": spec for name, spec in types.items()}
        kwargs: dict[str, Any] = {}
        for key, node in component.entries.items():
            if key == COMPONENT_KEY:
                continue
            fault = None if key in types else self._judge_name(key, path, component, resolved, slot)
            if fault is not None:
                self._report(fault)
                self.converter.convert(node, ANY, f"{path}.{key}")
                kwargs[key] = REFUSED
                continue
            bounds = _FOR_RECIPE[key][1] if key in for_recipe else None
            if slot is not None and key not in for_recipe:
                bounds = find_bounds(slot.kind, resolved.path, key)
            kwargs[key] = self._argument(node, types.get(key, ANY), f"{path}.{key}", bounds)
        is_whole = signature is None or self._note_missing(component, path, resolved)
        return kwargs if is_whole and all(value is not REFUSED for value in kwargs.values()) else None

    def _argument(self, node: Node, spec: TypeSpec, path: str, bounds: Bounds | None = None) -> Any:
        """Return the value of an argument, or `REFUSED`."""
        self.places[path] = node
        short = self._short_form_of(path)
        if short is not None and (spec.kind == "any" or (node.written and not isinstance(node, PythonValue))):
            spec = short.spec if spec.kind == "any" else spec
        value = self.converter.convert(node, spec, path)
        if value is REFUSED:
            return value
        where = node.written or path
        fault = short.find_fault(value, where) if short is not None else None
        if fault is not None:
            return self.converter.refuse(fault.code, path, fault.message, node)
        outside = bounds.find_fault(value) if bounds is not None else None
        return (
            value
            if outside is None
            else self.converter.refuse("out-of-range", path, f"{where} {outside}", node)
        )

    def judge_of(self, path: str) -> Callable[[Node, Callable[[Diagnostic], None]], Any]:
        """Return what tries a value for a parameter or an argument, without a trace in what has been found so far."""
        info = self._infos.get(path) or self._short_form_of(path)
        spec = self._types.get(path, ANY if info is None else info.spec)

        def judge(node: Node, report: Callable[[Diagnostic], None]) -> Any:
            checker = ComponentChecker(self._infos, report)
            value = checker.converter.convert(node, spec, path, None if info is None else info.slot)
            checker.report_missing()
            is_refused = value is REFUSED or (info is not None and info.find_fault(value) is not None)
            return REFUSED if is_refused else value

        return judge

    def _short_form_of(self, path: str) -> ParamInfo | None:
        """The short form of the argument at `path`; one of a list of components counts as the component."""
        slot, _, rest = path.partition(".")
        index, _, argument = rest.partition(".")
        return self._by_short_form.get(f"{slot}.{argument}" if index.isdecimal() else path)

    def _judge_name(
        self, key: str, path: str, component: MappingNode, resolved: ResolvedName, slot: Slot | None
    ) -> Diagnostic | None:
        """Why `key` cannot be an argument here, or None."""
        signature = resolved.signature
        if signature is None:
            return None
        node = component.entries[key]
        where = node.written or f"{path}.{key}"
        source = component.key_source(key)
        if key in resolved.supplied:
            message = f"{path}.{key} is passed by the recipe itself; remove it"
            return Diagnostic("colliding-argument", where, message, source)
        if key not in signature.parameters and signature.takes_any_keyword:
            return None
        usable = self.arguments[path]
        called = resolved.path
        if slot is not None and key in slot.of_entries:
            message = (
                f"{called} takes no argument {key}: it is for one of a list of components, which it mixes"
            )
            return Diagnostic("unknown-argument", where, message, source)
        if node.written:
            message = f"{called} takes no argument {key}, which is what {node.written} stands for; remove it"
            return Diagnostic("unknown-argument", where, message, source)
        self._guesses += 1
        guess = guess_argument(key, path, usable, self._infos) if self._guesses <= MAX_GUESSES else None
        message = f"{called} takes no argument {shorten(printable(key))}"
        if guess is not None and not guess.name:
            return Diagnostic("unknown-argument", where, f"{message}; {guess.reason}", source)
        if guess is not None:
            is_elsewhere = guess.name in self._infos and guess.name not in usable
            meant = guess.name if is_elsewhere else f"{path}.{guess.name}"
            there = None if is_elsewhere else component.entries.get(guess.name)
            is_second = meant in self.guessed
            suggestion, reason = amend(guess, node, there, self.judge_of(meant), is_second=is_second)
            self.guessed.add(meant)
            # what belongs elsewhere is no key that could stand here
            return Diagnostic(
                "unknown-argument",
                where,
                f"{message}; {reason}",
                source,
                None if is_elsewhere else suggestion,
            )
        if usable:
            listed = sorted(usable)
            shown = ", ".join(listed[:12]) + (", ..." if len(listed) > 12 else "")
            message += f"; it takes {shown}"
        else:
            message += "; it takes none"
        return Diagnostic("unknown-argument", where, message, source)

    def _note_missing(self, component: MappingNode, path: str, resolved: ResolvedName) -> bool:
        if resolved.signature is None:
            return True
        present = set(component.entries) | resolved.supplied | resolved.defaults
        present |= {name.rpartition(".")[2] for name in self.guessed if name.startswith(path + ".")}
        missing = [
            name
            for name, parameter in resolved.signature.parameters.items()
            if parameter.required and name not in present
        ]
        for name in missing:
            parameter = resolved.signature.parameters[name]
            message = f"{path}.{name} is required: {resolved.path} takes {parameter.type.describe()} there"
            short = self._by_short_form.get(f"{path}.{name}")
            if short is not None:
                message += f" (short form: {short.name})"
            place = component.entries.get(
                COMPONENT_KEY, component
            ).source  # its name says more than all of it
            self._missing.append(Diagnostic("missing-argument", f"{path}.{name}", message, place))
        return not missing

    def report_renamed(self) -> None:
        """Say once, at the first place, that names of the discontinued package are read as ours."""
        if not self._renamed:
            return
        finding, path, node = min(self._renamed, key=lambda item: item[2].source.sort_key())
        if len(self._renamed) > 1:
            message = f"{finding.message}, and {len(self._renamed) - 1} more names that start with torchtune. likewise"
            finding = replace(finding, message=message)
        self._found(finding, path, node, "warning")

    def report_missing(self) -> None:
        """Report the arguments that are missing, but for those that misspelt keys stand for."""
        for item in self._missing:
            short = self._by_short_form.get(item.path)
            names = {item.path} if short is None else {item.path, short.name}
            if names.isdisjoint(self.guessed):
                self._report(item)


def _as_component(node: Node) -> MappingNode | None:
    if isinstance(node, PythonValue) and not isinstance(node.value, str):
        # a hero may hand over the class itself
        module = getattr(node.value, "__module__", None)
        name = getattr(node.value, "__qualname__", None)
        if not callable(node.value) or not isinstance(module, str) or not isinstance(name, str):
            return None
        return name_component(replace(node, value=f"{module}.{name}"))
    return name_component(node)


def _text_of(node: Node) -> str | None:
    if isinstance(node, Scalar):
        return node.text or None
    if isinstance(node, PythonValue) and isinstance(node.value, str):
        return node.value or None
    return None
