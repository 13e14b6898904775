"""Buckets: the hash is the published XXH3-64, dealt evenly, and a salt's deal says nothing of another's."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xxhash
from scipy import stats

from model.buckets import BUCKETS, bucket_of, buckets_within

# Test vectors of the xxHash project (tests/sanity_test_vectors.h): XXH3-64 without a seed of the first bytes of its
# generator.
_PUBLISHED = {
    0: 0x2D06800538D394C2,
    1: 0xC44BDFF4074EECDB,
    6: 0x27B56A84CD2D7325,
    12: 0xA713DAF0DFBB77E7,
    24: 0xA3FE70BF9D3510EB,
    48: 0x397DA259ECBA1F11,
    80: 0xBCDEFBBB2C47C90A,
    195: 0xCD94217EE362EC3A,
}
UNITS = [str(number) for number in range(50_000)]


def _sanity_buffer(size: int) -> bytes:
    """The buffer of the project's own test, by its generator."""
    state, made = 2654435761, bytearray()
    for _ in range(size):
        made.append(state >> 56)
        state = state * 11400714785074694797 % 2**64
    return bytes(made)


@pytest.mark.parametrize(("size", "expected"), _PUBLISHED.items())
def test_the_hash_is_the_published_one(size: int, expected: int) -> None:
    assert xxhash.xxh3_64_intdigest(_sanity_buffer(size)) == expected


def test_a_bucket_is_the_hash_of_salt_zero_byte_and_unit() -> None:
    for salt, unit in (("feed/4", "17"), ("feed/4", "Zoë"), ("a", "")):
        assert bucket_of(salt, unit) == xxhash.xxh3_64_intdigest(salt.encode() + b"\0" + unit.encode()) % 10_000


def test_the_page_has_the_buckets_of_its_rule() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (demo/\d+) \| (\S+) \| (\d+) \|$", page, re.MULTILINE)
    assert len(rows) == 3
    for salt, unit, bucket in rows:
        assert xxhash.xxh3_64_intdigest(salt.encode() + b"\0" + unit.encode()) % 10_000 == int(bucket)


def test_units_are_dealt_evenly() -> None:
    counts = np.bincount([bucket_of("feed/4", unit) * 100 // BUCKETS for unit in UNITS], minlength=100)
    # By chance once in a million.
    assert stats.chisquare(counts).pvalue > 1e-6


def test_another_salt_deals_anew() -> None:
    table = np.zeros((10, 10))
    for unit in UNITS:
        table[bucket_of("feed/4", unit) // 1000, bucket_of("feed/5", unit) // 1000] += 1
    assert stats.chi2_contingency(table).pvalue > 1e-6


def test_another_process_deals_alike() -> None:
    code = "from model.buckets import bucket_of; print([bucket_of('feed/4', str(unit)) for unit in range(50)])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == str([bucket_of("feed/4", unit) for unit in UNITS[:50]])


def test_shares_count_buckets() -> None:
    assert [buckets_within(share) for share in (0.0, 0.0001, 0.05, 0.5, 0.9999, 1.0)] == [0, 1, 500, 5000, 9999, 10_000]
