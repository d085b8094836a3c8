"""A consumer over librdkafka's C interface: whole batches of messages as columns, without an object for each.

The library is the one that confluent-kafka brings; its C interface is stable (INTRODUCTION.md, "ABI"). Only what is
hot goes this way: everything else is asked through confluent-kafka itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from ctypes import byref, c_char_p, c_int, c_int32, c_int64, c_size_t, c_ssize_t, c_void_p
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from confluent_kafka import KafkaError, KafkaException, cimpl
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from consumers.compiled import njit_cached, njit_inlined
from consumers.record import NULL_LENGTH, Blobs, Bytes1, Int64s, Messages, Partition

_library = ctypes.CDLL(cimpl.__file__, mode=ctypes.RTLD_GLOBAL)  # global: compiled code finds its symbols by name
_CONSUMER = 1  # rd_kafka_type_t
_ERROR_TEXT_BYTES = 512
_LANES_MAX = 4096  # partitions that one batch may hold messages of
_ERROR, _TOPIC, _PARTITION, _VALUE, _VALUE_BYTES, _KEY, _KEY_BYTES, _OFFSET = range(
    8
)  # members of a rd_kafka_message_t, by word


def _declare(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(_library, name)
    function.restype, function.argtypes = result, arguments
    return function


_conf_new = _declare("rd_kafka_conf_new", c_void_p)
_conf_set = _declare("rd_kafka_conf_set", c_int, c_void_p, c_char_p, c_char_p, c_char_p, c_size_t)
_conf_destroy = _declare("rd_kafka_conf_destroy", None, c_void_p)
_new = _declare("rd_kafka_new", c_void_p, c_int, c_void_p, c_char_p, c_size_t)
_poll_set_consumer = _declare("rd_kafka_poll_set_consumer", c_int, c_void_p)
_get_queue = _declare("rd_kafka_queue_get_consumer", c_void_p, c_void_p)
_consume = _declare("rd_kafka_consume_batch_queue", c_ssize_t, c_void_p, c_int, c_void_p, c_size_t)
_topic_name = _declare("rd_kafka_topic_name", c_char_p, c_void_p)
_list_new = _declare("rd_kafka_topic_partition_list_new", c_void_p, c_int)
_list_add = _declare("rd_kafka_topic_partition_list_add", c_void_p, c_void_p, c_char_p, c_int32)
_list_set = _declare("rd_kafka_topic_partition_list_set_offset", c_int, c_void_p, c_char_p, c_int32, c_int64)
_list_destroy = _declare("rd_kafka_topic_partition_list_destroy", None, c_void_p)
_assign = _declare("rd_kafka_assign", c_int, c_void_p, c_void_p)
_pause = _declare("rd_kafka_pause_partitions", c_int, c_void_p, c_void_p)
_resume = _declare("rd_kafka_resume_partitions", c_int, c_void_p, c_void_p)
_watermarks = _declare("rd_kafka_get_watermark_offsets", c_int, c_void_p, c_char_p, c_int32, c_void_p, c_void_p)
_close = _declare("rd_kafka_consumer_close", c_int, c_void_p)
_queue_destroy = _declare("rd_kafka_queue_destroy", None, c_void_p)
_destroy = _declare("rd_kafka_destroy", None, c_void_p)


class Failure(NamedTuple):
    """What librdkafka says of a partition in place of a message; the topic is empty if it is about none."""

    topic: str
    partition: int
    offset: int
    error: KafkaError


class RawConsumer:
    """A consumer with fixed assignment. Raises KafkaException if librdkafka refuses the settings.

    Args:
        settings: as confluent-kafka takes them, without callbacks.
        starts: partitions, with the offset to begin at.
        batch: at most so many messages are taken at once.
    """

    def __init__(self, settings: Mapping[str, Any], starts: Mapping[Partition, int], *, batch: int) -> None:
        self._handle = _new_handle(settings)
        _poll_set_consumer(self._handle)
        self._queue = _get_queue(self._handle)
        self._pointers = np.zeros(batch, np.uint64)
        self._lane_N = np.zeros(batch, np.int64)
        self._lanes = Lanes.room()
        self._on_list(_assign, starts)

    def consume(self, count: int, timeout_s: float) -> tuple[dict[Partition, Messages], list[Failure]]:
        """Up to `count` messages, by partition; waits until there are so many or the time is over."""
        count = min(count, len(self._pointers))
        found = max(_consume(self._queue, int(timeout_s * 1000), self._pointers.ctypes.data, count), 0)
        if not found:
            return {}, []
        pointers_N, lane_N = self._pointers[:found], self._lane_N[:found]
        lanes, size = _measure(pointers_N, lane_N, self._lanes)
        topics = [_name(int(topic)) for topic in self._lanes.topic_L[:lanes]]
        raw = Raw.room(found, size)
        _copy(pointers_N[np.argsort(lane_N, kind="stable")], np.zeros(1, np.int32), raw)
        fetched: dict[Partition, Messages] = {}
        failures: list[Failure] = []
        stops_L = np.cumsum(self._lanes.count_L[:lanes]).tolist()
        for topic, number, start, stop in zip(
            topics, self._lanes.partition_L[:lanes].tolist(), [0, *stops_L], stops_L, strict=False
        ):
            messages, failed = _part(raw, start, stop)
            if len(messages):
                fetched[Partition(topic, number)] = messages
            failures += [Failure(topic, number, offset, error) for offset, error in failed]
        return fetched, failures

    def high_watermark(self, partition: Partition) -> int:
        """The end of a partition as the newest answer to a fetch had it."""
        low, high = c_int64(), c_int64()
        _watermarks(self._handle, partition.topic.encode(), partition.number, byref(low), byref(high))
        return high.value

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Stops fetching; what librdkafka holds of these partitions is fetched again later."""
        self._on_list(_pause, dict.fromkeys(partitions))

    def resume(self, partitions: Iterable[Partition]) -> None:
        self._on_list(_resume, dict.fromkeys(partitions))

    def close(self) -> None:
        """Leaves the brokers. The consumer is of no use from then on."""
        _queue_destroy(self._queue)
        _close(self._handle)
        _destroy(self._handle)

    def _on_list(self, call: Any, partitions: Mapping[Partition, int | None]) -> None:
        if not partitions:
            return
        found = _list_new(len(partitions))
        for partition, offset in partitions.items():
            _list_add(found, partition.topic.encode(), partition.number)
            if offset is not None:
                _list_set(found, partition.topic.encode(), partition.number, offset)
        error = call(self._handle, found)
        _list_destroy(found)
        if error:
            raise KafkaException(KafkaError(error))


def _new_handle(settings: Mapping[str, Any]) -> int:
    conf, text = _conf_new(), ctypes.create_string_buffer(_ERROR_TEXT_BYTES)
    for name, value in settings.items():
        written = str(value).lower() if isinstance(value, bool) else str(value)
        if _conf_set(conf, name.encode(), written.encode(), text, len(text)):
            _conf_destroy(conf)
            raise KafkaException(KafkaError(KafkaError._INVALID_ARG, text.value.decode()))
    handle: int | None = _new(_CONSUMER, conf, text, len(text))
    if handle is None:
        _conf_destroy(conf)
        raise KafkaException(KafkaError(KafkaError._INVALID_ARG, text.value.decode()))
    return handle


def _name(topic: int) -> str:
    name: bytes = _topic_name(topic) if topic else b""
    return name.decode()


class Lanes(NamedTuple):
    """The partitions that a batch holds messages of, in the order of their first one: room for L."""

    topic_L: npt.NDArray[np.uint64]  # rd_kafka_topic_t *
    partition_L: npt.NDArray[np.int32]
    count_L: Int64s

    @classmethod
    def room(cls) -> Lanes:
        """For as many as one batch may hold."""
        return cls(np.zeros(_LANES_MAX, np.uint64), np.zeros(_LANES_MAX, np.int32), np.zeros(_LANES_MAX, np.int64))


class Raw(NamedTuple):
    """A batch of N messages, lane by lane; an error's text is its value."""

    offset_N: Int64s
    timestamp_N: Int64s
    key_start_N: Int64s
    key_length_N: Int64s
    value_start_N: Int64s
    value_length_N: Int64s
    error_N: npt.NDArray[np.int32]
    data: Bytes1

    @classmethod
    def room(cls, messages: int, size: int) -> Raw:
        """For so many messages, with so many bytes of keys and values."""
        a, b, c, d, e, f = np.empty((6, messages), np.int64)
        return cls(a, b, c, d, e, f, np.empty(messages, np.int32), np.empty(size, np.uint8))


def _part(raw: Raw, start: int, stop: int) -> tuple[Messages, list[tuple[int, KafkaError]]]:
    """The messages of one lane, and what came in place of messages: offsets and errors."""
    lane = slice(start, stop)
    keys = Blobs(raw.data, raw.key_start_N[lane], raw.key_length_N[lane])
    values = Blobs(raw.data, raw.value_start_N[lane], raw.value_length_N[lane])
    messages = Messages(raw.offset_N[lane], raw.timestamp_N[lane], keys, values)
    if not raw.error_N[lane].any():
        return messages, []
    failed = [
        (int(messages.offset_N[at]), KafkaError(int(raw.error_N[start + at]), (values.at(at) or b"").decode()))
        for at in np.flatnonzero(raw.error_N[lane]).tolist()
    ]
    good_N = np.flatnonzero(raw.error_N[lane] == 0)
    return messages.take(good_N), failed


@intrinsic  # type: ignore[untyped-decorator]
def _word_at(_: Any, address: Any) -> Any:
    """The 8 bytes at an address."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))

    return types.int64(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _copy_bytes(_: Any, address: Any, length: Any, data: Any, place: Any) -> Any:
    """Copies bytes at an address into an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[2])(context, builder, arguments[2])
        target = builder.gep(array.data, [arguments[3]])
        source = builder.inttoptr(arguments[0], target.type)
        cgutils.raw_memcpy(builder, target, source, arguments[1], 1)
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64, data, types.int64), generate


def _external(name: str, result: Any, *arguments: Any) -> Any:
    return types.ExternalFunction(name, result(*arguments))


_message_timestamp = _external("rd_kafka_message_timestamp", types.int64, types.uint64, types.uint64)
_message_destroy = _external("rd_kafka_message_destroy", types.void, types.uint64)


@njit_cached
def _measure(pointers_N: npt.NDArray[np.uint64], lane_N: Int64s, lanes: Lanes) -> tuple[int, int]:
    """Finds the lane of each message, and how many there are in each; returns the number of lanes and of bytes."""
    known, size, last = 0, 0, 0
    for index in range(len(pointers_N)):
        pointer = pointers_N[index]
        topic, partition = np.uint64(_member(pointer, _TOPIC)), np.int32(_member(pointer, _PARTITION) & 0xFFFFFFFF)
        if not (known and lanes.topic_L[last] == topic and lanes.partition_L[last] == partition):
            last = 0
            while last < known and not (lanes.topic_L[last] == topic and lanes.partition_L[last] == partition):
                last += 1
            if last == known:
                lanes.topic_L[last], lanes.partition_L[last], lanes.count_L[last] = topic, partition, 0
                known += 1
        lane_N[index] = last
        lanes.count_L[last] += 1
        size += _member(pointer, _KEY_BYTES) * (_member(pointer, _KEY) != 0)
        size += _member(pointer, _VALUE_BYTES) * (_member(pointer, _VALUE) != 0)
    return known, size


@njit_cached
def _copy(pointers_N: npt.NDArray[np.uint64], kind_1: npt.NDArray[np.int32], raw: Raw) -> None:
    """Copies messages in their order, and gives them back to librdkafka."""
    end = 0
    for index in range(len(pointers_N)):
        pointer = pointers_N[index]
        raw.offset_N[index] = _member(pointer, _OFFSET)
        raw.error_N[index] = np.int32(_member(pointer, _ERROR) & 0xFFFFFFFF)
        raw.timestamp_N[index] = _message_timestamp(pointer, np.uint64(kind_1.ctypes.data))
        raw.key_start_N[index] = end
        raw.key_length_N[index], end = _append(raw.data, end, _member(pointer, _KEY), _member(pointer, _KEY_BYTES))
        raw.value_start_N[index] = end
        raw.value_length_N[index], end = _append(
            raw.data, end, _member(pointer, _VALUE), _member(pointer, _VALUE_BYTES)
        )
        _message_destroy(pointer)


@njit_inlined
def _member(message: np.uint64, word: int) -> int:
    """A member of a rd_kafka_message_t, with whatever stands beside it in the same word."""
    return int(_word_at(np.uint64(message + np.uint64(8 * word))))


@njit_cached
def _append(data: Bytes1, end: int, address: int, length: int) -> tuple[int, int]:
    """Copies bytes behind what is there; returns their length (or that of null), and the new end."""
    if address == 0:
        return NULL_LENGTH, end
    _copy_bytes(np.uint64(address), length, data, end)
    return length, end + length


def compile_loops() -> None:
    """Compiles what `RawConsumer.consume` runs, by running it on no message at all."""
    none = np.zeros(0, np.uint64)
    _measure(none, np.zeros(0, np.int64), Lanes.room())
    _copy(none, np.zeros(1, np.int32), Raw.room(0, 0))
