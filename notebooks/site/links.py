"""What a built site must not have: links that lead nowhere, pictures without words, pages that need the network."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """The anchors of a page, where its links lead, and its pictures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.silent: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Keep what is looked for."""
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        loads = (
            tag in LOADED
            and LOADED[tag] in given
            and given.get("rel") not in ("canonical", "next", "prev", "search", "index")
        )
        if loads and not given[LOADED[tag]].startswith("data:"):
            self.loads.append(given[LOADED[tag]])
        if (tag == "img" and "alt" not in given) or (tag == "img" and _says_nothing(given["alt"])):
            self.silent.append(given.get("src", "")[:60])


def _says_nothing(alt: str) -> bool:
    return not alt.strip() or alt.startswith(("No description has been", "../", "_images")) or alt.endswith(".png")


def complaints(site: Path) -> list[str]:
    """What is wrong with a built site, a line each."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name}: a picture without alt text: {source}" for source in page.silent]
        found += [f"{name}: loads {address} from the network" for address in page.loads if urlsplit(address).scheme]
        for link in dict.fromkeys([*page.links, *page.loads]):
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = path if not address.path else (path.parent / unquote(address.path)).resolve()
            anchor = unquote(address.fragment)
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                found.append(f"{name}: a link to {link}, which is not there")
            elif target in pages and anchor and anchor not in pages[target].anchors and not is_deck(target):
                found.append(f"{name}: a link to {link}: the page has no such anchor")
    return found


def is_deck(page: Path) -> bool:
    """Whether a page is a deck of slides, where reveal.js makes the anchors #/2/1."""
    return page.name.endswith(".slides.html")
