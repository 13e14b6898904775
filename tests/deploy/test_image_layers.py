"""Layers of an image, read from archives put together by hand as docker and buildah write them."""

import io
import json
import tarfile

import pytest

from deploy.image_layers import Layer, layers_of, table

HISTORY = [
    {"created_by": "/bin/sh"},
    {"created_by": "/bin/sh -c #(nop) ENV A=b", "empty_layer": True},
    {"created_by": "|2 DEVICE=cpu INDEX= /bin/sh -c pip install torch"},
    {"created_by": "/bin/sh -c #(nop) COPY dir:0123456789abcdef in service"},
]
EXPECTED = [Layer("base", 30_000), Layer("pip install torch", 50_000), Layer("COPY service", 10_000)]


def _archive(files: dict[str, bytes], links: dict[str, str] | None = None) -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    made.seek(0)
    return made


def _image(config: str, layers: list[str]) -> dict[str, bytes]:
    manifest = [{"Config": config, "RepoTags": None, "Layers": layers}]
    return {config: json.dumps({"history": HISTORY}).encode(), "manifest.json": json.dumps(manifest).encode()}


def test_layers_and_what_made_them() -> None:
    names = ["blobs/sha256/aa", "blobs/sha256/bb", "blobs/sha256/cc"]
    files = dict(zip(names, (bytes(30_000), bytes(50_000), bytes(10_000)), strict=True))
    assert layers_of(_archive(files | _image("blobs/sha256/dd", names))) == EXPECTED


def test_layers_behind_links() -> None:
    files = {"aa.tar": bytes(30_000), "bb.tar": bytes(50_000), "cc.tar": bytes(10_000)}
    links = {f"{name[:2]}/layer.tar": f"../{name}" for name in files}
    assert layers_of(_archive(files | _image("dd.json", list(links)), links)) == EXPECTED


def test_table_adds_up() -> None:
    assert table(EXPECTED).splitlines()[-1] == "| all | 0.1 |"
    assert "| `pip install torch` | 0.1 |" in table(EXPECTED)


@pytest.mark.parametrize("content", [b"", b"no archive", _archive({"a": b"b"}).getvalue()])
def test_what_is_no_image_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="not an archive of one image"):
        layers_of(io.BytesIO(content))
