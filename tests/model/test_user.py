"""The user of a request, and the hash that stands for one."""

import os
import subprocess
from pathlib import Path

import pytest

from model.user import read_user_hash_key, user_hash, user_of


@pytest.mark.parametrize(
    ("features", "user"),
    [
        ({"user_id": 17, "tab": 1}, "17"),
        ({"user_id": "17"}, "17"),
        ({"user_id": -(2**63)}, "-9223372036854775808"),
        ({"user_id": "Zoë 用户"}, "Zoë 用户"),
        ({"user_id": ""}, ""),
        ({"user_id": None}, None),
        ({"tab": 1}, None),
        # Of a request that is not checked yet.
        ({"user_id": True}, None),
        ({"user_id": 17.0}, None),
        ({"user_id": [17]}, None),
        ({"user_id": {"id": 17}}, None),
    ],
)
def test_a_user_is_one_text_however_its_id_is_written(features: dict[str, object], user: str | None) -> None:
    assert user_of(features, "user_id") == user
    assert user_of(features, None) is None


@pytest.mark.parametrize("user", ["17", "Zoë 用户", ""])
def test_the_hash_is_half_of_an_hmac_by_openssl(tmp_path: Path, user: str) -> None:
    key = os.urandom(32)
    answer = subprocess.run(
        ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{key.hex()}"],
        input=user.encode(),
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert user_hash(key, user) == answer.split("= ")[1][:32]
    assert user_hash(os.urandom(32), user) != user_hash(key, user)
    # RFC 4231, test case 2, whose key is shorter than ours may be.
    assert user_hash(b"Jefe", "what do ya want for nothing?") == "5bdcc146bf60754e6a042426089575c7"


def test_half_of_a_surrogate_pair_has_a_hash() -> None:
    assert user_hash(b"k" * 16, "\ud800") != user_hash(b"k" * 16, "\udc00")


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_key_is_a_files_bytes_without_its_line_break(tmp_path: Path, end: bytes) -> None:
    file = tmp_path / "user-hash.key"
    file.write_bytes(b" secret\n of 16 by" + end)
    assert read_user_hash_key(file) == b" secret\n of 16 by"


def test_a_file_that_holds_no_key_is_refused_without_its_content(tmp_path: Path) -> None:
    file = tmp_path / "user-hash.key"
    with pytest.raises(ValueError, match=r"--user-hash-key .*user-hash\.key: cannot be read \(No such file"):
        read_user_hash_key(file)
    os.mkfifo(file)
    with pytest.raises(ValueError, match="not a regular file but a FIFO"):
        read_user_hash_key(file)
    file.unlink()
    for content, why in ((b"short-secret\n", "this file has 12; make one by"), (b"s" * 4097, "this file has 4097")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=why) as raised:
            read_user_hash_key(file)
        assert "secret" not in str(raised.value)
