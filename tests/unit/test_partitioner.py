"""The partitioners agree with their published vectors, and the rotation spreads batches evenly."""

from __future__ import annotations

import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlmq.model.partitioner import PARTITIONERS, Rotation, crc32, fnv1a, murmur2, partition_for_key

if TYPE_CHECKING:
    from collections.abc import Iterator


class Vector(TypedDict):
    description: str
    key_hex: str
    hashes: dict[str, int]
    partitions: dict[str, dict[str, int]]


VECTORS: list[Vector] = json.loads(Path(__file__).with_name("partition_vectors.json").read_text("utf-8"))["vectors"]

HASHES = {"murmur2": murmur2, "fnv1a": fnv1a, "crc32": crc32}

names = st.sampled_from(sorted(PARTITIONERS))
keys = st.binary(max_size=100)
partition_counts = st.integers(1, 10_000)

each_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["description"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_murmur2_gives_the_values_in_the_tests_of_the_java_client(text: str, expected: int) -> None:
    # kafka: clients/src/test/java/org/apache/kafka/common/utils/UtilsTest.java, testMurmur2
    assert murmur2(text.encode()) == expected


@pytest.mark.parametrize(("text", "expected"), [("", 0x811C9DC5), ("a", 0xE40C292C), ("foobar", 0xBF9CF968)])
def test_fnv1a_gives_the_values_its_authors_publish(text: str, expected: int) -> None:
    assert fnv1a(text.encode()) == expected


def test_crc32_gives_the_check_value_of_the_standard() -> None:
    assert crc32(b"123456789") == 0xCBF43926


@each_vector
def test_every_hash_gives_the_published_value(vector: Vector) -> None:
    key = bytes.fromhex(vector["key_hex"])

    assert {name: hash_of(key) for name, hash_of in HASHES.items()} == vector["hashes"]


@each_vector
def test_every_partitioner_gives_the_published_partition(vector: Vector) -> None:
    key = bytes.fromhex(vector["key_hex"])

    chosen = {
        name: {count: partition_for_key(name, key, int(count)) for count in expected}
        for name, expected in vector["partitions"].items()
    }

    assert chosen == vector["partitions"]


def test_the_vectors_cover_every_partitioner_and_partition_count() -> None:
    for vector in VECTORS:
        assert vector["partitions"].keys() == PARTITIONERS.keys()
        for by_count in vector["partitions"].values():
            assert by_count.keys() == {"1", "3", "12", "16", "1000"}


@given(names, keys, partition_counts)
def test_a_partition_is_always_in_range(name: str, key: bytes, partitions: int) -> None:
    assert 0 <= partition_for_key(name, key, partitions) < partitions


@given(names, keys, partition_counts)
def test_a_remembered_key_keeps_the_partition_its_hash_gives(name: str, key: bytes, partitions: int) -> None:
    computed = PARTITIONERS[name](key, partitions)

    first, second = partition_for_key(name, key, partitions), partition_for_key(name, key, partitions)

    assert first == second == computed


@given(keys)
def test_one_key_is_remembered_apart_for_each_partitioner_and_partition_count(key: bytes) -> None:
    settings = [(name, partitions) for name in PARTITIONERS for partitions in (1, 7, 1000)]

    chosen = [partition_for_key(name, key, partitions) for name, partitions in settings]

    assert chosen == [PARTITIONERS[name](key, partitions) for name, partitions in settings]


@pytest.mark.parametrize("name", ["murmur3", "MURMUR2", ""])
def test_an_unknown_partitioner_is_refused_with_the_known_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"Unknown partitioner .* Choose one of murmur2, fnv1a, crc32\."):
        partition_for_key(name, b"key", 3)


@pytest.mark.parametrize("partitions", [0, -1])
def test_a_topic_without_partitions_is_refused(partitions: int) -> None:
    with pytest.raises(ValueError, match="at least one partition"):
        partition_for_key("murmur2", b"key", partitions)


@given(st.integers(), st.integers(1, 50), st.integers(1, 20))
def test_a_rotation_visits_every_partition_equally_often(start: int, partitions: int, rounds: int) -> None:
    rotation = Rotation(start)

    visited = Counter(rotation.next(partitions) for _ in range(rounds * partitions))

    assert visited == dict.fromkeys(range(partitions), rounds)


@given(st.integers(), st.integers(1, 50))
def test_a_rotation_begins_at_its_start_and_goes_on_in_turn(start: int, partitions: int) -> None:
    rotation = Rotation(start)

    visited = [rotation.next(partitions) for _ in range(3)]

    assert visited == [(start + turn) % partitions for turn in range(3)]


def test_a_rotation_reaches_the_partitions_added_while_it_runs() -> None:
    rotation = Rotation(0)
    for _ in range(3):
        rotation.next(2)

    visited = {rotation.next(4) for _ in range(4)}

    assert visited == {0, 1, 2, 3}


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Make threads take turns as often as the interpreter can, so that a race shows."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("hasty_threads")
def test_threads_sharing_a_rotation_visit_every_partition_equally_often() -> None:
    threads, calls, partitions = 8, 6_000, 12
    rotation, together = Rotation(5), Barrier(threads)

    def take_turns() -> Counter[int]:
        together.wait()
        return Counter(rotation.next(partitions) for _ in range(calls))

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(take_turns) for _ in range(threads)]
    visited = sum((future.result() for future in futures), Counter[int]())

    assert visited == dict.fromkeys(range(partitions), threads * calls // partitions)
