"""Items of a catalogue by their ids, and the file that a generation's items came from. Nothing here needs torch.

In: ids, or a model, a version and a generation. Out: rows of items, or the name, path and sha256 of the item file. A
generation's manifest names them, and stays in `<models>/<name>/derived/<version>/catalogue/removed/<generation>.json`
when the generation is removed: impressions are joined later than that.

Shapes: I items, N ids.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from model.untrusted_files import DOCUMENT_BYTES, read_bytes

UNKNOWN = -1
# Manifests of generations that are gone.
REMOVED = "removed"
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ItemSource(NamedTuple):
    """The file of a generation's items as it was when the catalogue was built. The path is absolute."""

    path: Path
    sha256: str


def keys_of(ids: Sequence[str]) -> NDArray[np.uint64]:
    """The two halves of the XXH3-128 hash of each id's UTF-8 bytes, [2, N]."""
    digests = b"".join(map(xxhash.xxh3_128_digest, map(str.encode, ids)))
    return np.frombuffer(digests, ">u8").reshape(-1, 2).T.astype(np.uint64)


def rows_by_key(keys_2I: NDArray[np.uint64], rows_I: NDArray[np.int64], ids: Sequence[str]) -> NDArray[np.int64]:
    """rows_N: each id's item, UNKNOWN where there is none. `keys_2I` ascend by their first half."""
    keys_2N = keys_of(ids)
    places_N = np.minimum(np.searchsorted(keys_2I[0], keys_2N[0]), len(rows_I) - 1)
    is_known_N = (keys_2I[0, places_N] == keys_2N[0]) & (keys_2I[1, places_N] == keys_2N[1])
    return np.where(is_known_N, rows_I[places_N], UNKNOWN)


def item_source(models: Path, model: str, version: str, generation: str) -> ItemSource:
    """The item file of a generation. Raises ValueError where no manifest says which it was."""
    is_plain = Path(model).name == model and not model.startswith(".")
    if not (is_plain and _NUMBER.fullmatch(version) and _NUMBER.fullmatch(generation)):
        raise ValueError("not a generation of a catalogue: its model, version and number are a name and two numbers")
    family = models / model / "derived" / version / "catalogue"
    for place in (family / generation / "manifest.json", family / REMOVED / f"{generation}.json"):
        try:
            content = json.loads(read_bytes(place, DOCUMENT_BYTES))
            path, sha256 = content["source_path"], content["source_sha256"]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ValueError(f"{place}: cannot be read ({error.strerror})") from None
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{place}: does not say which file its items came from") from None
        if not isinstance(path, str) or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise ValueError(f"{place}: does not say which file its items came from")
        return ItemSource(Path(path), sha256)
    raise ValueError(f"{family}: has no generation {generation} and no manifest of one that was removed")
