"""notebooks/sources.md: every source that is cited anywhere stands there, with what we lean on, and no other.

When a test fails it says what to write: a row for a source that is new, the name of a place, or a section's number.
"""

import functools
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "notebooks" / "sources.md"

# "Eckart & Young 1936", "Hu et al. (2021, table 1)", "A. Vaswani and others (2017)", "Dettmers et al. 2022 and 2023"
MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)\b"
SURNAME = rf"(?!{MONTH})(?:O['’])?[A-Z][A-Za-zà-ÿ\-]*[a-zà-ÿ](?: (?:Team|Loan|Zaken))?"
ANOTHER = rf"(?:[A-Z]\. )*(?:Van )?{SURNAME}"
CITED = re.compile(
    rf"(?<![\w\-])(?:[A-Z]\. )*(?P<first>NVIDIA|{SURNAME})(?:,? (?:&|and) {ANOTHER}|, {ANOTHER})*"
    r"(?: et al\.| and others)?(?:['’]s(?: interval)?)?,? ?\(?"
    r"(?P<year>1[89]\d\d|20\d\d)(?: and (?P<again>20\d\d))?\b(?!\.\d)"
)
NUMBER = r"(?:[A-Z](?:\.\d+)*|\d+(?:\.\d+)*)(?!\w)"
KINDS = r"sections?|eqs?\.|equations?|tables?|figures?|appendix|algorithm|definition|theorem|chapters?"
LABEL = re.compile(rf"(?i:\b({KINDS})) ({NUMBER}(?:(?:, and |, | and | to ){NUMBER})*)")
IDENTIFIER = re.compile(r"arXiv [\d.]+\d|doi 10\.\d{4,}/\S+|ISBN [\d\-]+|https://\S+")

Found = dict[str, dict[str, set[str]]]  # source -> place -> sections, tables and so on that are named there


def plain(text: str) -> str:
    """Comments and strings written in pieces as one line a paragraph."""
    text = re.sub(r'"\n\s*f?"', "", text)
    text = re.sub(r"\n[ \t]*#+(?= )", "\n", text)
    return re.sub(r"[ \t]*\n(?![ \t]*\n|- )[ \t]*", " ", text)


@functools.cache
def texts() -> list[tuple[str, str]]:
    """(place, text) of everything that cites: the package, the lectures, the problem sets, and pages."""
    return list(_texts())


def _texts() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "minilora").rglob("*.py")):
        yield path.relative_to(ROOT / "minilora").as_posix(), plain(path.read_text("utf-8"))
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            cells = json.loads(path.read_text("utf-8"))["cells"]
            name = f"lecture {int(path.name[:2])}" if path.name[:2].isdigit() else path.parent.name
            yield name, plain("\n\n".join("".join(cell["source"]) for cell in cells))
    for path in [ROOT / "README.md", *sorted((ROOT / "notebooks").rglob("*.md"))]:
        if path != PAGE:
            yield path.relative_to(ROOT).as_posix(), plain(path.read_text("utf-8"))


def labels(text: str) -> set[str]:
    """{"section 4.1", "equation 3", ...}"""
    found = set()
    for kind, numbers in LABEL.findall(text):
        kind = {"eq.": "equation", "eqs.": "equation"}.get(kind.lower(), kind.lower().removesuffix("s"))
        found |= {f"{kind} {n}" for n in re.findall(NUMBER, numbers) if n[0].isdigit() or kind == "appendix"}
    return found


def behind(text: str, inside: bool) -> str:
    """What a citation says of where: up to the end of its bracket, clause or paragraph."""
    if inside and text.startswith(")"):  # "(2017), "Title", section 3"
        text = text[1:]
    open_at, end = 0, len(text)
    for i, letter in enumerate(text):
        open_at += (letter == "(") - (letter == ")")
        if open_at < 0 or letter == ";" or (letter == "\n" and not open_at):
            end = i
            break
    return re.split(r"\. (?=[A-Z][a-z])", text[:end])[0]


def citations(texts: list[tuple[str, str]]) -> Found:
    found: Found = defaultdict(lambda: defaultdict(set))
    for place, text in texts:
        all_of_it = list(CITED.finditer(text))
        for i, one in enumerate(all_of_it):
            after = text[one.end() : all_of_it[i + 1].start() if i + 1 < len(all_of_it) else None][:300]
            for year in filter(None, (one["year"], one["again"])):
                found[f"{one['first']} {year}"][place] |= labels(behind(after, "(" in one[0]))
    return found


def sources(page: str) -> list[dict[str, str]]:
    """The rows of the table, by its headings; "key" is what stands between the ticks."""
    lines = [line for line in page.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    heading, rows = [cell.strip() for cell in lines[0].strip("| ").split(" | ")], []
    for line in lines[1:]:
        if ticked := re.match(r"\| `([^`]+)`", line):
            cells = [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split(" | ")]
            rows.append(dict(zip(heading, cells, strict=True)) | {"key": ticked[1]})
    return rows


def complaints(found: Found, rows: list[dict[str, str]]) -> list[str]:
    keys = {row["key"] for row in rows}
    told = [f"{key} has no row; it is cited in {', '.join(sorted(found[key]))}" for key in sorted(found.keys() - keys)]
    told += [f"{key} has a row, and nobody cites it" for key in sorted(keys - found.keys())]
    for key in sorted(keys & found.keys()):
        of_it = [row for row in rows if row["key"] == key]
        listed = {place for row in of_it for place in row["cited in"].split(", ")}
        if listed != found[key].keys():
            told.append(f"{key}: its row says {', '.join(sorted(listed))}; cited in {', '.join(sorted(found[key]))}")
        leaned_on = labels(" ".join(row["where, and what for"] for row in of_it))
        if missing := set().union(*found[key].values()) - leaned_on:
            told.append(f"{key}: its row does not name {', '.join(sorted(missing))}")
    return told


def elsewhere(texts: list[tuple[str, str]], found: Found, rows: list[dict[str, str]]) -> list[str]:
    """Sections and equations that a module names apart from a citation, which are in no row of a source of its own."""
    told = []
    for place, text in texts:
        of_it = {key for key, places in found.items() if place in places} | {"Hu 2021"}  # "the paper"
        known = labels(" ".join(row["where, and what for"] for row in rows if row["key"] in of_it))
        told += [f"{place} names {label}, which no row of its sources has" for label in sorted(labels(text) - known)]
    return told


WRONG = {  # what was said, as a pattern -> what is true
    r'(?<!["“])Gemma shares one': "Gemma 2B does; the 7B has 16 heads of keys and values",
    r"depends on its size and nothing else": "the noise's edge depends on sigma, too",
    r"no row of pixels is exactly": "there are more rows than columns: some are mixtures of others",
    r"everyone after it": "PiSSA starts at B's and A's singular vectors; Hayou et al. study A = 0",
    r"eq\. 1 less its dropout masks": "without its masks eq. 1 keeps 4 a s / h",
    r"LoRA of rank 4 beats full": "lecture 4 has no rank 4, and no such result",
    r"Pfeiffer et al\. 2021, section 3\.2|AdapterFusion\W+section 3\.2": "appendix A.2 and figure 5",
    r"Li & Liang 2021, section 6\.1": "FT-Top2 is defined in section 5.2",
    r"LLM\.int8\(\)\W+section 2\.1\), 4 bits": "a scale a row is section 3.1",
    r"always limited by memory": "a thin product is while its rank is below the machine's ridge",
    r"\*\*a frozen layer keeps no activation": "a frozen linear layer keeps none; a norm or a nonlinearity does",
    r"times more there than at random": "so many times as much",
    r"full fine-tuning forgets more than LoRA on each": "at one rate each; at equal loss on the new text it does not",
    r"LoRA wins (on little|up to)": "on that little text both were worse than the untouched base",
    r"about (3|three) times (larger|higher|full)|about threefold": "one step of a grid of three; the interval is wider",
    r"quanti[sz]ing again gives a part": "in two of eight bases it gives back more than all",
    r"we hypothesi[sz]e that the updates|also have a low intrinsic rank": 'no "that", and "intrinsic rank" in quotes',
    r"six ways to begin": "they are seven",
    r'"gradients": (sum\(|\[)p\.data': "those are the weights' bytes; a gradient is an array of its own",
    r"the game of section 1\b": "Shannon 1951 has the guessing of letters in section 3",
    r"14 models: exact": "what is exact is the sum over sizes; where the sizes were read is in notebooks/sources.md",
    r"Pfeiffer et al\. 2021[^.;|]{0,80}near the identity": "they say nothing about how it begins",
    r"512 (columns )?for summari[sz]ation|800 (columns )?for table-to-text": "512 is for table-to-text",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_was_wrong_is_said_nowhere(wrong):
    places = [place for place, text in texts() if re.search(f"(?i){wrong}", text)]
    assert places == [], WRONG[wrong]


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text("utf-8")


def test_every_citation_has_its_row_and_every_row_is_cited(page):
    assert complaints(citations(texts()), sources(page)) == []


def test_what_a_module_names_without_a_year_is_in_a_row_too(page):
    """Equations stand beside their lines, and the citation at the head of the file."""
    modules = [(place, text) for place, text in texts() if place.endswith(".py")]
    assert elsewhere(modules, citations(modules), sources(page)) == []
    planted = [("here.py", "By Hu et al. 2021. It is so by eq. 3 of section 4.1, and by theorem 9.")]
    assert elsewhere(planted, citations(planted), sources(page)) == [
        "here.py names theorem 9, which no row of its sources has"
    ]


def test_every_row_says_what_it_is_and_whether_it_was_looked_up(page):
    for row in sources(page):
        assert row["title"] and row["authors"] and row["year"] == row["key"].split()[-1], row
        assert IDENTIFIER.search(row["identifier"]) or "no identifier" in row["identifier"], row
        assert re.match(r"yes\b|not confirmed: \w", row["confirmed"]), row


def test_what_is_not_confirmed_stands_in_one_list(page):
    told = re.findall(r"^- `([^`]+)`", page.partition("## Not confirmed")[2].partition("\n## ")[0], re.M)
    assert told == [row["key"] for row in sources(page) if row["confirmed"].startswith("not")] and told


def test_planted_citations_are_found(page):
    """In each of the ways that a text cites; and what is planted in the table is."""
    planted = (
        'It is so (Nobody et al. 2019, section 9.9; Anyone & Noone 1990).\n\n- N. Body and others (2001), "All", arXiv '
        "1, table 7.\n\nO'Body, Van Nobody and Some-Body 1812 say so, and Dettmers et al. (2022 and 2023)."
    )
    found = citations([("here.py", plain(planted))])
    assert set(found) == {"Nobody 2019", "Anyone 1990", "Body 2001", "O'Body 1812", "Dettmers 2022", "Dettmers 2023"}
    assert found["Nobody 2019"]["here.py"] == {"section 9.9"} and found["Body 2001"]["here.py"] == {"table 7"}
    rows = sources(page)
    assert "Nobody 2019 has no row; it is cited in here.py" in complaints(found, rows)
    assert "Hu 2021 has a row, and nobody cites it" in complaints(found, rows)
    only = [row for row in rows if row["key"] == "Hu 2021"]
    here = {"Hu 2021": {place: set() for row in only for place in row["cited in"].split(", ")}}
    assert complaints(here, only) == []
    here["Hu 2021"]["lecture 5"] = {"section 4.1", "section 9.9"}
    assert complaints(here, only) == ["Hu 2021: its row does not name section 9.9"]
    here["Hu 2021"]["nowhere.py"] = set()
    assert len(complaints(here, only)) == 2
    assert labels("eqs. 2 and 3, Tables 2, 3 and 4 of appendix B.2") == {
        "equation 2", "equation 3", "table 2", "table 3", "table 4", "appendix B.2",
    }  # fmt: skip


def test_a_lectures_header_names_the_homework_of_the_syllabus():
    """That of lecture 9 named one that the syllabus has not."""
    syllabus = (ROOT / "notebooks" / "README.md").read_text("utf-8")
    rows = re.findall(r"^\|[^|]*\| \[[^\]]+\]\((\w+\.ipynb)\)(.*)$", syllabus, re.M)
    assert len(rows) >= 10
    for name, row in rows:
        header = "".join(json.loads((ROOT / "notebooks" / name).read_text("utf-8"))["cells"][0]["source"])
        sets = lambda text, pattern: set(re.findall(pattern, text))
        named = sets(header, r"(?i)(?:problem set|homework:?) (\d)")
        assert named <= sets(row.rpartition(" | ")[2], r"\[(\d),"), f"{name} names homework {', '.join(sorted(named))}"
