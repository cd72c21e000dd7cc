"""After the build: every link inside the site leads to a file and an anchor; no page needs the network."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx
from sphinx.util import logging

_ASSETS = {("link", "href"), ("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src")}
_NO_ASSET = {"canonical", "index", "search", "next", "prev", "author", "copyright"}
logger = logging.getLogger(__name__)


class Page(HTMLParser):
    """Anchors, links and assets of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.remote: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        for name in ("href", "src"):
            if name not in values:
                continue
            self.links.append(values[name])
            away = urlsplit(values[name]).netloc
            if away and (tag, name) in _ASSETS and values.get("rel") not in _NO_ASSET:
                self.remote.append(values[name])


def problems(site: Path) -> list[str]:
    """One line for each broken link and each remote asset of the pages below ``site``."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        found += [f"{path.name}: needs {asset} from the network" for asset in page.remote]
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages.get(target)
            if not target.exists():
                found.append(f"{path.name}: {link} leads nowhere")
            elif parts.fragment and known and unquote(parts.fragment) not in known.anchors:
                found.append(f"{path.name}: {link} has no such anchor")
    return sorted(set(found))


def check(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        for line in problems(Path(app.outdir)):
            logger.warning(line)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
