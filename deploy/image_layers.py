"""`python -m deploy.image_layers ARCHIVE`: the layers of an image, what made each and its bytes.

In: what `docker save IMAGE` writes, or `podman save`, or `buildah push IMAGE docker-archive:FILE`. - reads standard
input. Out: a Markdown table, sizes in MB (10^6 bytes) of each layer as it is in the archive: unpacked, except by a
docker that keeps its images in containerd.
"""

import argparse
import json
import os
import re
import sys
import tarfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_SHOWN = 100
_LARGEST_DOCUMENT = 2**20  # bytes: manifest and history are some kilobytes


@dataclass(frozen=True)
class Layer:
    """One layer: the instruction that made it, and its size in bytes."""

    made_by: str
    size: int


def layers_of(archive: BinaryIO) -> list[Layer]:
    """The layers of the one image in a docker archive, lowest first. Raises ValueError if it is no such archive."""
    sizes: dict[str, int] = {}
    links: dict[str, str] = {}
    documents: dict[str, Any] = {}
    try:
        with tarfile.open(fileobj=archive, mode="r|") as members:
            for member in members:
                if member.issym():  # docker names a layer that two entries share by a link
                    links[member.name] = os.path.normpath(Path(member.name).parent / member.linkname)
                    continue
                sizes[member.name] = member.size
                content = members.extractfile(member) if member.size < _LARGEST_DOCUMENT else None
                if content is not None:
                    documents[member.name] = _document(content.read())
        (image,) = documents["manifest.json"]
        history = documents[image["Config"]]["history"]
    except (tarfile.TarError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not an archive of one image as `docker save` writes it ({error!r})") from None
    made_by = [_instruction(entry.get("created_by", "")) for entry in history if not entry.get("empty_layer")]
    found = [sizes[links.get(name, name)] for name in image["Layers"]]
    made_by += ["?"] * (len(found) - len(made_by))
    return [Layer(instruction, size) for instruction, size in zip(made_by, found, strict=False)]


def _document(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _instruction(created_by: str) -> str:
    text = re.sub(r"^(?:\|\d+ (?:\S+=\S* )*)?/bin/sh(?: -c)? ?(?:#\(nop\) *)?", "", created_by)
    text = re.sub(r"\b(?:dir|multi|file):[0-9a-f]{12,} in ", "", text)
    text = " ".join(text.split()).removesuffix(" # buildkit") or "base"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def table(layers: list[Layer]) -> str:
    """The layers as Markdown, with their sum."""
    lines = ["| layer | MB |", "| --- | --- |"]
    lines += [f"| `{layer.made_by}` | {layer.size / 1e6:.1f} |" for layer in layers]
    return "\n".join([*lines, f"| all | {sum(layer.size for layer in layers) / 1e6:.1f} |"])


def main() -> int:
    """Print the table. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.image_layers", description="Layers of an image.")
    parser.add_argument("archive", metavar="ARCHIVE", help="file of `docker save`, or - for standard input")
    name = parser.parse_args().archive
    try:
        with ExitStack() as stack:
            archive = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
            print(table(layers_of(archive)))
    except (OSError, ValueError) as error:
        print(f"error: {name}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
