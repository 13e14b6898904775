"""Items of a catalogue by their ids, and the files that a generation's items came from. Nothing here needs torch.

In: ids, or a model, a version and a generation. Out: rows of items, or the path and sha256 of each item file. A
generation's manifest names them and the generations below. It stays when the generation is removed, in
`<models>/<name>/derived/<version>/catalogue/removed/<generation>.json`: impressions are joined later than that.

Shapes: I items, N ids.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from model.untrusted_files import DOCUMENT_BYTES, read_bytes

UNKNOWN = -1
# Overlays of a base. Each of them costs a little of every look-up.
MOST_OVERLAYS = 8
# Manifests of generations that are gone.
REMOVED = "removed"
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ItemSource(NamedTuple):
    """A file of items, or with `removes` one of ids that were removed, as it was when it was read. The path is
    absolute."""

    path: Path
    sha256: str
    removes: bool


def keys_of(ids: Sequence[str]) -> NDArray[np.uint64]:
    """The two halves of the XXH3-128 hash of each id's UTF-8 bytes, [2, N]."""
    digests = b"".join(map(xxhash.xxh3_128_digest, map(str.encode, ids)))
    return np.frombuffer(digests, ">u8").reshape(-1, 2).T.astype(np.uint64)


def rows_by_key(
    keys_2I: NDArray[np.uint64], rows_I: NDArray[np.int64], keys_2N: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """rows_N: the item behind each key, UNKNOWN where there is none. `keys_2I` ascend by their first half."""
    places_N = np.minimum(np.searchsorted(keys_2I[0], keys_2N[0]), len(rows_I) - 1)
    is_known_N = (keys_2I[0, places_N] == keys_2N[0]) & (keys_2I[1, places_N] == keys_2N[1])
    return np.where(is_known_N, rows_I[places_N], UNKNOWN)


def layers_below(folder: Path) -> list[int]:
    """The generations that the manifest of a generation's folder names below it, base first. Raises ValueError where
    it cannot be read."""
    return _layers_of(*_manifest(folder.parent, folder.name))


def item_sources(models: Path, model: str, version: str, generation: str) -> list[ItemSource]:
    """The files that a generation's items came from, oldest first, those of the generations below it included. Raises
    ValueError where no manifest says which they were."""
    is_plain = Path(model).name == model and not model.startswith(".")
    if not (is_plain and _NUMBER.fullmatch(version) and _NUMBER.fullmatch(generation)):
        raise ValueError("not a generation of a catalogue: its model, version and number are a name and two numbers")
    family = models / model / "derived" / version / "catalogue"
    place, manifest = _manifest(family, generation)
    below = [_own_sources(*_manifest(family, str(one))) for one in _layers_of(place, manifest)]
    return [source for sources in [*below, _own_sources(place, manifest)] for source in sources]


def _manifest(family: Path, generation: str) -> tuple[Path, Any]:
    """The manifest of a generation, which may be removed, and its place."""
    for place in (family / generation / "manifest.json", family / REMOVED / f"{generation}.json"):
        try:
            return place, json.loads(read_bytes(place, DOCUMENT_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ValueError(f"{place}: cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError):
            raise ValueError(f"{place}: not valid JSON") from None
    raise ValueError(f"{family}: has no generation {generation} and no manifest of one that was removed")


def _layers_of(place: Path, manifest: Any) -> list[int]:
    try:
        layers = [layer["generation"] for layer in manifest["layers"]]
    except (TypeError, KeyError):
        layers = [None]
    if len(layers) > MOST_OVERLAYS or not all(type(one) is int and one > 0 for one in layers):
        raise ValueError(f"{place}: does not say which generations it stands on")
    return layers


def _own_sources(place: Path, manifest: Any) -> list[ItemSource]:
    """The files of a generation's own layer, oldest first."""
    fault = ValueError(f"{place}: does not say which files its items came from")
    try:
        named = [(one["path"], one["sha256"], one["removes"]) for one in manifest["sources"]]
        if not named or not all(_SHA256.fullmatch(sha256) for _, sha256, _ in named):
            raise fault
        return [ItemSource(Path(path), sha256, bool(removes)) for path, sha256, removes in named]
    except (TypeError, KeyError):
        raise fault from None
