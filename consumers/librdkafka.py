"""A consumer over librdkafka's C interface: whole batches of messages as columns, without an object for each.

The library is the one that confluent-kafka brings; its C interface is stable (INTRODUCTION.md, "ABI"). Only what is
hot goes this way: everything else is asked through confluent-kafka itself.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from ctypes import byref, c_char_p, c_int, c_int32, c_int64, c_size_t, c_ssize_t, c_void_p
from select import select
from typing import Any, NamedTuple, Protocol

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
_ERROR, _TOPIC, _PARTITION, _VALUE, _VALUE_BYTES, _KEY, _KEY_BYTES, _OFFSET = range(8)
"""Members of a rd_kafka_message_t, by word."""
_WAKE = (1).to_bytes(8, "little")  # what an eventfd takes


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
_get_lane = _declare("rd_kafka_queue_get_partition", c_void_p, c_void_p, c_char_p, c_int32)
_forward = _declare("rd_kafka_queue_forward", None, c_void_p, c_void_p)
_wake = _declare("rd_kafka_queue_io_event_enable", None, c_void_p, c_int, c_char_p, c_size_t)
_consume = _declare("rd_kafka_consume_batch_queue", c_ssize_t, c_void_p, c_int, c_void_p, c_size_t)
_topic_name = _declare("rd_kafka_topic_name", c_char_p, c_void_p)
_list_new = _declare("rd_kafka_topic_partition_list_new", c_void_p, c_int)
_list_add = _declare("rd_kafka_topic_partition_list_add", c_void_p, c_void_p, c_char_p, c_int32)
_list_set = _declare("rd_kafka_topic_partition_list_set_offset", c_int, c_void_p, c_char_p, c_int32, c_int64)
_list_destroy = _declare("rd_kafka_topic_partition_list_destroy", None, c_void_p)
_assign = _declare("rd_kafka_assign", c_int, c_void_p, c_void_p)
_watermarks = _declare("rd_kafka_get_watermark_offsets", c_int, c_void_p, c_char_p, c_int32, c_void_p, c_void_p)
_close = _declare("rd_kafka_consumer_close", c_int, c_void_p)
_queue_destroy = _declare("rd_kafka_queue_destroy", None, c_void_p)
_destroy_message = _declare("rd_kafka_message_destroy", None, c_void_p)
_destroy = _declare("rd_kafka_destroy", None, c_void_p)


class HasFileno(Protocol):
    """What `select` can wait for."""

    def fileno(self) -> int: ...


class Failure(NamedTuple):
    """What librdkafka says of a partition in place of a message; the topic is empty if it is about none."""

    topic: str
    partition: int
    offset: int
    error: KafkaError


class RawConsumer:
    """A consumer with fixed assignment and a queue for each partition. Raises KafkaException if librdkafka refuses.

    A partition whose messages are not taken fills its own queue (`queued.max.messages.kbytes`), is then fetched no
    further, and keeps what it has: a pause would throw that away.

    Args:
        settings: as confluent-kafka takes them, without callbacks.
        starts: partitions, with the offset to begin at.
        batch: at most so many messages of a partition are taken at once, and where no offset is missing none beyond one
            that is divisible by it.
    """

    def __init__(self, settings: Mapping[str, Any], starts: Mapping[Partition, int], *, batch: int) -> None:
        self._handle = _new_handle(settings)
        _poll_set_consumer(self._handle)
        self._pointers = np.zeros(batch, np.uint64)
        self._next = dict(starts)
        self._awake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._general = _get_queue(self._handle)  # errors that are about no partition
        self._lanes = {p: _get_lane(self._handle, p.topic.encode(), p.number) for p in starts}
        for lane in self._lanes.values():
            _forward(lane, None)
        for queue in (self._general, *self._lanes.values()):
            _wake(queue, self._awake, _WAKE, len(_WAKE))
        self._assign(starts)

    def consume(
        self,
        count: int,
        timeout_s: float,
        partitions: Iterable[Partition] | None = None,
        wake: Sequence[HasFileno] = (),
    ) -> tuple[dict[Partition, Messages], list[Failure]]:
        """Up to `count` messages of each of the partitions (all of them, if none are named).

        Waits until there is one, until one of `wake` can be read, or until the time is over.
        """
        wanted = self._lanes if partitions is None else partitions
        deadline = time.monotonic() + timeout_s
        while True:
            fetched, failures = self._take_all(count, wanted)
            left_s = deadline - time.monotonic()
            if fetched or failures or left_s <= 0:
                return fetched, failures
            sources: list[int | HasFileno] = [self._awake, *wake]
            ready, _, _ = select(sources, [], [], left_s)
            with suppress(BlockingIOError):
                os.eventfd_read(self._awake)
            if set(ready) - {self._awake}:
                return self._take_all(count, wanted)

    def _take_all(self, count: int, partitions: Iterable[Partition]) -> tuple[dict[Partition, Messages], list[Failure]]:
        failures = [_failure(int(message)) for message in self._pop(self._general, count)]
        fetched: dict[Partition, Messages] = {}
        batch = len(self._pointers)
        for partition in partitions:
            pointers_N = self._pop(self._lanes[partition], min(count, batch - self._next[partition] % batch))
            if len(pointers_N):
                messages, failed = _copied(pointers_N)
                failures += [Failure(partition.topic, partition.number, offset, error) for offset, error in failed]
                if len(messages):
                    fetched[partition] = messages
                    self._next[partition] = int(messages.offset_N[-1]) + 1
        return fetched, failures

    def _pop(self, queue: int, count: int) -> npt.NDArray[np.uint64]:
        """Pointers to what is at the head of a queue, valid until the next call; the caller destroys the messages."""
        count = min(count, len(self._pointers))
        return self._pointers[: max(_consume(queue, 0, self._pointers.ctypes.data, count), 0)]

    def high_watermark(self, partition: Partition) -> int:
        """The end of a partition as the newest answer to a fetch had it."""
        low, high = c_int64(), c_int64()
        _watermarks(self._handle, partition.topic.encode(), partition.number, byref(low), byref(high))
        return high.value

    def close(self) -> None:
        """Leaves the brokers. The consumer is of no use from then on."""
        for queue in (self._general, *self._lanes.values()):
            _queue_destroy(queue)
        _close(self._handle)
        _destroy(self._handle)
        os.close(self._awake)

    def _assign(self, starts: Mapping[Partition, int]) -> None:
        found = _list_new(len(starts))
        for partition, offset in starts.items():
            _list_add(found, partition.topic.encode(), partition.number)
            _list_set(found, partition.topic.encode(), partition.number, offset)
        error = _assign(self._handle, found)
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


def _failure(message: int) -> Failure:
    """What came in place of a message; gives it back to librdkafka."""
    words = (c_int64 * 8).from_address(message)
    text = ctypes.string_at(words[_VALUE], words[_VALUE_BYTES]) if words[_VALUE] else b""
    name = _topic_name(words[_TOPIC]) if words[_TOPIC] else b""
    error = KafkaError(c_int32(words[_ERROR]).value, text.decode())
    failure = Failure(name.decode(), c_int32(words[_PARTITION]).value, words[_OFFSET], error)
    _destroy_message(message)
    return failure


def _copied(pointers_N: npt.NDArray[np.uint64]) -> tuple[Messages, list[tuple[int, KafkaError]]]:
    """The messages of one partition, and offset and error of what came in place of one. librdkafka gets all back."""
    raw = Raw.room(len(pointers_N), _measure(pointers_N))
    _copy(pointers_N, np.zeros(1, np.int32), raw)
    keys = Blobs(raw.data, raw.key_start_N, raw.key_length_N)
    values = Blobs(raw.data, raw.value_start_N, raw.value_length_N)
    messages = Messages(raw.offset_N, raw.timestamp_N, keys, values)
    if not raw.error_N.any():
        return messages, []
    failed = [
        (int(raw.offset_N[at]), KafkaError(int(raw.error_N[at]), (values.at(at) or b"").decode()))
        for at in np.flatnonzero(raw.error_N).tolist()
    ]
    return messages.take(np.flatnonzero(raw.error_N == 0)), failed


class Raw(NamedTuple):
    """A batch of N messages; an error's text is its value."""

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
def _measure(pointers_N: npt.NDArray[np.uint64]) -> int:
    """The bytes of all keys and values."""
    size = 0
    for index in range(len(pointers_N)):
        pointer = pointers_N[index]
        size += _member(pointer, _KEY_BYTES) * (_member(pointer, _KEY) != 0)
        size += _member(pointer, _VALUE_BYTES) * (_member(pointer, _VALUE) != 0)
    return size


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
    _measure(none)
    _copy(none, np.zeros(1, np.int32), Raw.room(0, 0))
