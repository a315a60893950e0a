"""Which partition a message goes to.

The key decides, by one of three named hashes, so that producers in every language agree. Messages without a key take
turns. Pure functions: the partitioner's name and the number of partitions are parameters, stored with the topic.

The hash of a key never changes. tests/unit/partition_vectors.json lists what other implementations must return.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_UINT32_MASK: Final = 0xFFFFFFFF
_INT32_MASK: Final = 0x7FFFFFFF

_MURMUR2_SEED: Final = 0x9747B28C
_MURMUR2_MULTIPLIER: Final = 0x5BD1E995

_FNV1A_OFFSET_BASIS: Final = 0x811C9DC5
_FNV1A_PRIME: Final = 0x01000193

_CACHED_KEYS: Final = 8192
_CACHED_KEY_MAX_BYTES: Final = 64


def partition_for_key(name: str, key: bytes, partitions: int) -> int:
    """Return the partition, 0 to *partitions* - 1, that the partitioner *name* chooses for *key*.

    The empty key is a key like any other.

    Raises ValueError for an unknown name or fewer than one partition.
    """
    # For keys of 16 bytes, murmur2 takes 2.0 us and fnv1a 1.7 us, a cached key 0.14 us, and a miss 0.3 us more
    # (CPython 3.11). Long keys are not cached, because thousands of them could hold gigabytes.
    if len(key) <= _CACHED_KEY_MAX_BYTES:
        return _cached_partition_for_key(name, key, partitions)
    return _compute_partition_for_key(name, key, partitions)


class Rotation:
    """Spreads batches without a key over the partitions: one partition per batch, each in turn.

    Producers that start at the same partition would fill it together: choose *start* at random for each.
    """

    __slots__ = ("_turns",)

    def __init__(self, start: int) -> None:
        self._turns = itertools.count(start)

    def next(self, partitions: int) -> int:
        """Return the partition, 0 to *partitions* - 1, for the next batch.

        Threads may share a rotation. *partitions* may grow between two calls.
        """
        # One call into C, which the GIL makes atomic. Without a GIL two batches may share a turn, which does no harm.
        return next(self._turns) % partitions


def murmur2(data: bytes) -> int:
    """Hash *data* with 32-bit MurmurHash2. The result is signed, as in Java.

    The same as Utils.murmur2 of Kafka's Java client, seed included:
    https://github.com/apache/kafka/blob/trunk/clients/src/main/java/org/apache/kafka/common/utils/Utils.java
    """
    length = len(data)
    value = _MURMUR2_SEED ^ length
    # Words are little-endian on every machine, so the equally fast memoryview.cast can't be used.
    for word in struct.unpack_from(f"<{length >> 2}I", data):
        mixed = word * _MURMUR2_MULTIPLIER & _UINT32_MASK
        value = (value * _MURMUR2_MULTIPLIER ^ (mixed ^ mixed >> 24) * _MURMUR2_MULTIPLIER) & _UINT32_MASK
    if length & 3:
        rest = int.from_bytes(data[length & ~3 :], "little")
        value = (value ^ rest) * _MURMUR2_MULTIPLIER & _UINT32_MASK
    value = (value ^ value >> 13) * _MURMUR2_MULTIPLIER & _UINT32_MASK
    value ^= value >> 15
    return value - 0x1_0000_0000 if value > _INT32_MASK else value


def fnv1a(data: bytes) -> int:
    """Hash *data* with 32-bit FNV-1a, unsigned.

    Algorithm and constants: http://www.isthe.com/chongo/tech/comp/fnv/
    """
    value = _FNV1A_OFFSET_BASIS
    for byte in data:
        value = (value ^ byte) * _FNV1A_PRIME & _UINT32_MASK
    return value


def crc32(data: bytes) -> int:
    """Hash *data* with CRC-32 as zlib, gzip and PNG define it, unsigned."""
    return zlib.crc32(data)


def _murmur2_partition(key: bytes, partitions: int) -> int:
    """Choose as Kafka's Java client does: without the sign bit. abs() would choose other partitions."""
    return (murmur2(key) & _INT32_MASK) % partitions


def _fnv1a_partition(key: bytes, partitions: int) -> int:
    """Choose by the unsigned hash. kafka-go and sarama use it as signed, and differ for up to half of all keys."""
    return fnv1a(key) % partitions


def _crc32_partition(key: bytes, partitions: int) -> int:
    """Choose as librdkafka's `consistent` does. Its default differs for the empty key only, which goes anywhere."""
    return zlib.crc32(key) % partitions


PARTITIONERS: Final[Mapping[str, Callable[[bytes, int], int]]] = MappingProxyType(
    {
        "murmur2": _murmur2_partition,
        "fnv1a": _fnv1a_partition,
        "crc32": _crc32_partition,
    }
)
"""The partitioners by name. Each takes a key and a number of partitions, 1 or more, and returns a partition."""


def _compute_partition_for_key(name: str, key: bytes, partitions: int) -> int:
    if partitions < 1:
        message = f"A topic has at least one partition, not {partitions}."
        raise ValueError(message)
    partitioner = PARTITIONERS.get(name)
    if partitioner is None:
        message = f"Unknown partitioner {name!r}. Choose one of {', '.join(PARTITIONERS)}."
        raise ValueError(message)
    return partitioner(key, partitions)


_cached_partition_for_key = lru_cache(maxsize=_CACHED_KEYS)(_compute_partition_for_key)
