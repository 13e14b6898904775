"""What a report's files hold, beyond what a comparison puts there."""

import re
from pathlib import Path

from training.compare.document import Heading, Image, write_document


def test_pictures_of_one_text_are_files_of_their_own(tmp_path: Path) -> None:
    pictures = [
        Image("Differences of AUC", b"one"),
        Image("differences of AUC", b"two"),
        Image("other", b"three", "own"),
    ]
    page = write_document(tmp_path, "title", [Heading(1, "title"), *pictures])
    links = re.findall(r"!\[.*\]\((.*)\)", (tmp_path / "results.md").read_text(encoding="utf-8"))
    assert [(tmp_path / link).read_bytes() for link in links] == [b"one", b"two", b"three"]
    assert page.read_text(encoding="utf-8").count("<img") == 3
