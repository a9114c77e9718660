"""The skeletons of CONTRIBUTING.md run as they stand."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: str, language: str = "python") -> list[tuple[str, str]]:
    """Return the heading and the code of each block of a document in `language`."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        if match.group(1) == language:
            headings = re.findall(r"^#+ (.*)$", text[: match.start()], re.MULTILINE)
            found.append((headings[-1], match.group(2)))
    return found


def run(code: str, folder: Path) -> dict:
    """Run code as a file of its own, and return its global names."""
    path = folder / "block.py"
    path.write_text(code, encoding="utf-8")
    return runpy.run_path(str(path))


def test_contributing_shows_a_skeleton_of_each_kind():
    headings = [heading for heading, _ in blocks("CONTRIBUTING.md")]
    assert headings == [
        "Adding an algorithm",
        "Adding a mode",
        "Adding a problem or a stopping rule",
        "Adding an adapter",
    ]
    for _, code in blocks("CONTRIBUTING.md"):
        assert "assert" in code
        ours = re.findall(r"^(?:from|import) (iterdiff[.\w]*)", code, re.MULTILINE)
        assert set(ours) <= {"iterdiff", "iterdiff.extend"}


@pytest.mark.parametrize(
    "code", [pytest.param(code, id=heading) for heading, code in blocks("CONTRIBUTING.md")]
)
def test_skeletons_of_contributing_run(code, tmp_path):
    run(code, tmp_path)
