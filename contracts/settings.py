"""Strict YAML settings: unknown keys are refused, with their line and the nearest known key.

The model is a pydantic class; this module only adds what a person editing a file needs: where, what, and what instead.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from contracts.errors import ConfigInvalid

__all__ = ["SettingInvalid", "StrictModel", "load_settings", "parse_settings"]

M = TypeVar("M", bound=pydantic.BaseModel)

# A settings file is read by people; a larger one is a mistake or an attack.
_FILE_BYTES_MAX = 1024 * 1024
# Levels of lists and sections; no settings have ten. The parser's events come without recursion, its nodes do not.
_DEPTH_MAX = 32


class SettingInvalid(ValueError):
    """For a model's own validator: a setting inside it is wrong; `location` leads to its key, as ("routes", 0)."""

    def __init__(self, location: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.location = location


class StrictModel(pydantic.BaseModel):
    """A settings section: unknown keys refused, no silent conversion between types, immutable once read."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


def load_settings(path: Path, model: type[M]) -> M:
    """Return the settings in a YAML file. Raises `ConfigInvalid` naming file, line, key, and what was expected."""
    try:
        if path.stat().st_size > _FILE_BYTES_MAX:
            raise ConfigInvalid(f"{path}: larger than {_FILE_BYTES_MAX} bytes")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(
            f"{path}: cannot be read: {getattr(error, 'strerror', error)}",
            remedy="name the settings file with --config; config/ in the repository has one of each kind to begin with",
        ) from None
    return parse_settings(text, model, str(path))


def parse_settings(text: str, model: type[M], origin: str) -> M:
    """Return the settings in YAML `text`; `origin` names it in errors."""
    try:
        _refuse_deep_nesting(text, origin)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_duplicate_keys(node, origin)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}:{mark.line + 1}" if mark else origin
        raise ConfigInvalid(f"{where}: not YAML: {getattr(error, 'problem', error)}") from None
    except ValueError as error:  # PyYAML lets the date 2020-13-45 and a number of 5,000 digits through to Python
        raise ConfigInvalid(f"{origin}: not YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigInvalid(f"{origin}: expected `key: value` lines")
    try:
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        problems = [_problem(detail, node, model, origin) for detail in error.errors(include_url=False)]
        raise ConfigInvalid("\n".join(problems)) from None


def _problem(detail: Any, node: yaml.Node | None, model: type[pydantic.BaseModel], origin: str) -> str:
    cause = detail.get("ctx", {}).get("error")
    location = (*detail["loc"], *(cause.location if isinstance(cause, SettingInvalid) else ()))
    line = _line_of(node, location)
    key = ".".join(str(part) for part in location)
    if detail["type"] == "extra_forbidden":
        return f"{origin}:{line}: `{key}` is not a setting{_hint(str(location[-1]), model)}"
    if detail["type"] == "missing":
        return f"{origin}:{line}: `{key}` is missing"
    message = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if detail["type"] == "string_type" and isinstance(detail["input"], int | float):
        # An address without quotes is a hexadecimal number to YAML, and a price a float.
        message += "; write it in quotes"
    return f"{origin}:{line}: `{key}`: {message}"


def _hint(name: str, model: type[pydantic.BaseModel]) -> str:
    """Say where a misplaced key belongs, or which known key a misspelt one is nearest to."""
    sections = _sections_by_key(model)
    if name in sections:
        return f" here; it belongs {sections[name]}"
    close = difflib.get_close_matches(name, sections, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def _sections_by_key(model: type[pydantic.BaseModel]) -> dict[str, str]:
    """Return every key of the model and of the models inside it, with where it belongs; outer sections first."""
    sections: dict[str, str] = {}
    waiting: list[tuple[type[pydantic.BaseModel], str]] = [(model, "at the top")]
    seen: set[type[pydantic.BaseModel]] = set()
    for current, section in waiting:
        if current in seen:
            continue
        seen.add(current)
        for field_name, info in current.model_fields.items():
            key = info.alias or field_name
            sections.setdefault(key, section)
            waiting += [(inner, f"under `{key}`") for inner in _models_in(info.annotation)]
    return sections


def _models_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def _line_of(node: yaml.Node | None, location: tuple[Any, ...]) -> int:
    """Return the line of the deepest node on the way to `location`."""
    line = 1 if node is None else node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if found is None:
                continue
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _refuse_deep_nesting(text: str, origin: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH_MAX:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise ConfigInvalid(f"{origin}:{line}: nested too deeply")


def _refuse_duplicate_keys(node: yaml.Node | None, origin: str) -> None:
    stack = [node]
    # An alias is the same node again: without this, nested aliases take for ever.
    visited: set[int] = set()
    while stack:
        current = stack.pop()
        if id(current) in visited:
            continue
        visited.add(id(current))
        if isinstance(current, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in current.value:
                stack.append(value)
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if key.value in seen:
                    raise ConfigInvalid(f"{origin}:{key.start_mark.line + 1}: `{key.value}` is set twice")
                seen.add(key.value)
        elif isinstance(current, yaml.SequenceNode):
            stack += current.value
