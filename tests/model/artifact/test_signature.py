"""Signatures: made by us and checked by OpenSSL, keys made by OpenSSL, and everything forged refused."""

import base64
import shutil
import subprocess
from pathlib import Path

import pytest

from model.artifact.signature import SIGNATURE, SignatureError, SigningKey, TrustedKeys

MANIFEST = b'{"name": "clips", "version": 3}\n'


def openssl(*arguments: str | Path, cwd: Path) -> bytes:
    """Runs OpenSSL, an implementation that is not ours."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    return subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, cwd=cwd).stdout


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder of key pairs `mine` and `other`."""
    for name in ("mine", "other"):
        openssl("genpkey", "-algorithm", "ed25519", "-out", f"{name}.pem", cwd=tmp_path)
        openssl("pkey", "-in", f"{name}.pem", "-pubout", "-out", f"{name}.pub", cwd=tmp_path)
    return tmp_path


def signed(keys: Path, name: str = "mine", manifest: bytes = MANIFEST) -> Path:
    file = keys / SIGNATURE
    file.write_text(SigningKey(keys / f"{name}.pem").sign(manifest))
    return file


def test_openssl_agrees_with_a_signature(keys: Path) -> None:
    (keys / "signature").write_bytes(base64.b64decode(signed(keys).read_bytes()))
    (keys / "message").write_bytes(b"feedrank manifest\n" + MANIFEST)
    arguments = ("-verify", "-pubin", "-inkey", "mine.pub", "-rawin", "-in", "message", "-sigfile", "signature")
    assert b"Verified Successfully" in openssl("pkeyutl", *arguments, cwd=keys)


def test_own_signature_is_taken_and_any_trusted_key_will_do(keys: Path) -> None:
    file = signed(keys)
    TrustedKeys(keys / "mine.pub").check(MANIFEST, file)
    both = keys / "both.pub"
    both.write_bytes((keys / "other.pub").read_bytes() + b"# rotated in March\n" + (keys / "mine.pub").read_bytes())
    TrustedKeys(both).check(MANIFEST, file)


def test_every_flipped_bit_of_manifest_or_signature_is_refused(keys: Path) -> None:
    file = signed(keys)
    trusted = TrustedKeys(keys / "mine.pub")
    content = base64.b64decode(file.read_bytes())
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(base64.b64encode(flipped))
        with pytest.raises(SignatureError, match="no trusted key made this signature"):
            trusted.check(MANIFEST, file)
    file.write_bytes(base64.b64encode(content))
    for bit in range(8 * len(MANIFEST)):
        changed = bytearray(MANIFEST)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SignatureError):
            trusted.check(bytes(changed), file)


def test_signature_of_another_key_none_or_nonsense_is_refused(keys: Path) -> None:
    trusted = TrustedKeys(keys / "mine.pub")
    with pytest.raises(SignatureError, match=r"manifest\.sig: no trusted key"):
        trusted.check(MANIFEST, signed(keys, "other"))
    for content, message in ((b"", "no trusted key"), (b"not base64!", "cannot be read"), (b"AAAA", "no trusted key")):
        (keys / SIGNATURE).write_bytes(content)
        with pytest.raises(SignatureError, match=message):
            trusted.check(MANIFEST, keys / SIGNATURE)
    (keys / SIGNATURE).unlink()
    with pytest.raises(SignatureError, match="missing; this service takes signed versions alone"):
        trusted.check(MANIFEST, keys / SIGNATURE)


def test_files_that_are_no_keys_are_refused_without_quoting_them(keys: Path) -> None:
    openssl("genpkey", "-algorithm", "x25519", "-out", "curve.pem", cwd=keys)
    openssl("pkey", "-in", "curve.pem", "-pubout", "-out", "curve.pub", cwd=keys)
    (keys / "secret.txt").write_text("hunter2")
    (keys / "broken.pub").write_text("-----BEGIN PUBLIC KEY-----\nhunter2\n-----END PUBLIC KEY-----\n")
    for kind, name, message in (
        (SigningKey, "secret.txt", "not an Ed25519 private key"),
        (SigningKey, "mine.pub", "not an Ed25519 private key"),
        (SigningKey, "curve.pem", "of another kind"),
        (SigningKey, "absent.pem", "cannot be read"),
        (TrustedKeys, "secret.txt", "has no public key"),
        (TrustedKeys, "broken.pub", "PEM block 1 is not a public key"),
        (TrustedKeys, "mine.pem", "PEM block 1 is not a public key"),
        (TrustedKeys, "curve.pub", "of another kind than Ed25519"),
        (TrustedKeys, "absent.pub", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            kind(keys / name)
        assert "hunter2" not in str(raised.value)
        assert str(keys / name) in str(raised.value)
