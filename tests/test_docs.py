"""Every page of the documentation is reachable from its index; every relative link leads somewhere.

`make docs` builds the site and checks the built pages; this reads the sources, as GitHub shows them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    [*DOCS.rglob("*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
)
PACKAGE = ROOT / "src" / "reposer"
_CODE = re.compile(r"^```(?!\{).*?^```|^    .*?$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^()\s]+)\)")


def links(page: Path) -> list[str]:
    """Targets of the page's links and pictures that lie in this repository."""
    found = _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8")))
    return [target for target in found if "://" not in target]


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub and the site name them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = [re.sub(r"[`*]", "", t).strip().lower() for t in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def listed(page: Path) -> set[Path]:
    """Pages that the toctree of a page names."""
    text = "\n".join(
        re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    )
    names = [line for line in text.splitlines() if line and not line.startswith(":")]
    return {found for name in names for found in page.parent.glob(f"{name}.md")}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(place), f"{target}: no such heading"


def test_every_page_is_reachable_from_the_index() -> None:
    left, seen = [DOCS / "index.md"], set()
    while left:
        page = left.pop()
        if page not in seen:
            seen.add(page)
            left += listed(page)
    assert seen == set(DOCS.rglob("*.md"))


def test_every_page_is_named_in_the_text_of_its_folder() -> None:
    """A table of contents is not seen on GitHub; the index of results is made from its pages."""
    for index in DOCS.rglob("index.md"):
        if index.parent.name != "results":
            assert {(index.parent / t.split("#")[0]).resolve() for t in links(index)} >= listed(index), index


def test_every_result_says_what_was_found_and_when() -> None:
    pages = [page for page in (DOCS / "results").glob("*.md") if page.stem != "index"]
    assert len(pages) > 15
    for page in pages:
        front, title, body = re.fullmatch(
            r"---\n(.*?)\n---\n\n# ([^\n]+)\n(.*)", page.read_text("utf-8"), re.DOTALL
        ).groups()
        facts = dict(line.split(": ", 1) for line in front.splitlines())
        assert facts.keys() >= {"date", "topic", "verdict", "commit", "machine"}, page.name
        assert page.name.startswith(facts["date"].strip('"') + "-")
        assert title.endswith("?")
        assert body.strip()


def test_every_room_has_a_page_of_the_api() -> None:
    rooms = {
        path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE
    }
    rooms = {room for room in rooms if any(p.stem != "__init__" for p in (PACKAGE / room).rglob("*.py"))}
    assert {page.stem for page in (DOCS / "reference" / "api").glob("*.md")} == rooms - {"cli"} | {
        "index",
        "ground",
        "face",
    }
