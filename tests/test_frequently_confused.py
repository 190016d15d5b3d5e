"""The page Frequently confused: every entry is short, names its sources, and has a proof that runs and can fail."""

import ast
import json
import re
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import pytest

import minilora as ml

PAGE = Path(__file__).parent.parent / "notebooks" / "frequently_confused.md"
MOST_SENTENCES, MOST_LINES, WIDEST = 3, 10, 120


@dataclass(frozen=True)
class Entry:
    """A question as people put it, its answer, the proof, and what stands below it."""

    title: str
    answer: str
    proofs: tuple[str, ...]
    sources: str

    @property
    def proof(self) -> str:
        return self.proofs[0]


def entries(text: str) -> list[Entry]:
    """Everything between one ### and the next heading."""
    found = []
    for part in re.split(r"^### ", text, flags=re.M)[1:]:
        title, _, rest = re.split(r"^## ", part, flags=re.M)[0].partition("\n")
        before, *after = re.split(r"^```python\n(.*?)^```$", rest, flags=re.M | re.S)
        found.append(Entry(title.strip(), before.strip(), tuple(after[::2]), "".join(after[1::2]).strip()))
    return found


def sentences(answer: str) -> list[str]:
    """What ends in a full stop, a question or an exclamation mark, but for the stops in `code` and in "et al."."""
    plain = re.sub(r"`[^`]*`", "code", answer).replace("et al.", "et al")
    return [one for one in re.split(r"(?<=[.?!])\s+", plain.strip()) if one]


def complaints(entry: Entry) -> list[str]:
    """What is wrong with an entry's form."""
    found = []
    if not 1 <= len(sentences(entry.answer)) <= MOST_SENTENCES:
        found.append(f"the answer has {len(sentences(entry.answer))} sentences")
    if len(entry.proofs) != 1:
        return [*found, f"there are {len(entry.proofs)} blocks of Python, expected one"]
    lines = entry.proof.splitlines()
    if len(lines) > MOST_LINES:
        found.append(f"the proof has {len(lines)} lines")
    found += [f"a line has {len(line)} characters" for line in lines if len(line) > WIDEST]
    try:
        asserts = [node for node in ast.walk(ast.parse(entry.proof)) if isinstance(node, ast.Assert)]
        asserts += re.findall(r"\bassert_\w+\(", entry.proof)
    except SyntaxError as error:
        return [*found, f"the proof is no Python: {error}"]
    if not asserts:
        found.append("the proof asserts nothing")
    if re.search(r"\b(PEFT|paper|PyTorch|GPT-2|BERT|program|programs)\b|et al\.", entry.answer):
        asked = re.search(r"^Asked:.*?\]\(https://", entry.sources, re.M | re.S)
        if not asked and not re.search(r"\bSource: \S", entry.sources):
            found.append("the answer speaks of others, and names no source")
    for words, address in re.findall(r"\[([^\]]*)\]\(([^)]*)\)", entry.sources):
        place, _, number = words.partition(" #")
        if number and not re.fullmatch(rf"https://github\.com/{re.escape(place)}/(issues|pull)/{number}", address):
            found.append(f"{words!r} leads to {address}")
    return found


def run(proof: str) -> None:
    """Run it in a namespace of its own."""
    exec(compile(proof, str(PAGE), "exec"), {"__name__": "proof"})


ENTRIES = entries(PAGE.read_text(encoding="utf-8"))
BY_TITLE = {entry.title: entry for entry in ENTRIES}

SLIPS = (  # what a student's slides say, and the issue lists
    "update is AB", "y = Wx", "rank of W", "W itself", "deviation of 1/√r", "two phases", "compresses", "thrown away",
    "adds parameters", "masked words", "frozen cannot be forgotten", "slow because of their parameters",
)  # fmt: skip
QUESTIONS = (  # what people ask in public
    "answer a little differently", "The scale", "merged twice", "embedding is the output head",
    "target that matches nothing", "4 bits", "α twice the rank", "B zero at the start", "second backward",
    r"\*more\* memory", "resumed run forgets its adapter", "new head not in", "rank be larger", "bias=", "dropout",
    "gradient checkpointing", "more slowly", "learning rate", "another base", "DoRA", "subtracted", "averaging",
)  # fmt: skip


@pytest.mark.parametrize("words", [*SLIPS, *QUESTIONS])
def test_every_slip_and_every_question_has_an_entry(words):
    assert len([title for title in BY_TITLE if re.search(words, title, re.I)]) == 1


IN_THEIR_LECTURES = {  # what a student's slides say, as a pattern -> the lectures where it is answered
    r"with \$A\$ .{0,30}r \\times k.{0,200}It is not so: those shapes fit one way round": "05",
    r"takes \$k\$ numbers in and gives \$d\$ out": "05",
    r"\"\$r\$ is the rank of \$W\$\".{0,40}It is not so": "05",
    r"\$W\$ itself is low-rank\".{0,40}It is not so": "06",
    r"standard deviation is \$1/\\sqrt\{r\}\$\".{0,40}It is not so": "05",
    r"two phases, and pre-training is the first\".{0,40}It is not so": "05",
    r"LoRA compresses the model\*\.\*\* It does not": "07",
    r"discard \$A\$ and \$B\$: \$W_0\$ was updated\".{0,40}It is not so": "05",
    r"full fine-tuning adds parameters to the model\"\. It adds none": "04",
    r"pre-training predicts masked words\.\* So it does in BERT": "03",
    r"freezing guarantees it\.\* .{0,200}What freezing guarantees is the way back": "04",
    r"slow because they have more parameters\.\*\* It is not so": "08a",
}


@pytest.mark.parametrize("said", IN_THEIR_LECTURES)
def test_every_slip_is_answered_in_the_lecture_where_it_belongs(said):
    (path,) = PAGE.parent.glob(f"{IN_THEIR_LECTURES[said]}_*.ipynb")
    cells = json.loads(path.read_text("utf-8"))["cells"]
    assert len(IN_THEIR_LECTURES) == len(SLIPS)
    assert any(re.search(said, re.sub(r"\s*\n>? ?", " ", "".join(cell["source"])), re.S) for cell in cells)


def test_titles_differ_and_the_course_leads_here():
    assert len(BY_TITLE) == len(ENTRIES) >= 40
    assert "(frequently_confused.md)" in (PAGE.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.title)
def test_an_entry_is_short_and_names_its_sources(entry):
    assert not complaints(entry)


GOOD = """### Is 1 one?

It is, `a.b` says; see Hu et al. 2021. So do others.

```python
assert 1 == 1
```

Source: [a/b #1](https://github.com/a/b/issues/1).
"""


@pytest.mark.parametrize(
    "before, after, words",
    [
        ("So do others.", "So do others. And more. And more.", "4 sentences"),
        ("It is, `a.b` says; see Hu et al. 2021. So do others.", "", "0 sentences"),
        ("assert 1 == 1\n", "assert 1 == 1\n" * 11, "11 lines"),
        ("assert 1 == 1\n", f"assert {'1' * 120}\n", "characters"),
        ("assert 1 == 1", "print(1)", "asserts nothing"),
        ("assert 1 == 1", "assert 1 ==", "no Python"),
        ("```python\nassert 1 == 1\n```\n", "", "0 blocks"),
        ("Source: ", "See also ", "names no source"),
        ("issues/1", "issues/2", "leads to"),
        ("com/a/b", "com/a/c", "leads to"),
    ],
)
def test_a_planted_fault_of_form_is_found(before, after, words):
    (good,) = entries(GOOD)
    assert not complaints(good)
    (bad,) = entries(GOOD.replace(before, after))
    assert any(words in complaint for complaint in complaints(bad))


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.title)
def test_the_proof_holds(entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(entry.proof)
    assert not tracemalloc.is_tracing()


WRONG = {  # words of the title: (what the proof says, what a slide or a bug would have it say)
    "update is AB": ("(B @ A).shape", "(A.T @ B.T).shape"),
    "y = Wx": ("== (d,)", "== (k,)"),
    "rank of W": ("layer.delta()) == 128", "layer.delta()) == 2"),
    "W itself": ("> 0.5 * ", "< 0.5 * "),
    "two phases": ("not any(", "any("),
    "compresses": ("> base\n", "< base\n"),
    "thrown away": ("ml.remove_lora(model)(tokens)", "(ml.merge_lora(model), ml.remove_lora(model))[1](tokens)"),
    "adds parameters": ("before.keys() == after.keys()", "len(before) < len(after)"),
    "masked words": ('("bert-base", "gpt2")', '("gpt2", "gpt2")'),
    "frozen cannot": ("> 2 * base", "<= base"),
    "slow because": ("> costs.latency(lora)", "< costs.latency(lora)"),
    "B zero at the start": ("((A0, B0), True, False)", "((A0, B0), True, True)"),
    "gradient of A": ("(step > 0)", "True"),
    "deviation of 1/√r": ("1 / np.sqrt(3 * 128)", "1 / np.sqrt(r)"),
    "α twice the rank": ("1 / 2), (dict", "2), (dict"),
    "learning rate": ('< length["full"] / 2', '== length["full"]'),
    "comparable": ("B2 @ A2, B @ A", "A2, A"),
    "second backward": ("[12.0]", "[6.0]"),
    "optimiser was made before": ("add_lora(model, ml.LoRAConfig())", "load_model('base')"),
    "dropout": ("assert not np.allclose", "assert np.allclose"),
    "target that matches": ('("q_proj", "query_proj")', '("q_proj",)'),
    "rank be larger": ("(rank=200)", "(rank=100)"),
    "base model has changed": ("adapted is base", "adapted is not base"),
    "bias=": ('bias="all"', 'bias="none"'),
    r"\*more\* memory": ("> bytes_of_a_step(64", "< bytes_of_a_step(64"),
    "hardly faster": ("< 3 / 4", "< 1 / 2"),
    "more slowly": ("== kinds(ml.remove_lora(model))", "== kinds(model)"),
    "gradient checkpointing": ("[again] = ml", "[again] = [] if again else ml"),
    "16 bits. Must": ('== "float32"', '== "float16"'),
    "a little differently": ('"float16"] > 100', '"float16"] < 100'),
    "The scale": ("32 / 4", "32 / 16"),
    "merged twice": ("\nml.merge_lora(model)\npytest", "\npytest"),
    "output head": (", ensure_weight_tying=True", ""),
    "4 bits": ("kept(ml.requantize) < 0.5", "kept(ml.requantize) > 0.5"),
    "DoRA": ("== 2 <", "== 2 >"),
    "resumed run": ('load_checkpoint("run.npz")', "fresh()"),
    "New tokens": ("(dict(), False)", "(dict(), True)"),
    "loaded an adapter": ("== 16384", "== 0"),
    "new head": ("bool(named)", "True"),
    "another base": ("+= 0.01", "+= 0"),
    "answers as before": ('arrays["model.', 'arrays["'),
    "averaging": ('("linear", False)', '("linear", True)'),
    "subtracted": ('{"plus": -1}', '{"plus": 1}'),
}


@pytest.mark.parametrize("words", WRONG)
def test_each_entry_has_something_wrong_planted(words):
    assert len(WRONG) == len(ENTRIES)
    (entry,) = [entry for entry in ENTRIES if re.search(words, entry.title)]
    assert entry.proof.count(WRONG[words][0]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("words", WRONG)
@pytest.mark.filterwarnings("ignore")
def test_the_proof_fails_where_something_wrong_is_planted(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (entry,) = [entry for entry in ENTRIES if re.search(words, entry.title)]
    with pytest.raises((AssertionError, ValueError, pytest.fail.Exception)):
        run(entry.proof.replace(*WRONG[words]))


@pytest.mark.slow
def test_lora_needs_more_memory_than_full_fine_tuning_on_the_tape_as_well():
    """Measured beside the entry's formulas: what a forward pass leaves for the backward pass, and 12 bytes each."""
    tokens, need = ml.encode("Long texts. " * 320).reshape(30, 128), {}
    lora = ml.add_lora(ml.load_model("base"), ml.LoRAConfig(rank=64, target_modules="*"))
    for name, model in (("full", ml.load_model("base")), ("lora", lora)):
        tracemalloc.start()
        try:
            loss = model.loss(tokens, tokens)
            need[name] = tracemalloc.get_traced_memory()[0] + 12 * model.count(trainable=True)
        finally:
            tracemalloc.stop()
        assert loss.item() > 0
    assert need["lora"] > need["full"]
