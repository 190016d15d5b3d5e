"""Slides of the lectures: `python notebooks/site/slides.py [NOTEBOOK ...] [--output DIR] [--photograph DIR]`.

    pip install -e ".[docs]"
    python notebooks/site/slides.py notebooks/05_lora.ipynb                     # runs/slides/05_lora.slides.html
    python notebooks/site/slides.py --photograph runs/pictures                  # all lectures, each slide as a PNG

A deck opens in a browser without a network: S shows the speaker notes, the arrow keys go on (down within an idea).
With --photograph every slide is drawn in chromium at 1280 x 720, with all its fragments; each slide that overflows is
listed with its cells and by how many pixels, and the exit code is then 1. What a box of its own hides or scrolls, such
as a line of code that is too long, counts as overflow.

It is what `jupyter nbconvert --to slides` makes in the folder `notebooks`, whose configuration it reads, but for
reveal.js and MathJax, which lie beside the deck.
"""

import argparse
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from browser import Browser, NoBrowser
from lecture_pages import with_alt_texts
from words import unlinked

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parent
WIDTH, HEIGHT = 1280, 720
REVEAL = "sphinx_revealjs/_static/revealjs", ("dist", "plugin/notes")
MATHJAX = "jupyter_server_mathjax/static", ("MathJax.js", "config", "extensions", "jax", "fonts")

# The slide that is shown: its cells, and what stands over its edges. reveal.js scales the slide to the window.
OVERFLOW = """(() => {
  const slide = Reveal.getCurrentSlide(), scale = Reveal.getScale(), box = Reveal.getSlidesElement()
  const edge = box.getBoundingClientRect(), found = {}
  const say = (element, what, pixels) => {
    const cell = element.closest('.jp-Cell'), name = cell ? cell.id.replace('cell-id=', '') : ''
    const key = name + ' ' + what
    if (pixels > 2) found[key] = Math.max(found[key] || 0, Math.round(pixels))
  }
  for (const e of slide.querySelectorAll('*')) {
    if (e.closest('aside, .MJX_Assistive_MathML, .MathJax_Preview, svg *') || !e.getClientRects().length) continue
    const r = e.getBoundingClientRect(), inner = getComputedStyle(e)
    if (r.width * r.height == 0) continue
    say(e, 'too tall', (r.bottom - edge.bottom) / scale)
    say(e, 'too tall', (edge.top - r.top) / scale)
    say(e, 'too wide', Math.max(r.right - edge.right, edge.left - r.left) / scale)
    if (inner.overflowX != 'visible') say(e, 'wider than its box', e.scrollWidth - e.clientWidth)
    if (inner.overflowY != 'visible') say(e, 'taller than its box', e.scrollHeight - e.clientHeight)
  }
  return {cells: [...slide.querySelectorAll('.jp-Cell')].map(c => c.id.replace('cell-id=', '')), found,
          empty: ![...slide.querySelectorAll('.jp-Cell')].some(c => c.getClientRects().length)}
})()"""
SETTLED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"


def package(place: str) -> Path:
    """The folder `place` of an installed package. Raises SystemExit with what to install."""
    name, _, inner = place.partition("/")
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f'slides: {name} is not installed: pip install -e ".[docs]"')
    return Path(next(iter(found.submodule_search_locations))) / inner


def copy_part(source: Path, target: Path) -> None:
    """A file or a folder, with the folders above it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


def put_beside(output: Path) -> None:
    """reveal.js and MathJax, from their packages, into the folder of the decks."""
    for (place, parts), name in ((REVEAL, "reveal"), (MATHJAX, "mathjax")):
        for part in parts:
            copy_part(package(place) / part, output / name / part)


def deck(notebook: Path, output: Path) -> Path:
    """Write a lecture's slides -> the file. Nothing is run: outputs are shown as committed."""
    import nbformat
    from nbconvert import SlidesExporter
    from traitlets.config import Config

    settings = json.loads((NOTEBOOKS / "jupyter_nbconvert_config.json").read_text("utf-8"))
    settings["SlidesExporter"]["reveal_url_prefix"] = "reveal"
    exporter = SlidesExporter(config=Config(settings), template_file=str(HERE / "slides.html.j2"))
    content = with_alt_texts(json.loads(notebook.read_text("utf-8")))
    for cell in content["cells"]:  # a slide is looked at, so a link within the repository becomes its words
        if cell["cell_type"] == "markdown":
            cell["source"] = unlinked("".join(cell["source"]))
    resources = {"metadata": {"name": notebook.stem}}
    text, _ = exporter.from_notebook_node(nbformat.reads(json.dumps(content), as_version=4), resources)
    target = output / f"{notebook.stem}.slides.html"
    target.write_text(text, "utf-8")
    return target


def photograph(browser: Browser, page: Path, folder: Path) -> list[str]:
    """Each slide as a PNG, 05_lora-3.2.png -> what overflows, a line a slide."""
    name, faults = page.name.removesuffix(".slides.html"), []
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{name}-*.png"):
        old.unlink()
    browser.open(page, WIDTH, HEIGHT, ready="Reveal.isReady()")
    places = browser.evaluate("Reveal.getSlides().map(s => { const i = Reveal.getIndices(s); return [i.h, i.v || 0] })")
    for h, v in places:
        # fragments are all shown: what overflows may be the last of them
        browser.evaluate(f"Reveal.configure({{fragments: false}}); Reveal.slide({h}, {v})")
        browser.evaluate(SETTLED)
        browser.photograph(folder / f"{name}-{h + 1:02d}.{v + 1}.png")
        faults += complaints(f"{name} slide {h + 1}.{v + 1}", browser.evaluate(OVERFLOW))
    return faults


def complaints(slide: str, seen: dict[str, Any]) -> list[str]:
    """What OVERFLOW saw, as lines."""
    where = f"{slide} (cells {', '.join(seen['cells']) or 'none'})"
    if seen["empty"]:
        return [f"{where}: an empty slide"]
    over = [f"cell {what} by {pixels} px" for what, pixels in seen["found"].items()]
    return [f"{where}: {'; '.join(over)}"] if over else []


def main(arguments: list[str] | None = None) -> int:
    """Build, and photograph where asked to -> 1 where a slide overflows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="which lectures (default: all)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/slides"), metavar="DIR", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--photograph", type=Path, metavar="DIR", help="draw every slide in chromium, list what overflows"
    )
    asked = parser.parse_args(arguments)
    chosen = asked.notebooks or sorted(NOTEBOOKS.glob("[0-9][0-9]*_*.ipynb"))
    if missing := [path for path in chosen if not path.is_file()]:
        parser.error(f"no such notebook: {missing[0]}")
    asked.output.mkdir(parents=True, exist_ok=True)
    put_beside(asked.output)
    pages = [deck(path, asked.output) for path in chosen]
    print(*pages, sep="\n")
    if not asked.photograph:
        return 0
    try:
        with Browser() as browser:
            faults = [fault for page in pages for fault in photograph(browser, page, asked.photograph)]
    except NoBrowser as error:
        print(f"slides: {error}", file=sys.stderr)
        return 2
    print(*faults, f"{len(faults)} slides overflow" if faults else "no slide overflows", sep="\n")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
