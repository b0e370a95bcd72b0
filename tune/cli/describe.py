"""`tune describe`: one parameter, or the components that fit it and their arguments."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tune.cli.arguments import TRUST, Command, Given, UsageError, did_you_mean
from tune.cli.recipe_lookup import Target, find_target
from tune.cli.terminal import columns, paint, say, section, width, wrap
from tune.config.component_check import ResolvedName, list_components, resolve_component
from tune.config.describe import by_group, help_text, type_text
from tune.config.fields import ParamInfo, fields_of
from tune.config.signatures import read_argument_help, read_doc
from tune.config.slots import Slot
from tune.config.trust import parse_trust, trust


def run(given: Given) -> int:
    """Print what is known about a recipe's parameters, one of them, or a component."""
    trust(*parse_trust(given.all("trust")))
    target = find_target(given.operands[0], importing=True)
    if target.params is None:
        raise UsageError(f"{target.name} declares no params class")
    infos = fields_of(target.params)
    asked = given.operands[1:]
    say(_describe(target, infos, *asked) if asked else format_parameters(infos.values()))
    return 0


def _describe(target: Target, infos: dict[str, ParamInfo], asked: str) -> str:
    """Describe `optimizer`, `optimizer.lr`, `optimizer=SGD` or `SGD`."""
    path, _, component = asked.partition("=")
    name, _, argument = path.partition(".")
    info = infos.get(name)
    if info is None:
        return _describe_anywhere(target, infos, asked)
    if info.slot is None:
        if argument or component:
            raise UsageError(f"{name} is {info.type_text()}, so it has no parts to describe; ask for {name}")
        return columns([(info.name, info.type_text(), help_text(info))], indent="") + "\n"
    chosen = component or _default_name(info)
    if argument:
        return _describe_argument(info, info.slot, argument, chosen)
    if component:
        return _describe_component(info.slot, component)
    return _describe_slot(info, info.slot)


def _default_name(info: ParamInfo) -> str:
    default = info.default
    if isinstance(default, tuple) and len(default) == 1:
        (default,) = default
    return default if isinstance(default, str) else getattr(default, "path", "")


def _describe_anywhere(target: Target, infos: dict[str, ParamInfo], asked: str) -> str:
    """Describe a component that was asked for by its own name, or say what is near."""
    for info in infos.values():
        if info.slot is not None and "=" not in asked and not resolve_component(asked, info.slot).errors:
            return _describe_component(info.slot, asked)
    name = asked.partition(".")[0].partition("=")[0]
    hint = did_you_mean(name, list(infos), f"; `tune describe {target.name}` lists them")
    raise UsageError(f"{target.name} has no parameter {asked!r}{hint}")


def _describe_slot(info: ParamInfo, slot: Slot) -> str:
    default = _default_name(info)
    several = " (or a list of them)" if info.spec.kind == "union" else ""
    rows = [
        ("type", f"a name, a dotted path, or a mapping with _component_{several}"),
        ("default", "none: it is required" if info.required else default or "null"),
        ("looked up in", ", ".join(slot.namespaces)),
        ("group", info.group),
    ]
    about = "\n  ".join(wrap(info.help, width() - 2))
    text = f"{paint(info.name, 'bold')}\n  {about}\n\n{columns(rows)}\n"
    known = [
        (name, _first_sentence(read_doc(path, constructor=False)))
        for name, path in list_components(slot).items()
    ]
    if known:
        text += "\n" + section(f"what fits ({info.name}=NAME, or any dotted path):", known) + "\n"
    if default:
        text += "\n" + _describe_component(slot, default)
    return text


def _first_sentence(doc: str) -> str:
    """Return the first sentence of a docstring on one line, without markup, cut at a readable length."""
    for paragraph in doc.split("\n\n"):
        text = re.sub(r":\w+:`~?\.?([^`<]*)[^`]*`", r"\1", " ".join(paragraph.split())).lstrip(". ")
        # A formula may come first.
        if re.match(r"[\w(`]|-[\w(]", text) and not text.startswith(("Example", "Args:")):
            text = text.split(". ")[0]
            return text if len(text) <= 160 else text[:157] + "..."
    return ""


def _describe_component(slot: Slot, name: str) -> str:
    resolved = _resolve(slot, name)
    head = paint(resolved.path, "bold") + "\n"
    if resolved.signature is None:
        return head + "\n".join(f"  {warning.message}" for warning in resolved.warnings) + "\n"
    rows = [
        (argument, resolved.signature.parameters[argument].type.short() if is_own else "", text)
        for argument, (is_own, text) in _arguments(resolved, slot).items()
        if argument not in resolved.supplied
    ]
    if resolved.signature.takes_any_keyword:
        rows.append(("...", "", "any further argument"))
    doc = _first_sentence(read_doc(resolved.path))
    doc = "\n  ".join(wrap(doc, width() - 2))
    return f"{head}  {doc}\n\n{section('arguments:', rows or [('(nothing to set)',)])}\n"


def _arguments(resolved: ResolvedName, slot: Slot) -> dict[str, tuple[bool, str]]:
    """Return whether each argument is the component's own, not the recipe's, and what there is to say of it."""
    parameters = resolved.signature.parameters if resolved.signature is not None else {}
    texts = read_argument_help(read_doc(resolved.path), parameters)
    found = {}
    for name, parameter in parameters.items():
        note = "required" if parameter.required else f"default: {parameter.default_text}"
        if name in resolved.supplied:
            note = "the recipe sets it; a config must not"
        elif name in resolved.defaults:
            note = "the recipe sets it if you do not"
        found[name] = (True, f"{_first_sentence(texts.get(name, ''))} [{note}]".strip())
    if resolved.path.startswith("tune."):
        found |= {name: (False, text) for name, text in slot.of_recipe.items() if name not in found}
    return found


def _describe_argument(info: ParamInfo, slot: Slot, argument: str, name: str) -> str:
    if not name:
        raise UsageError(f"{info.name} is not set by default; ask for an argument of one: {info.name}=NAME")
    resolved = _resolve(slot, name)
    arguments = _arguments(resolved, slot)
    if argument not in arguments:
        hint = did_you_mean(argument, list(arguments), f"; it takes {', '.join(arguments) or 'none'}")
        raise UsageError(f"{resolved.path} has no argument {argument!r}{hint}")
    is_own, text = arguments[argument]
    kind = resolved.signature.parameters[argument].type.describe() if is_own and resolved.signature else ""
    return f"{info.name}.{argument}  {kind}\n  {text}\n  an argument of {resolved.path}\n"


def _resolve(slot: Slot, name: str) -> ResolvedName:
    resolved = resolve_component(name, slot)
    for error in resolved.errors:
        raise UsageError(error.message)
    return resolved


def format_parameters(infos: Iterable[ParamInfo]) -> str:
    """Return all parameters by group."""
    blocks = [
        section(f"{group}:", [(info.name, type_text(info), help_text(info)) for info in members])
        for group, members in by_group(infos).items()
    ]
    return "\n\n".join(blocks) + "\n"


COMMAND = Command(
    name="describe",
    summary="Explain a parameter, or a component's arguments.",
    description=(
        "Tells all about one parameter of a recipe: type, range, default, and for a component (model, optimizer, "
        "dataset ...) which ones fit and what arguments they take."
    ),
    examples=(
        ("tune describe full_finetune", "every parameter"),
        ("tune describe full_finetune batch_size", "one of them"),
        ("tune describe full_finetune optimizer=SGD", "a component and its arguments"),
        ("tune describe full_finetune optimizer.fused", "one argument of the default optimizer"),
    ),
    run=run,
    operands=(
        ("RECIPE", "A name from `tune ls`, or a .py file."),
        ("[PARAM]", "A parameter, one with a component, or one argument of it."),
    ),
    options=(TRUST,),
)
