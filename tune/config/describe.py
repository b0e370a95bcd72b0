"""Parameters for people and for editors: help text and JSON Schema."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from tune.config.component import COMPONENT_KEY, Component
from tune.config.dump import scalar
from tune.config.fields import ParamInfo, fields_of
from tune.config.typing import TypeSpec

_DRAFT = "http://json-schema.org/draft-07/schema#"
_REFERENCE = {"type": "string", "pattern": r"\$\{[^{}]+\}"}
_JSON_TYPES = {"bool": "boolean", "int": "integer", "float": "number", "str": "string", "path": "string"}


def type_text(info: ParamInfo) -> str:
    """A field's type in a few characters: "int", "bf16|fp32", "optimizer"; "choice" where these do not suffice."""
    text = info.slot.kind if info.slot is not None else info.spec.required().short()
    return text if len(text) <= 16 else "choice"


def help_text(info: ParamInfo) -> str:
    """A field's help, and in brackets its default, its choices and range, and what it is short for."""
    notes = []
    if info.required:
        notes.append("required")
    elif info.short_for is None:
        notes.append(f"default: {_default_text(info.default)}")
    if type_text(info) == "choice":
        notes.append(info.spec.required().describe())
    if allowed := info.bounds.describe():
        notes.append(allowed)
    if info.short_for is not None:
        notes.append(f"short for {info.short_for}")
    return f"{info.help} [{'; '.join(notes)}]"


def _default_text(default: Any) -> str:
    if not isinstance(default, Component):
        return scalar(default)
    return f"{default.path} {scalar(default.kwargs)}" if default.kwargs else default.path or "null"


def by_group(infos: Iterable[ParamInfo]) -> dict[str, list[ParamInfo]]:
    """Return fields below the headings they stand under."""
    groups: dict[str, list[ParamInfo]] = {}
    for info in infos:
        groups.setdefault(info.group, []).append(info)
    return groups


def parameters_text(params_cls: type[Any]) -> str:
    """Return all parameters of a class by group, as argparse lists options: name, type, default, range, help."""
    formatter = argparse.HelpFormatter("")
    for group, members in by_group(fields_of(params_cls).values()).items():
        formatter.start_section(f"{group} parameters")
        for info in members:
            name, about = f"{info.name} ({type_text(info)})", help_text(info).replace("%", "%%")
            formatter.add_argument(argparse.Action([], info.name, metavar=name, help=about))
        formatter.end_section()
    return formatter.format_help()


def json_schema(params_cls: type[Any], title: str | None = None) -> dict[str, Any]:
    """Return a JSON Schema (draft-07) of the configurations that `params_cls` accepts.

    Every value may also be a reference, `${...}`. A field with a short form is not required by the schema, as either
    spelling may be used.
    """
    infos = fields_of(params_cls)
    properties: dict[str, Any] = {
        "recipe": {"type": "string", "description": "The recipe this configuration is for."}
    }
    for info in infos.values():
        properties[info.name] = _field_schema(info)
    doc = (params_cls.__doc__ or "").strip().split("\n")[0]
    return {
        "$schema": _DRAFT,
        "title": title or params_cls.__name__,
        "description": doc,
        "type": "object",
        "properties": properties,
        "required": [info.name for info in infos.values() if info.required],
        "additionalProperties": False,
        "definitions": {
            "component": {
                "type": "object",
                "properties": {COMPONENT_KEY: {"type": "string", "minLength": 1}},
                "required": [COMPONENT_KEY],
            }
        },
    }


def _field_schema(info: ParamInfo) -> dict[str, Any]:
    schema = _type_schema(info.spec.required())
    limits = {"minimum": info.minimum, "maximum": info.maximum, "exclusiveMinimum": info.above}
    schema |= {name: limit for name, limit in limits.items() if limit is not None}
    if info.pattern is not None:
        schema["pattern"] = rf"^(?:{info.pattern})$"
    options = [schema, {"type": "object"}] if info.inherits else [schema]
    if info.spec.kind not in ("str", "path", "any") or info.pattern is not None:
        options.append(dict(_REFERENCE))
    if info.spec.nullable:
        options.append({"type": "null"})
    made: dict[str, Any] = {"anyOf": options} if len(options) > 1 else schema
    described = f"{info.help} Short for {info.short_for}." if info.short_for else info.help
    made["description"] = described
    if not info.required:
        default = info.default
        made["default"] = default.to_mapping() if isinstance(default, Component) else default
    return made


def _type_schema(spec: TypeSpec) -> dict[str, Any]:
    if spec.kind in _JSON_TYPES:
        made: dict[str, Any] = {"type": _JSON_TYPES[spec.kind]}
        if spec.kind in ("str", "path"):
            # the target decides: an unquoted number or boolean in a text field is text
            made = {"type": ["string", "number", "boolean"]}
        return made
    if spec.kind == "literal":
        return {"enum": list(spec.choices)}
    if spec.kind in ("list", "vtuple"):
        return {"type": "array", "items": _optional(spec.args[0]) if spec.args else {}}
    if spec.kind == "tuple":
        items = [_optional(arg) for arg in spec.args]
        return {"type": "array", "items": items, "minItems": len(items), "maxItems": len(items)}
    if spec.kind == "dict":
        return {"type": "object", "additionalProperties": _optional(spec.args[0]) if spec.args else {}}
    if spec.kind == "union":
        return {"anyOf": [_type_schema(arg) for arg in spec.args]}
    if spec.kind == "component":
        return {"anyOf": [{"type": "string", "minLength": 1}, {"$ref": "#/definitions/component"}]}
    if spec.kind == "object":
        return {"$ref": "#/definitions/component"}
    return {}


def _optional(spec: TypeSpec) -> dict[str, Any]:
    made = _type_schema(spec.required())
    return {"anyOf": [made, {"type": "null"}]} if spec.nullable else made
