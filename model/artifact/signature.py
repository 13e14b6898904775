"""Signatures of manifests (Ed25519, RFC 8032): who published a version, beside what its checksums say.

In: a folder's manifest bytes and a private key to sign with, or trusted public keys to verify with, all PEM files as
`openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write them. Out: `manifest.sig` beside the manifest, the
signature in base64. The manifest has the sha256 of every other file, so one signature covers the whole folder.
"""

import base64
import binascii
import re
from pathlib import Path

from model.untrusted_files import read_bytes

# The library is imported only where a key is set.
SIGNATURE = "manifest.sig"
# So that a signature made here means nothing to another program that trusts the same key, and the other way round.
_CONTEXT = b"feedrank manifest\n"
_PEM = re.compile(rb"-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----", re.DOTALL)


class SignatureError(ValueError):
    """Manifest that no trusted key has signed. The message says why."""


class SigningKey:
    """A private key. Raises ValueError, which names the file and never quotes from it."""

    def __init__(self, path: Path) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        content = _read(path)
        try:
            key = load_pem_private_key(content, password=None)
        except (ValueError, TypeError):
            raise ValueError(f"{path}: not an Ed25519 private key in PEM without a passphrase") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(f"{path}: a private key of another kind; openssl genpkey -algorithm ed25519 makes one")
        self._key = key

    def sign(self, manifest: bytes) -> str:
        """The text of manifest.sig."""
        return base64.b64encode(self._key.sign(_CONTEXT + manifest)).decode("ascii") + "\n"


class TrustedKeys:
    """Public keys, any of which may have signed: a file of one or more PEM blocks, so that keys can be rotated.

    Raises ValueError naming the file."""

    def __init__(self, path: Path) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        keys: list[Ed25519PublicKey] = []
        for block in _PEM.findall(_read(path)):
            try:
                key = load_pem_public_key(block)
            except ValueError:
                raise ValueError(f"{path}: PEM block {len(keys) + 1} is not a public key") from None
            if not isinstance(key, Ed25519PublicKey):
                raise ValueError(f"{path}: PEM block {len(keys) + 1} is a public key of another kind than Ed25519")
            keys.append(key)
        if not keys:
            raise ValueError(f"{path}: has no public key in PEM")
        self._keys = keys

    def check(self, manifest: bytes, signature: Path) -> None:
        """Return if a trusted key signed the manifest. Raises SignatureError naming the signature's file."""
        from cryptography.exceptions import InvalidSignature

        try:
            content = base64.b64decode(read_bytes(signature).strip(), validate=True)
        except FileNotFoundError:
            raise SignatureError(f"{signature}: missing; this service takes signed versions alone") from None
        except (OSError, binascii.Error) as error:
            raise SignatureError(f"{signature}: cannot be read ({error})") from None
        for key in self._keys:
            try:
                key.verify(content, _CONTEXT + manifest)
            except InvalidSignature:
                continue
            return
        raise SignatureError(f"{signature}: no trusted key made this signature of this manifest")


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
