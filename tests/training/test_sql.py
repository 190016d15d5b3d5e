"""Questions in SQL: nothing of the held-out ones is seen in training, and who passes has found the right rows."""

import re

import pytest

from minilora.training import sql
from minilora.training.sql import CITIES, CONDITIONS, SHAPES, TEAMS, sql_questions

TRAIN, HELD_OUT = sql_questions(1500), sql_questions(400, held_out=True)


def question_of(prompt: str) -> str:
    """The line between the schema and what is to be done."""
    return prompt.splitlines()[-2]


def named(prompt: str) -> set[str]:
    """The numbers, cities and teams that a question names, read from its words."""
    words = set(re.findall(r"\w+", question_of(prompt)))
    return {word for word in words if word.isdigit()} | words & {*CITIES, *TEAMS}


def masked(prompt: str) -> str:
    """A question without its values."""
    return re.sub(rf"\b(\d+|{'|'.join(CITIES + TEAMS)})\b", "_", question_of(prompt))


def test_train_and_held_out_share_no_query_no_template_and_no_value():
    parts = [(q.prompt for q in part) for part in (TRAIN, HELD_OUT)]
    train, held_out = ([*part] for part in parts)
    values = [set().union(*map(named, prompts)) for prompts in (train, held_out)]
    assert not values[0] & values[1] and min(map(len, values)) > 30
    templates = [set(map(masked, prompts)) for prompts in (train, held_out)]
    assert not templates[0] & templates[1] and len(templates[1]) > 300
    assert not {q.skeleton for q in TRAIN} & {q.skeleton for q in HELD_OUT}
    assert all(q.values == named(q.prompt) for q in TRAIN + HELD_OUT)
    structure = [{re.sub(r"'[^']*'|\d+", "_", q.completion) for q in part} for part in (TRAIN, HELD_OUT)]
    assert len(structure[0] & structure[1]) < 0.05 * len(structure[1])


def test_the_parts_of_a_held_out_question_are_known_from_training():
    for part in (TRAIN, HELD_OUT):
        shapes, chosen = zip(*(q.skeleton.split(": ") for q in part), strict=True)
        assert {*shapes} == {*SHAPES}
        assert {name for names in chosen for name in re.split(" and | or ", names) if name} == {*CONDITIONS}
    held_out = [name for name in sql.skeletons() if sql.is_held_out(name)]
    assert 0.2 < len(held_out) / len(sql.skeletons()) < 0.3
    assert {q.skeleton for q in TRAIN + HELD_OUT} <= {*sql.skeletons()}


def test_the_same_seed_gives_the_same_questions_and_no_two_are_the_same():
    assert sql_questions(20, 3) == sql_questions(20, 3) != sql_questions(20, 4)
    assert len({q.prompt for q in HELD_OUT}) == len(HELD_OUT)
    assert all("\n" not in q.completion for q in TRAIN)


REWRITES = [  # the same query in other words
    (r"^SELECT (.*)", r"  select \1 ;\n"),
    (r"AVG\((\w+)\)", r"SUM(\1) * 1.0 / COUNT(\1)"),
    (r"city IN \(('\w+'), ('\w+')\)", r"(city = \1 OR city = \2)"),
    (r"(\w+) BETWEEN (\d+) AND (\d+)", r"(\1 >= \2 AND \3 >= \1)"),
    (
        r"(SELECT [ans].*)JOIN teams USING \(team\)",
        r"\1AS e JOIN (SELECT team AS t, floor, budget FROM teams) ON team = t",
    ),
    (r"^SELECT MAX\(salary\)(.*)", r"SELECT salary\1 ORDER BY salary DESC LIMIT 1"),
    (r"^SELECT name FROM (.*) LIMIT (\d)", r"SELECT name FROM (SELECT * FROM \1) LIMIT \2"),
    (r"^(?!.*(BETWEEN| OR ))(.*) WHERE (.*) AND (.*?)(?= GROUP| ORDER|$)", r"\2 WHERE \4 AND \3"),
]


@pytest.mark.parametrize("pattern, other", REWRITES)
def test_the_known_answer_is_right_and_so_is_the_same_in_other_words(pattern, other):
    pairs = [(q, re.sub(pattern, other, q.completion)) for q in HELD_OUT]
    pairs = [(q, answer) for q, answer in pairs if answer != q.completion][:30]
    assert len(pairs) >= 5
    for q, answer in pairs:
        assert q.mark(q.completion) and q.mark(answer), answer


# How an answer may be wrong -> the share that must be caught. A few are right: LIMIT 13 of two rows is LIMIT 3.
MUTATIONS = {
    "comparison": (lambda s: re.sub(r" > | >= ", " < ", s), 0.95),
    "at the limit": (lambda s: s.replace("WHERE salary > ", "WHERE salary >= "), 0.6),
    "and, or": (lambda s: s.replace(" AND ", " OR ") if "BETWEEN" not in s else s, 0.95),
    "or, and": (lambda s: s.replace(" OR ", " AND "), 0.95),
    "negation": (lambda s: s.replace("!=", "="), 0.95),
    "no condition": (lambda s: re.sub(r" WHERE .*?(?= GROUP| ORDER|$)", "", s), 0.9),
    "function": (lambda s: s.replace("MAX", "MIN").replace("SUM", "AVG"), 0.95),
    "order": (lambda s: s.replace(" DESC", ""), 0.9),
    "no order": (lambda s: re.sub(r" ORDER BY \w+( DESC)?$", "", s), 0.98),
    "limit": (lambda s: re.sub(r"LIMIT (\d)", r"LIMIT 1\1", s), 0.9),
    "another column": (lambda s: s.replace("SELECT name ", "SELECT city "), 1.0),
    "columns swapped": (lambda s: s.replace("SELECT name, salary", "SELECT salary, name"), 1.0),
    "no join": (lambda s: s.replace(" JOIN teams USING (team)", ""), 1.0),
    "no group": (lambda s: re.sub(r" GROUP BY \w+", "", s), 0.9),
    "another value": (lambda s: s.replace("city = '", "city = 'x"), 0.9),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_query_is_not_right_by_chance(name):
    mutate, least = MUTATIONS[name]
    pairs = [(q, mutate(q.completion)) for q in TRAIN[:600] if mutate(q.completion) != q.completion][:60]
    wrong = [not q.mark(answer) for q, answer in pairs]
    assert len(wrong) >= 10 and sum(wrong) / len(wrong) >= least


def test_order_counts_where_it_is_asked_for_and_only_there():
    ordered = next(q for q in TRAIN if q.skeleton.startswith("names by age"))
    free = next(q for q in TRAIN if q.skeleton.startswith("names: "))
    assert not ordered.mark(f"{ordered.completion} DESC")
    assert free.mark(f"{free.completion} ORDER BY name DESC")
    assert not free.mark(f"{free.completion} UNION ALL {free.completion}")  # each row as often as it is there


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"
HOSTILE = [
    "", " ", ";", "--", "SELECT", "no SQL at all", "SELECT nothing FROM employees", "SELECT name FROM nowhere", "\0",
    "SELECT name\0FROM employees", "\ud800", "SELECT '\ud800'", f"{ENDLESS} COUNT(*) FROM n", f"{ENDLESS} i FROM n",
    f"SELECT COUNT(*) FROM {', '.join(f'employees e{i}' for i in range(12))}", "SELECT zeroblob(1000000000)",
    "SELECT hex(randomblob(900000000))", "SELECT printf('%900000000d', 1)", "SELECT load_extension('libc.so.6')",
    "WITH RECURSIVE t(x) AS (SELECT 'aa' UNION ALL SELECT x || x FROM t) SELECT MAX(LENGTH(x)) FROM t",
    "ATTACH 'here.db' AS other", "VACUUM INTO 'here.db'", "PRAGMA user_version = 1", "DROP TABLE employees",
    "CREATE TABLE x (y)", "INSERT INTO employees SELECT * FROM employees", "DELETE FROM employees",
    "UPDATE employees SET age = 1", "BEGIN", "SELECT 1; SELECT 2", "SELECT * FROM sqlite_master",
    "SELECT CAST(x'ff' AS TEXT)", "SELECT 9223372036854775807 + 1", f"SELECT {'(' * 5000}1{')' * 5000}",
    f"SELECT {'1+' * 50000}1", "SELECT ?", "SELECT :name", "EXPLAIN SELECT 1",
]  # fmt: skip


@pytest.mark.parametrize("answer", HOSTILE)
def test_what_is_no_answer_is_wrong_at_once_and_leaves_nothing(answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not TRAIN[0].mark(answer)
    assert not list(tmp_path.iterdir())
    assert TRAIN[0].mark(TRAIN[0].completion)
