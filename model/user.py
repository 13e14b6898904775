"""The user of a request, and the keyed hash that stands for one in files.

In: the user features of a request as they came, and the feature that the manifest names as `user`. Out: one text a
user, the same for 17 and "17", which an int64 id may be written as. Of that text HMAC-SHA256 (RFC 2104), whose first
16 bytes are kept: whoever lacks the key cannot find a user by trying ids.
"""

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path

from model.untrusted_files import read_bytes

# A shorter key could be guessed. A longer file is something else.
KEY_BYTES = (16, 4096)
_HASH_BYTES = 16
_MAKE_ONE = "make one by `openssl rand -base64 32`"


def user_of(features: Mapping[str, object], feature: str | None) -> str | None:
    """The user that user features name by one of them. None without such a feature, and where it is null, absent or no
    id: a request that has not been checked may hold anything there."""
    value = None if feature is None else features.get(feature)
    if isinstance(value, str):
        return value
    return str(value) if type(value) is int else None


def user_hash(key: bytes, user: str) -> str:
    """Keyed hash of a user, 32 hexadecimal digits. Half of a surrogate pair, which JSON may have, has bytes here."""
    digest = hmac.digest(key, user.encode("utf-8", "surrogatepass"), hashlib.sha256)
    return digest[:_HASH_BYTES].hex()


def read_user_hash_key(path: Path) -> bytes:
    """The key of user hashes: the bytes of a file but for one line break at its end. Raises ValueError, which names the
    flag of every command that takes it, and says nothing of the bytes."""
    try:
        content = read_bytes(path)
    except OSError as error:
        raise ValueError(f"--user-hash-key {path}: cannot be read ({error.strerror})") from None
    key = content.removesuffix(b"\n").removesuffix(b"\r")
    fewest, most = KEY_BYTES
    if not fewest <= len(key) <= most:
        rule = f"the key of user hashes has {fewest} to {most} bytes, this file has {len(key)}"
        raise ValueError(f"--user-hash-key {path}: {rule}; {_MAKE_ONE}")
    return key
