"""The Schema Registry, asked through Confluent's client: the only place that imports it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from consumers.codecs.fields import Reject
from consumers.errors import ConfigError, DependencyError

T = TypeVar("T")

TIMEOUT_S = 5
_UNKNOWN = (40401, 40402, 40403)  # subject, version, schema: a 404 without one of them is not from a registry


class Registry:
    """The registry of one topic.

    All methods raise Reject if the registry knows no such schema, or one of another type, and DependencyError if it
    does not say.
    """

    def __init__(self, topic: str, settings: Mapping[str, Any]) -> None:
        """Raises ConfigError for settings that the client does not take."""
        from confluent_kafka.schema_registry import SchemaRegistryClient

        self._place = f"Schema Registry {settings['url']} of {topic}"
        try:
            self._client = SchemaRegistryClient({"timeout": TIMEOUT_S, "max.retries": 0, **settings})
        except (ValueError, TypeError, OSError) as error:
            raise ConfigError(f"{self._place}: schema_registry: {error}") from None

    def avro(self, schema_id: int) -> list[str]:
        """The Avro schemas (JSON) that belong to an id, each behind those that it refers to."""
        schema = self._ask(f"schema id {schema_id}", partial(self._client.get_schema, schema_id))
        _check_type("AVRO", schema, schema_id)
        texts: dict[tuple[str, int], str] = {}
        self._add_references(schema, texts)
        return [*texts.values(), schema.schema_str]

    def _add_references(self, schema: Any, texts: dict[tuple[str, int], str]) -> None:
        for reference in schema.references or ():
            subject, version = reference.subject, reference.version
            if (subject, version) not in texts:
                what = f"version {version} of subject {subject}"
                found = self._ask(what, partial(self._client.get_version, subject, version, deleted=True)).schema
                self._add_references(found, texts)
                texts[subject, version] = found.schema_str

    def protobuf(self, schema_id: int) -> bytes:
        """The FileDescriptorProto that belongs to an id, serialised."""
        what = f"schema id {schema_id}"
        schema = self._ask(what, partial(self._client.get_schema, schema_id, fmt="serialized"))
        _check_type("PROTOBUF", schema, schema_id)
        try:
            return base64.b64decode(schema.schema_str, validate=True)
        except ValueError:
            raise DependencyError(
                f"{self._place}: gives {what} as .proto text. Use a registry that knows format=serialized"
            ) from None

    def _ask(self, what: str, ask: Callable[[], T]) -> T:
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        try:
            return ask()
        except SchemaRegistryError as error:
            if error.error_code in _UNKNOWN:
                raise Reject(f"the Schema Registry knows no {what}") from None
            raise DependencyError(f"{self._place}: asked for {what}, it says: {error}") from None
        except Exception as error:  # of whichever HTTP library the client uses
            raise DependencyError(
                f"{self._place}: asked for {what}, it cannot be reached ({error or type(error).__name__}). "
                "Start it, or mend schema_registry.url"
            ) from None


def _check_type(wanted: str, schema: Any, schema_id: int) -> None:
    if schema.schema_type != wanted:
        raise Reject(f"schema id {schema_id} is of type {schema.schema_type}, not {wanted}")
