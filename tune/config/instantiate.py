"""Building what a component names, with the same judgement of names as validation."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tune.config.component import COMPONENT_KEY, Component
from tune.config.component_check import TORCHTUNE_PREFIX, find_trusted, resolve_component
from tune.config.diagnostics import Diagnostic
from tune.config.lookup import NotFound, find_module, search_path
from tune.config.slots import Slot
from tune.config.trust import BUILT_IN_PACKAGES, is_user_trusted
from tune.errors import ConfigError

_MAX_DEPTH = 50


def instantiate(
    component: Component | Mapping[str, Any] | str,
    *args: Any,
    defaults: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Build `component`: import what it names and call it with its arguments.

    Args:
        component: a `Component`, a mapping with ``_component_`` and keyword arguments, or a dotted path.
        *args: passed on, first.
        defaults: arguments to add where the callable takes them and nobody has set them.
        **kwargs: passed on; they win over the component's own.

    Returns:
        What the class or function returns. Components among the arguments, also inside lists and mappings, are
        built first.

    Raises:
        ConfigError: the name is not trusted or not there, or its arguments do not fit.
    """
    component = _as_component(component)
    if defaults:
        accepted = _accepted_names(import_component(component.path), args) - component.kwargs.keys()
        kwargs = {**{name: value for name, value in defaults.items() if name in accepted}, **kwargs}
    return _build(component, args, kwargs, depth=0)


def instantiate_by_name(name: str, slot: Slot, *args: Any, **arguments: Any) -> Any:
    """Build what a name means in a slot, as a config's `slot: name` does, for programs that do without a config.

    Args:
        name: a short name or a dotted path.
        slot: where it is looked up, and what fits.
        *args: what the recipe would pass.
        **arguments: what a config would set.

    Raises:
        ConfigError: nothing of that name fits the slot, or it does not take these arguments.
    """
    resolved = resolve_component(name, slot)
    if resolved.errors:
        raise ConfigError("\n".join(error.message for error in resolved.errors))
    return instantiate(resolved.path, *args, **arguments)


def import_component(path: str) -> Callable[..., Any]:
    """Return the class or function that dotted `path` names, after judging the name.

    Raises:
        ConfigError: the name is not trusted, not installed, or not there.
    """
    if path.startswith(TORCHTUNE_PREFIX):
        path = "tune." + path.removeprefix(TORCHTUNE_PREFIX)
    _refuse_untrusted(path)
    module, attributes = _import_longest(path)
    target: Any = module
    for i, attribute in enumerate(attributes):
        if not hasattr(target, attribute):
            where = ".".join([module.__name__, *attributes[:i]])
            raise ConfigError(f"{where} has nothing called {attribute}")
        target = getattr(target, attribute)
    if not callable(target) or inspect.ismodule(target):
        raise ConfigError(f"{path} is neither a class nor a function, so it cannot be built")
    callable_target: Callable[..., Any] = target
    return callable_target


def _refuse_untrusted(path: str) -> None:
    if not path:
        raise ConfigError("there is nothing to build: no component is named")
    if "." not in path:
        raise ConfigError(
            f"{path!r} is a short name; here a dotted path is needed, such as torch.optim.AdamW"
        )
    found = find_trusted(path)
    if isinstance(found, Diagnostic):
        raise ConfigError(found.message)
    if isinstance(found, NotFound) and found.reason != "no-package" and not is_user_trusted(path):
        raise ConfigError(f"{path} is not a class or function of {path.split('.', 1)[0]}")


def _import_longest(path: str) -> tuple[Any, list[str]]:
    """Import the longest part of `path` that is a module; return it and the attributes that are left."""
    parts = path.split(".")
    if (
        parts[0] not in sys.modules
        and parts[0] not in sys.builtin_module_names
        and find_module(parts[0]) is None
    ):
        raise ConfigError(
            f"{path} needs the package {parts[0]}, which is not installed: pip install {parts[0]}"
        )
    with _safe_path(path):
        for length in range(len(parts) - 1, 0, -1):
            name = ".".join(parts[:length])
            try:
                return importlib.import_module(name), parts[length:]
            except ModuleNotFoundError as error:
                if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
                    raise ConfigError(f"{path} cannot be imported: {error}") from error
            except ImportError as error:
                raise ConfigError(f"{path} cannot be imported: {error}") from error
    raise ConfigError(f"{path} cannot be imported: there is no module {parts[0]}")


@contextmanager
def _safe_path(path: str) -> Iterator[None]:
    """Import a built-in package without the working directory, a trusted one with it (at the end, for good)."""
    package = path.split(".", 1)[0]
    if package in BUILT_IN_PACKAGES and package not in sys.modules:
        before = list(sys.path)
        sys.path[:] = search_path(package)
        try:
            yield
        finally:
            sys.path[:] = before
        return
    here = str(Path.cwd())
    if package not in BUILT_IN_PACKAGES and here not in sys.path:
        sys.path.append(here)
    yield


def _as_component(component: Component | Mapping[str, Any] | str) -> Component:
    if isinstance(component, Component):
        return component
    if isinstance(component, str):
        return Component(component)
    if not isinstance(component, Mapping):
        raise ConfigError(
            f"a component is a dotted path or a mapping with {COMPONENT_KEY}, not {type(component).__name__}"
        )
    path = component.get(COMPONENT_KEY)
    if not isinstance(path, str):
        raise ConfigError(f"a component's mapping needs {COMPONENT_KEY}: the dotted path of what to build")
    return Component(path, {str(key): value for key, value in component.items() if key != COMPONENT_KEY})


def _build(component: Component, args: tuple[Any, ...], kwargs: Mapping[str, Any], depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ConfigError(f"components are nested more than {_MAX_DEPTH} deep")
    if "." in component.path:
        # Judged as strictly as in validation: a function that builds no component is never called from a config.
        for error in resolve_component(component.path).errors:
            raise ConfigError(error.message)
    target = import_component(component.path)
    own = {name: value for name, value in component.kwargs.items() if name not in kwargs}
    arguments = {**{name: _build_value(value, depth + 1) for name, value in own.items()}, **kwargs}
    _check_arguments(component.path, target, args, arguments)
    return target(*args, **arguments)


def _build_value(value: Any, depth: int) -> Any:
    """Build the components inside `value`; everything else is copied as it stands."""
    if depth > _MAX_DEPTH:
        raise ConfigError(f"arguments of a component are nested more than {_MAX_DEPTH} deep")
    if isinstance(value, Component):
        return _build(value, (), {}, depth)
    if isinstance(value, Mapping):
        if COMPONENT_KEY in value:
            return _build(_as_component(value), (), {}, depth)
        return {key: _build_value(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_build_value(item, depth + 1) for item in value]
    if type(value) is tuple:
        return tuple(_build_value(item, depth + 1) for item in value)
    return value


def _check_arguments(
    path: str, target: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Refuse arguments that do not fit, before the call: a TypeError from inside it is another matter."""
    try:
        signature = inspect.signature(target)
    except (ValueError, TypeError):  # compiled callables have none
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        names = ", ".join(name for name in signature.parameters)
        raise ConfigError(f"{path} cannot be built: {error}; it takes {names or 'no arguments'}") from error


def _accepted_names(target: Callable[..., Any], args: tuple[Any, ...]) -> set[str]:
    """Return the names that `target` spells out and that may be passed by keyword beside `args`."""
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (ValueError, TypeError):
        return set()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keyword = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return keyword - {parameter.name for parameter in positional[: len(args)]}
