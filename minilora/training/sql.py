"""Questions about a small database. Whether an answer in SQL is right is seen by running it beside the known query.

A question is a shape ("How many employees are there ...?"), up to two conditions ("... from Rome and older than 40")
and a phrasing of each. Which shape stands with which conditions is its skeleton. Held-out questions have skeletons, and
cities, teams and numbers, that no question to train on has; their shapes, conditions and phrasings are those of
training. So what is asked for is new combinations of what was learnt (Keysers et al. 2020, "Measuring Compositional
Generalization: A Comprehensive Method on Realistic Data").
"""

import contextlib
import functools
import itertools
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

SCHEMA = "employees(name, team, city, age, salary)\nteams(team, floor, budget)"
ASK = "Answer with one line of SQL."

SHAPES = {  # what is asked for -> its SQL, and phrasings
    "names": ("SELECT name {from}", (
        "List the names of employees{where}.", "What are the names of employees{where}?",
        "Give the name of every employee{where}.")),
    "names and salaries": ("SELECT name, salary {from}", (
        "List the names and salaries of employees{where}.", "Show the name and salary of every employee{where}.",
        "What are the names and salaries of employees{where}?")),
    "cities": ("SELECT DISTINCT city {from}", (
        "List the different cities of employees{where}.", "What are the distinct cities of employees{where}?",
        "Show every city once that has employees{where}.")),
    "names by age": ("SELECT name {from} ORDER BY age", (
        "List the names of employees{where}, youngest first.", "Sort the names of employees{where} by age.",
        "Give the names of employees{where} in order of age.")),
    "names by salary": ("SELECT name {from} ORDER BY salary DESC", (
        "List the names of employees{where}, highest salary first.",
        "Sort the names of employees{where} by falling salary.",
        "Rank the names of employees{where}, best paid first.")),
    "best paid": ("SELECT name {from} ORDER BY salary DESC LIMIT {n}", (
        "Name the {n} employees{where} with the highest salary.", "Who are the {n} best paid employees{where}?",
        "Give the names of the top {n} by salary among employees{where}.")),
    "youngest": ("SELECT name {from} ORDER BY age LIMIT {n}", (
        "Name the {n} youngest employees{where}.", "Who are the {n} employees{where} with the lowest age?",
        "Give the names of the {n} youngest among employees{where}.")),
    "count": ("SELECT COUNT(*) {from}", (
        "How many employees are there{where}?", "Count the employees{where}.",
        "What is the number of employees{where}?")),
    "average salary": ("SELECT AVG(salary) {from}", (
        "What is the average salary of employees{where}?", "How much do employees{where} earn on average?",
        "Compute the mean salary of employees{where}.")),
    "average age": ("SELECT AVG(age) {from}", (
        "What is the average age of employees{where}?", "How old are employees{where} on average?",
        "Compute the mean age of employees{where}.")),
    "highest salary": ("SELECT MAX(salary) {from}", (
        "What is the highest salary of employees{where}?", "How much does the best paid of the employees{where} earn?",
        "Find the maximum salary among employees{where}.")),
    "lowest age": ("SELECT MIN(age) {from}", (
        "What is the lowest age of employees{where}?", "How old is the youngest of the employees{where}?",
        "Find the minimum age among employees{where}.")),
    "total salary": ("SELECT SUM(salary) {from}", (
        "What is the total salary of employees{where}?", "How much do employees{where} earn together?",
        "Add up the salaries of employees{where}.")),
    "count per city": ("SELECT city, COUNT(*) {from} GROUP BY city", (
        "For each city, how many employees are there{where}?", "Count the employees{where} in every city.",
        "Show each city with its number of employees{where}.")),
    "average salary per team": ("SELECT team, AVG(salary) {from} GROUP BY team", (
        "For each team, what is the average salary of employees{where}?",
        "Compute the mean salary of employees{where} in every team.",
        "Show each team with the average salary of employees{where}.")),
    "highest age per city": ("SELECT city, MAX(age) {from} GROUP BY city", (
        "For each city, what is the highest age of employees{where}?",
        "Find the maximum age of employees{where} in every city.",
        "Show each city with the age of the oldest of the employees{where}.")),
    "large teams": ("SELECT team {from} GROUP BY team HAVING COUNT(*) > {n}", (
        "Which teams have more than {n} employees{where}?", "List the teams that have over {n} employees{where}.",
        "Name every team with more than {n} employees{where}.")),
}  # fmt: skip
CONDITIONS = {  # of which employees -> the column it looks at, its SQL, and phrasings
    "city": ("city", "city = '{city}'", ("from {city}", "who live in {city}", "based in {city}")),
    "not city": ("city", "city != '{city}'", ("not from {city}", "who do not live in {city}", "based outside {city}")),
    "two cities": ("city", "city IN ('{city}', '{city2}')", (
        "from {city} or {city2}", "who live in {city} or {city2}", "based in either {city} or {city2}")),
    "team": ("team", "team = '{team}'", ("in the {team} team", "who work in {team}", "on the team {team}")),
    "not team": ("team", "team != '{team}'", (
        "not in the {team} team", "who do not work in {team}", "outside the team {team}")),
    "salary over": ("salary", "salary > {salary}", (
        "who earn more than {salary}", "with a salary above {salary}", "paid over {salary}")),
    "salary under": ("salary", "salary < {salary}", (
        "who earn less than {salary}", "with a salary below {salary}", "paid under {salary}")),
    "salary from": ("salary", "salary >= {salary}", (
        "who earn at least {salary}", "with a salary of {salary} or more", "paid no less than {salary}")),
    "older": ("age", "age > {age}", ("older than {age}", "over {age} years old", "above the age of {age}")),
    "younger": ("age", "age < {age}", ("younger than {age}", "under {age} years old", "below the age of {age}")),
    "age between": ("age", "age BETWEEN {age} AND {age2}", (
        "aged between {age} and {age2}", "who are {age} to {age2} years old", "with an age from {age} to {age2}")),
    "floor": ("floor", "floor = {floor}", (
        "whose team is on floor {floor}", "who work on floor {floor}", "in teams on floor {floor}")),
    "budget over": ("budget", "budget > {budget}", (
        "whose team has a budget over {budget}", "in teams with a budget above {budget}",
        "in teams that have more than {budget} to spend")),
}  # fmt: skip
JOINED = ("floor", "budget")  # columns of teams: a question about them joins the two tables
CITIES = (
    "Rome", "Oslo", "Paris", "Cairo", "Lima", "Delhi", "Quito", "Tokyo", "Berlin", "Dakar", "Madrid", "Athens",
    "Vienna", "Lagos", "Sydney", "Hanoi", "Dublin", "Prague", "Warsaw", "Nairobi", "Boston", "Accra", "Seoul", "Milan",
)  # fmt: skip
TEAMS = (
    "sales", "support", "design", "legal", "research", "finance", "security", "hardware", "training", "quality",
    "marketing", "logistics",
)  # fmt: skip
NAMES = (
    "Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gina", "Hugo", "Ida", "Jan", "Kim", "Leo", "Mia", "Ned", "Olga", "Pia",
    "Quin", "Rob", "Sara", "Tom",
)  # fmt: skip
TABLES = {
    "employees": "name TEXT, team TEXT, city TEXT, age INTEGER, salary INTEGER",
    "teams": "team TEXT, floor INTEGER, budget INTEGER",
}
# A wrong query may find the right rows by chance, hardly in several databases (Zhong, Yu and Klein 2020, "Semantic
# Evaluation for Text-to-SQL with Distilled Test Suites").
DATABASES = 5
STEPS, ROWS, LENGTH = 1_000_000, 10_000, 100_000  # a query's most virtual-machine steps, rows, and bytes of a value
READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
Rows = tuple[tuple, ...]


@dataclass(frozen=True)
class SqlQuestion:
    """A question and the SQL that answers it. literals: all that it could name. seed: of the databases to mark on."""

    prompt: str
    completion: str
    skeleton: str
    template: str
    literals: dict[str, Any]
    seed: int

    @property
    def values(self) -> frozenset[str]:
        """What the question names."""
        return frozenset(str(value) for name, value in self.literals.items() if f"{{{name}}}" in self.template)

    @functools.cached_property
    def databases(self) -> list[tuple[Rows, Rows]]:
        """Databases, each the rows of (employees, teams), in which the answer says something, if they can be drawn."""
        rng = np.random.default_rng(self.seed)
        drawn: list[tuple[Rows, Rows]] = []
        telling: list[tuple[Rows, Rows]] = []
        while len(telling) < DATABASES and len(drawn) < 4 * DATABASES:
            drawn.append(draw_tables(rng, self.literals))
            telling += drawn[-1:] if says_something(drawn[-1], self.completion) else []
        return telling or drawn[:DATABASES]

    def mark(self, answer: str) -> bool:
        """Whether an answer has the known query's rows in every database; in its order, where it has ORDER BY."""
        ordered = "ORDER BY" in self.completion
        for tables in self.databases:
            with contextlib.closing(database(tables)) as connection:
                given, known = (run_query(connection, sql) for sql in (answer, self.completion))
            if given is None or known is None:
                return False
            if given != known and (ordered or Counter(given) != Counter(known)):
                return False
        return True


def sql_questions(n: int, seed: int = 0, held_out: bool = False) -> list[SqlQuestion]:
    """n different questions, to train on or held out; the latter with all databases to be marked on."""
    rng = np.random.default_rng([seed, held_out])
    found: dict[str, SqlQuestion] = {}
    while len(found) < n:
        question = draw(rng, held_out)
        if not held_out or len(question.databases) == DATABASES:
            found.setdefault(question.prompt, question)
    return list(found.values())


def draw(rng: np.random.Generator, held_out: bool) -> SqlQuestion:
    """A question of a skeleton of this part."""
    while True:
        shape = str(rng.choice(list(SHAPES)))
        count = rng.choice(3, p=[0.1, 0.4, 0.5])
        conditions = [str(name) for name in rng.choice(list(CONDITIONS), count, replace=False)]
        word = str(rng.choice(["and", "or"]))
        skeleton = skeleton_of(shape, conditions, word)
        columns = {CONDITIONS[name][0] for name in conditions}
        if len(columns) == count and is_held_out(skeleton) == held_out:
            break
    tables = "FROM employees JOIN teams USING (team)" if columns & {*JOINED} else "FROM employees"
    where = f" WHERE {f' {word.upper()} '.join(CONDITIONS[name][1] for name in conditions)}" if conditions else ""
    phrases = [str(rng.choice(CONDITIONS[name][2])) for name in conditions]
    told = f" {f' {word} '.join(phrases)}" if conditions else ""
    template = str(rng.choice(SHAPES[shape][1])).replace("{where}", told)
    literals = draw_literals(rng, held_out)
    prompt = f"{SCHEMA}\n{template.format(**literals)}\n{ASK}"
    sql = SHAPES[shape][0].replace("{from}", tables + where).format(**literals)
    return SqlQuestion(prompt, sql, skeleton, template, literals, int(rng.integers(2**31)))


def skeleton_of(shape: str, conditions: Iterable[str], word: str) -> str:
    """A shape and its conditions, whichever is said first."""
    return f"{shape}: {f' {word} '.join(sorted(conditions))}"


def skeletons() -> list[str]:
    """All that there are."""
    names = [[], *([name] for name in CONDITIONS), *map(list, itertools.combinations(CONDITIONS, 2))]
    fitting = [chosen for chosen in names if len({CONDITIONS[name][0] for name in chosen}) == len(chosen)]
    words = lambda chosen: ("and", "or") if len(chosen) == 2 else ("and",)
    return [skeleton_of(shape, chosen, word) for shape in SHAPES for chosen in fitting for word in words(chosen)]


def is_held_out(skeleton: str) -> bool:
    """A quarter of the skeletons, by a sum over their letters: the same ones always and everywhere."""
    return zlib.crc32(skeleton.encode()) % 4 == 0


def draw_literals(rng: np.random.Generator, held_out: bool) -> dict[str, Any]:
    """What a question may name. Held out are every third city and team, and the multiples of three."""
    words = lambda kind: [word for i, word in enumerate(kind) if (i % 3 == 0) == held_out]
    numbers = lambda low, high, unit=1: [unit * i for i in range(low, high) if (i % 3 == 0) == held_out]
    city, city2 = rng.choice(words(CITIES), 2, replace=False)
    age, age2 = sorted(rng.choice(np.array(numbers(26, 58)), 2, replace=False).tolist())
    one = lambda kind: rng.choice(np.array(kind)).item()
    return {
        "city": str(city), "city2": str(city2), "team": one(words(TEAMS)), "age": age, "age2": age2,
        "salary": one(numbers(25, 75, 100)), "floor": one(numbers(1, 10)), "budget": one(numbers(20, 80, 1000)),
        "n": one(numbers(2, 5)),
    }  # fmt: skip


def draw_tables(rng: np.random.Generator, values: dict) -> tuple[Rows, Rows]:
    """The rows of employees and teams, among them what the question names: at a limit, > and >= differ.

    No two employees are of one age or salary, so that every order by them is one.
    """
    others = lambda kind, k: list(map(str, rng.choice(np.array(kind), k, replace=False)))
    teams = list(dict.fromkeys([values["team"], *others(TEAMS, 3)]))
    cities = list(dict.fromkeys([values["city"], values["city2"], *others(CITIES, 2)]))
    ages = several(rng, range(20, 65), [values["age"], values["age2"]])
    salaries = several(rng, range(1000, 10_000, 100), [values["salary"]])
    names = rng.permutation(NAMES).tolist()
    team_of, city_of = rng.choice(teams, len(names)).tolist(), rng.choice(cities, len(names)).tolist()
    if rng.random() < 0.5:  # who is at the limit is also in the city and in the team: else AND would hide it
        at = salaries.index(values["salary"])
        team_of[at], city_of[at] = teams[0], cities[0]
    floors = [values["floor"], *rng.integers(1, 10, len(teams) - 1).tolist()]
    budgets = rng.permutation([values["budget"], *rng.integers(10, 90, len(teams) - 1) * 1000]).tolist()
    employees = tuple(zip(names, team_of, city_of, ages, salaries, strict=True))
    return employees, tuple(zip(teams, floors, budgets, strict=True))


def several(rng: np.random.Generator, pool: range, named: list[int]) -> list[int]:
    """As many different numbers of a pool as there are employees, the named ones among them, in any order."""
    rest = [number for number in pool if number not in named]
    chosen: list[int] = rng.choice(np.array(rest), len(NAMES) - len(named), replace=False).tolist()
    return rng.permutation(named + chosen).tolist()


def says_something(tables: tuple[Rows, Rows], sql: str) -> bool:
    """Whether a query's rows are some, none of them empty or zero: nothing is what many wrong queries find."""
    with contextlib.closing(database(tables)) as connection:
        rows = run_query(connection, sql)
    return bool(rows) and all(all(row) for row in rows or [])


def database(tables: tuple[Rows, Rows]) -> sqlite3.Connection:
    """A database in memory that can only be read, and only so much."""
    connection = sqlite3.connect(":memory:")
    for (table, columns), rows in zip(TABLES.items(), tables, strict=True):
        connection.execute(f"CREATE TABLE {table} ({columns})")
        connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
    connection.commit()
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LENGTH)
    connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in READS else sqlite3.SQLITE_DENY)
    connection.set_progress_handler(lambda: 1, STEPS)  # at the first call, which comes after so many steps, it stops
    return connection


def run_query(connection: sqlite3.Connection, sql: str) -> list[tuple] | None:
    """A query's rows, numbers to nine digits: sums in another order are the same. None where it fails or is endless."""
    try:
        rows = connection.execute(sql).fetchmany(ROWS)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError):
        return None
    return [tuple(float(f"{cell:.9g}") if isinstance(cell, float) else cell for cell in row) for row in rows]
