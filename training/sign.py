"""Signs what was published: a model version, a compiled package, a generation of a catalogue.

In: a folder with a manifest, a private key. Out: `manifest.sig` beside the manifest, replaced in one rename. A folder
whose files are not those of its manifest is not signed: the signature would vouch for what no reader takes.
"""

import os
from pathlib import Path

from pydantic import BaseModel, ValidationError

from model.artifact import MANIFEST, FileEntry, file_entry, sync
from model.signature import SIGNATURE, SigningKey


class _Listed(BaseModel):
    """What all manifests have."""

    files: dict[str, FileEntry]


def sign(folder: Path, key: SigningKey) -> Path:
    """Signs a folder's manifest and returns the signature's file. Raises ValueError naming the file at fault."""
    place = folder / MANIFEST
    try:
        manifest = place.read_bytes()
        listed = _Listed.model_validate_json(manifest).files
    except OSError as error:
        raise ValueError(f"{place}: cannot be read ({error.strerror}); a published folder has one") from None
    except ValidationError:
        raise ValueError(f"{place}: not a manifest with the checksums of its files") from None
    for name, entry in listed.items():
        try:
            found = file_entry(folder / name)["sha256"]
        except OSError as error:
            raise ValueError(f"{folder / name}: cannot be read ({error.strerror}); nothing was signed") from None
        if found != entry.sha256:
            raise ValueError(f"{folder / name}: checksum differs from the manifest's; nothing was signed")
    signature, new = folder / SIGNATURE, folder / f".{SIGNATURE}"
    new.write_text(key.sign(manifest), encoding="ascii")
    sync(new)
    os.replace(new, signature)
    sync(folder)
    return signature
