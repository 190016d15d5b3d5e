"""The course as a site: `python notebooks/site/build.py [--output DIR] [--instructor]`, without a network.

    pip install -e ".[docs]"
    python notebooks/site/build.py                # runs/site/html/index.html; nothing is run, outputs are as committed
    python notebooks/site/build.py --instructor   # with the worked solutions, for whoever teaches

Lectures, slides, quizzes, the syllabus, the sheet of notation, the API, the annotated source, figures, Frequently
confused and sources. Where there is a chromium all slides are photographed: `slides.html` shows them as thumbnails.
The exit code is 1 for a link that leads nowhere, a picture without alt text, a page that would load something from the
network, a warning of Sphinx, or a slide that overflows.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import slides
from api_pages import api_pages
from browser import Browser, NoBrowser
from conf import REPOSITORY
from lecture_pages import (
    NOTEBOOKS,
    figures_page,
    lecture_page,
    lectures,
    quiz_page,
    repository_page,
    title_of,
    with_slides,
)
from links import complaints
from source_pages import source_pages
from words import PAGES, ROOT, relative, unlinked

HERE = Path(__file__).parent
START = time.monotonic()
MENU = ["syllabus", "lectures/index", "slides", "quiz/index", "source/index", "api/index", "notation", "figures",
        "frequently_confused", "homework", "instructor/index", "sources", "package", "walk",
        "contributing"]  # fmt: skip
SHORT = {"syllabus": "Syllabus", "source/index": "Source", "api/index": "API", "contributing": "Contributing",
         "homework": "Homework", "walk": "One walk", "package": "The package"}  # fmt: skip
SET = "typeof MathJax === 'undefined' || new Promise(done => MathJax.Hub.Queue(() => done(true)))"
FAULTS = """[...[...document.querySelectorAll('.MathJax_Error, .merror')].map(e => 'no formula: ' + e.innerText),
  ...(document.documentElement.scrollWidth > innerWidth ? ['wider than the window'] : [])]"""


def write(source: Path, page: str, text: str) -> None:
    """A page of the site's sources, in Markdown."""
    path = source / f"{page}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def badges(path: Path, page: str) -> str:
    """What leads from a lecture to its other forms; Colab and Binder where the repository's address is known."""
    links = [("Notebook", f"notebooks/{path.name}")]
    if path in with_slides():
        links.append(("Slides", f"slides/{path.stem}.slides.html"))
    if "## Quiz" in path.read_text("utf-8"):
        links.append(("Quiz", f"quiz/{path.stem}.html"))
    found = [f'<a href="{relative(target, page)}">{words}</a>' for words, target in links]
    if REPOSITORY:
        place = REPOSITORY.removeprefix("https://github.com/")
        found.append(
            f'<a href="https://colab.research.google.com/github/{place}/blob/main/notebooks/{path.name}">Colab</a>'
        )
        found.append(f'<a href="https://mybinder.org/v2/gh/{place}/main?labpath=notebooks/{path.name}">Binder</a>')
    return f'<div class="badges">{" ".join(found)}</div>'


def put_together(source: Path, instructor: bool) -> None:
    """Write all pages as Sphinx reads them."""
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    shutil.copy(HERE / "conf.py", source)
    shutil.copytree(HERE / "static", source / "static")
    for part in slides.MATHJAX[1]:
        slides.copy_part(slides.package(slides.MATHJAX[0]) / part, source / "static" / "mathjax" / part)
    extra = source / "extra"  # goes into the site as it is

    def keep(path: str) -> str:
        slides.copy_part(ROOT / path, source / "pictures" / Path(path).name)
        return f"pictures/{Path(path).name}"

    for path in lectures():
        page = lecture_page(path, keep, badges(path, f"lectures/{path.stem}"))
        (source / "lectures").mkdir(exist_ok=True)
        (source / "lectures" / path.name).write_text(json.dumps(page), "utf-8")
        slides.copy_part(path, extra / "notebooks" / path.name)
        if text := quiz_page(path, keep):
            write(source, f"quiz/{path.stem}", text)
    for place, page in PAGES.items():
        if place.endswith(".md") and (ROOT / place).exists():
            write(source, page, repository_page(place, keep))
    write(source, "figures", figures_page(keep))
    for page, text in {**source_pages(), **api_pages()}.items():
        write(source, page, text)
    solutions = sorted((NOTEBOOKS / "instructor").glob("*.md")) if instructor else []
    for path in solutions:
        write(source, f"instructor/{path.stem}", unlinked(path.read_text("utf-8")))
    for page, text in contents(source).items():
        write(source, page, text)


def contents(source: Path) -> dict[str, str]:
    """The front page, and the pages that list others."""

    def tree(names: list[str], page: str, more: str = "") -> str:
        listed = "\n".join(f"{SHORT[name]} <{name}>" if name in SHORT else relative(name, page) for name in names)
        return f"\n```{{toctree}}\n:maxdepth: 1\n{more}\n{listed}\n```\n"

    def of(folder: str) -> str:
        return tree([f"{folder}/{path.stem}" for path in sorted((source / folder).glob("*"))], f"{folder}/index")

    quizzes = "# Quizzes\n\nFive questions a lecture; in print the answers follow on a page of their own.\n"
    found = {"lectures/index": "# Lectures\n" + of("lectures"), "quiz/index": quizzes + of("quiz")}
    if (source / "instructor").exists():
        found["instructor/index"] = "# The instructor's edition\n" + of("instructor")
    here = lambda name: (source / f"{name}.md").exists() or name in found or name == "slides"
    front = (HERE / "index.md").read_text("utf-8") + tree([name for name in MENU if here(name)], "index", ":hidden:\n")
    return {**found, "index": front}


def wall(pictures: Path, html: Path, source: Path) -> None:
    """The page of thumbnails: every slide leads to its place in its deck."""
    from PIL import Image

    parts = ["# Slides\n\nA deck opens without a network; S shows the speaker notes, the arrow keys go on.\n"]
    for path in with_slides():
        deck = f"slides/{path.stem}.slides.html"
        title = title_of(json.loads(path.read_text("utf-8")))
        parts.append(f'\n## {title}\n\n<a href="{deck}">The deck</a>\n\n<div class="wall">')
        for picture in sorted(pictures.glob(f"{path.stem}-*.png")):
            h, v = picture.stem.rpartition("-")[2].split(".")
            small = html / "thumbnails" / f"{picture.stem}.webp"
            small.parent.mkdir(parents=True, exist_ok=True)
            Image.open(picture).convert("RGB").resize((400, 225)).save(small, quality=80)
            words = f"{path.stem.partition('_')[0].lstrip('0')}: slide {int(h)}.{v}"
            image = f'<img src="thumbnails/{small.name}" alt="Lecture {words}" loading="lazy" width="400" height="225">'
            parts.append(f'<a href="{deck}#/{int(h) - 1}/{int(v) - 1}">{image}</a>')
        parts.append("</div>\n")
    write(source, "slides", "\n".join(parts))


def build(output: Path, instructor: bool) -> list[str]:
    """Build the site -> what is wrong with it."""
    source, html, pictures = output / "source", output / "html", output / "pictures"
    shutil.rmtree(html, ignore_errors=True)
    put_together(source, instructor)
    extra = source / "extra"
    slides.put_beside(extra / "slides")
    decks = [slides.deck(path, extra / "slides") for path in with_slides()]
    found: list[str] = []
    print(f"pages and decks: {time.monotonic() - START:.0f} seconds")
    try:
        with Browser() as browser:
            found += [fault for deck in decks for fault in slides.photograph(browser, deck, pictures)]
    except NoBrowser as error:
        print(f"slides are not photographed: {error}")
    wall(pictures, extra, source)
    print(f"slides photographed: {time.monotonic() - START:.0f} seconds")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-j",
        "auto",
        "-b",
        "html",
        "-D",
        "html_extra_path=extra",
        source,
        html,
    ]
    ran = subprocess.run([*map(str, command)], capture_output=True, text=True)
    found += [line for line in ran.stderr.splitlines() if line.strip()]
    if ran.returncode:
        return [*found, f"sphinx ended with {ran.returncode}"]
    return found + complaints(html) + looked_at(html)


def looked_at(html: Path) -> list[str]:
    """Lectures and some other pages, on a phone and on a projector: a formula that is none, a page that is too wide."""
    pages = [
        *(f"lectures/{path.stem}" for path in lectures()),
        "index",
        "notation",
        "source/adapters/lora",
        "api/nn",
        "figures",
    ]
    found = []
    try:
        with Browser() as browser:
            for page in pages:
                for width, height in ((390, 844), (1280, 720)):
                    browser.open(html / f"{page}.html", width, height)
                    browser.evaluate(SET)
                    found += [f"{page}.html at {width} px: {fault}" for fault in browser.evaluate(FAULTS)]
    except NoBrowser as error:
        print(f"pages are not looked at: {error}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Build, and say what is wrong -> 1 where something is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/site"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument(
        "--instructor", action="store_true", help="with the worked solutions, which the public site lacks"
    )
    asked = parser.parse_args(arguments)
    found = build(asked.output, asked.instructor)
    print(*found, sep="\n")
    print(f"{asked.output}/html/index.html: {len(found)} faults, in {time.monotonic() - START:.0f} seconds")
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
