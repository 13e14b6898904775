"""Signs what was published: a model version, a compiled package, a generation of a catalogue.

In: a folder with a manifest, a private key. Out: `manifest.sig` beside the manifest, replaced in one rename. A folder
whose files are not those of its manifest is not signed: the signature would cover what no reader takes.
"""

import os
from pathlib import Path

from pydantic import BaseModel, ValidationError

from model.artifact.artifact import MANIFEST, ArtifactError, FileEntry, check_sha256, opened, sync
from model.artifact.signature import SIGNATURE, SigningKey
from model.untrusted_files import DOCUMENT_BYTES, read_bytes, sha256_of


class _Listed(BaseModel):
    """Common part of all manifests."""

    files: dict[str, FileEntry]


def sign(folder: Path, key: SigningKey) -> Path:
    """Sign a folder's manifest and return the signature's file. Raises ValueError naming the file at fault."""
    place = folder / MANIFEST
    try:
        manifest = read_bytes(place, DOCUMENT_BYTES)
        listed = _Listed.model_validate_json(manifest).files
    except OSError as error:
        raise ValueError(f"{place}: cannot be read ({error.strerror}); a published folder has one") from None
    except ValidationError:
        raise ValueError(f"{place}: not a manifest with the checksums of its files") from None
    for name, entry in listed.items():
        try:
            with opened(folder / name, entry) as file:
                check_sha256(folder / name, entry, sha256_of(file))
        except ArtifactError as error:
            raise ValueError(f"{error}; nothing was signed") from None
    signature, new = folder / SIGNATURE, folder / f".{SIGNATURE}"
    new.unlink(missing_ok=True)
    new.write_text(key.sign(manifest), encoding="ascii")
    new.chmod(0o444)
    sync(new)
    os.replace(new, signature)
    sync(folder)
    return signature
