"""Reads a job file: flags over environment over file over defaults; errors with their place."""

from __future__ import annotations

import difflib
import os
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from consumers.errors import ConfigError
from pipeline.config import JobConfig

ENVIRONMENT_PREFIX = "EVERTRAIN__"

KeyPath: TypeAlias = tuple[str | int, ...]

# What a file's author calls what pydantic names by its Python type:
_WORDS = {
    "tuple_type": "should be a list",
    "path_type": "should be a path, in quotes",
    "model_type": "should be a table",
}

_DEPTH_MAX = 16  # of tables and arrays within each other
_TOO_DEEP = f"tables and arrays within each other, more than {_DEPTH_MAX} deep"


def load(path: Path, overrides: Sequence[str] = (), environment: Mapping[str, str] = os.environ) -> JobConfig:
    """The job that a file, the environment and `--set` flags describe together.

    Args:
        path: a TOML file.
        overrides: flags, each `table.key=value`; the value is TOML, or else a plain string.
        environment: `EVERTRAIN__TABLE__KEY=value`; below KAFKA an underscore stands for a dot.

    Raises:
        ConfigError: one line per problem: where it is, the key, what is wrong and what is allowed.
    """
    draft = _Draft(path)
    for variable, raw in sorted(environment.items()):
        if variable.startswith(ENVIRONMENT_PREFIX):
            keys = tuple(variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"))
            if keys[0] == "kafka":
                keys = ("kafka", ".".join(keys[1:]).replace("_", "."))
            draft.override(keys, raw, f"environment variable {variable}")
    for override in overrides:
        key, equals, raw = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: write it as table.key=value, for example learner.batch_size=512")
        draft.override(_flag_keys(key), raw, f"--set {key}")
    try:
        return JobConfig.model_validate(draft.document)
    except ValidationError as error:
        problems = dict.fromkeys(draft.explain(details) for details in error.errors(include_url=False))
        raise ConfigError("\n".join(problems)) from None


class _Draft:
    """The merged document before validation, and where each of its keys came from."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            text = path.read_text(encoding="utf-8")
            self.document = _toml(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(_syntax_error(path, str(error), text)) from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not a text file in UTF-8 (byte {error.start})") from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot read the job file: {error.strerror}") from None
        self._places: dict[KeyPath, str] = {keys: f"{path}:{line}" for keys, line in _lines_of_keys(text).items()}

    def override(self, keys: tuple[str, ...], raw: str, place: str) -> None:
        """Sets one key, making tables on the way. Raises ConfigError if a table is in fact a value."""
        if not _is_text(place) or not _is_text(raw):
            raise ConfigError(f"{place.encode(errors='backslashreplace').decode()}: not text in UTF-8")
        table = self.document
        for depth, key in enumerate(keys[:-1], start=1):
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{place}: '{_dotted(keys[:depth])}' is not a table, it has no keys")
        table[keys[-1]] = _value(raw)
        kept = {path: where for path, where in self._places.items() if path[: len(keys)] != keys}
        self._places = kept | {keys: place}

    def explain(self, details: ErrorDetails) -> str:
        """One problem in one line."""
        keys, kind = tuple(details["loc"]), details["type"]
        if keys[:1] == ("kafka",):
            keys = keys[:2]  # what follows names a member of the union of types
        elif kind != "extra_forbidden":
            keys = _without_types(keys)
        place, name = self._place(keys), _dotted(keys)
        if kind == "extra_forbidden":
            leaf = _single_leaf(keys, details["input"])
            return f"{place}: unknown key '{_dotted(leaf)}'; {_suggest(leaf, keys[:-1])}"
        if kind == "missing":
            what = f"the table [{name}]" if _model_at(keys) else f"the key '{name}'"
            return f"{place}: {what} is missing"
        if kind == "literal_error":
            message = f"allowed: {details['ctx']['expected']}"
        elif keys[:1] == ("kafka",) and keys[1:]:
            message = "should be a string, a number, true or false"
        else:
            message = _WORDS.get(kind) or details["msg"].removeprefix("Value error, ").replace(
                "Input should be", "should be"
            )
        if not keys:
            return f"{place}: {message}"
        if kind == "string_type" and keys[0] != "kafka" and not place.startswith(str(self._path)):
            message += ", so write it in double quotes"
        return f"{place}: {name}{_shown(keys, details['input'])}: {message}"

    def _place(self, keys: KeyPath) -> str:
        """Where a key, or else the first key below it, or else the table around it, was written."""
        for known, place in self._places.items():
            if keys and known[: len(keys)] == keys:
                return place
        prefixes = (keys[:length] for length in range(len(keys) - 1, 0, -1))
        return next((self._places[prefix] for prefix in prefixes if prefix in self._places), str(self._path))


def _lines_of_keys(text: str) -> dict[KeyPath, int]:
    """The line on which each key and table of a valid TOML text begins, from 1."""
    lines, at = text.split("\n"), 0
    found: dict[KeyPath, int] = {}
    table: KeyPath = ()
    while at < len(lines):
        first, chunk = at, lines[at]
        at += 1
        while (part := _parse(chunk)) is None and at < len(lines):  # a value may go on over several lines
            chunk += "\n" + lines[at]
            at += 1
        paths = list(_paths(part or {}))
        if chunk.lstrip().startswith("["):
            table = paths[-1]
            while table in found and isinstance(table[-1], int):  # the next table of an array
                table = (*table[:-1], table[-1] + 1)
            found[table] = first + 1
        else:
            found.update({(*table, *path): first + 1 for path in paths})
    return found


def _paths(value: Any, prefix: KeyPath = ()) -> Iterator[KeyPath]:
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, below in items:
        yield (*prefix, key)
        yield from _paths(below, (*prefix, key))


def _parse(text: str) -> dict[str, Any] | None:
    try:
        return _toml(text)
    except tomllib.TOMLDecodeError:
        return None


def _toml(text: str) -> dict[str, Any]:
    """Raises TOMLDecodeError, also for what `tomllib` has other words for or takes although TOML does not."""
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise tomllib.TOMLDecodeError(_TOO_DEEP) from None
    except ValueError as error:  # a TOMLDecodeError, or that of a number with thousands of digits
        raise tomllib.TOMLDecodeError(str(error)) from None
    level: list[Any] = [document]
    for _ in range(_DEPTH_MAX):
        level = [item for value in level for item in _items(value)]
        if any(isinstance(item, int) and not -(2**63) <= item < 2**63 for item in level):
            raise tomllib.TOMLDecodeError("an integer of more than 64 bits")
    if level:
        raise tomllib.TOMLDecodeError(_TOO_DEEP)
    return document


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _syntax_error(path: Path, message: str, text: str) -> str:
    what, at, place = message.partition(" (at ")
    words = place.removesuffix(")").replace(",", "").split()
    line = int(words[1]) if words[:1] == ["line"] else text.rstrip().count("\n") + 1
    where = f"{path}:{line}" if at else f"{path}"
    return f"{where}: not valid TOML: {what[:1].lower()}{what[1:]}"


def _flag_keys(key: str) -> tuple[str, ...]:
    document = _parse(f"{key} = 0")
    if not document:  # a comment is TOML, too
        raise ConfigError(f"--set {key}: not a key; write it as table.key=value")
    keys = tuple(str(part) for part in list(_paths(document))[-1])
    return (keys[0], ".".join(keys[1:])) if keys[0] == "kafka" and len(keys) > 1 else keys


def _is_text(value: str) -> bool:
    """Whether the operating system's bytes were UTF-8: Python keeps others as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _value(raw: str) -> Any:
    document = _parse(f"value = {raw}")
    if document is None or list(document) != ["value"] or isinstance(document["value"], date | time):
        return raw  # times stay text: the models read them
    return document["value"]


def _dotted(keys: KeyPath) -> str:
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}"
    return text.removeprefix(".")


def _without_types(keys: KeyPath) -> KeyPath:
    """The keys as a file has them: below a value of several types, pydantic names one, such as `constrained-int`."""
    return tuple(takewhile(lambda key: isinstance(key, int) or key.isidentifier(), keys))


def _single_leaf(keys: KeyPath, value: Any) -> KeyPath:
    while isinstance(value, dict) and len(value) == 1:
        key, value = next(iter(value.items()))
        keys = (*keys, key)
    return keys


def _shown(keys: KeyPath, value: Any) -> str:
    if isinstance(value, dict | list) or is_secret(str(keys[-1])):
        return ""
    return f" = {value!r:.80}"


def is_secret(key: str) -> bool:
    """Whether the value of a key must not be shown."""
    return key.endswith((".password", ".secret", ".pem", ".jaas.config", ".user.info", ".token"))


def _model_at(keys: KeyPath) -> type[BaseModel] | None:
    """The model that describes the table at `keys`, if it is a table."""
    model: type[BaseModel] | None = JobConfig
    for key in keys:
        if isinstance(key, int):
            continue
        field = model.model_fields.get(key) if model else None
        model = next(_models_in(field.annotation), None) if field else None
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _suggest(leaf: KeyPath, table: KeyPath) -> str:
    """The key most like an unknown one: in its table or, if the table itself is unknown, anywhere."""
    model = _model_at(table)
    here = {key: _dotted((*table, key)) for key in (model.model_fields if model else ())}
    known = here
    if not table:
        tables = {key: _model_at((key,)) for key in here}
        known = {f"{key}.{name}": f"{key}.{name}" for key, at in tables.items() if at for name in at.model_fields}
        known |= here
    close = difflib.get_close_matches(_dotted(leaf[len(table) :]), known, n=1)
    return f"did you mean '{known[close[0]]}'?" if close else f"allowed here: {', '.join(sorted(here))}"
