"""Equations as the docstrings write them, y = x W^T + s (x A^T) B^T, as LaTeX; None for a line that is none."""

import re

GREEK = {"alpha", "beta", "gamma", "delta", "epsilon", "eps", "theta", "lambda", "mu", "sigma", "phi", "Phi", "psi",
         "pi", "tau", "rho", "eta", "Delta", "Sigma", "Theta", "omega", "nu", "kappa"}  # fmt: skip
WORDS = {"sum", "exp", "log", "max", "min", "tanh", "sin", "cos", "sqrt", "softmax", "argmax", "argmin", "mean", "var",
         "std", "sigmoid", "silu", "gelu", "relu", "erf", "tr", "diag", "round", "clip", "sign", "rank", "svd",
         "dropout", "norm", "abs", "mod", "floor", "rot", "concat", "numel", "where", "if", "and", "else", "for", "or",
         "with", "so", "of"}  # fmt: skip
TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?(?:e-?\d+)?)|([A-Za-zα-ωΑ-Ω]+\d?'*(?:_(?:\w+|\([^()]*\)|\{[^{}]*\}))?)|"
                   r"(<=|>=|!=|->|<-|\.\.\.|[-+*/=(),;:|^\[\]<>'.!~·×·√∈])|(.))")  # fmt: skip
SIGNS = {"<=": r"\le", ">=": r"\ge", "!=": r"\ne", "->": r"\to", "<-": r"\leftarrow", "...": r"\dots", "*": r"\cdot",
         "|": r"\vert ", "~": r"\sim", "<": r"\lt", ">": r"\gt", "×": r"\times", "·": r"\cdot", "∈": r"\in",
         "√": r"\surd "}  # fmt: skip


def typeset(block: str) -> str | None:
    """An indented block of docstring as lines of mathematics with what is said beside them; None where it is none."""
    rows = []
    for line in (line.strip() for line in block.split("\n") if line.strip()):
        first, *rest = re.split(r"\s{3,}", line)
        if "=" not in first or latex(first) is None:
            return None
        rows.append(" &emsp; ".join([f"${latex(first)}$", *map(said, rest)]))
    return "\n\n".join(rows)


def said(words: str) -> str:
    """Words or a formula, as Markdown."""
    formula = latex(words) if re.search(r"[=^]|<-", words) and ": " not in words else None  # x: (N, d_in) is a shape
    return plain(words) if formula is None else f"${formula}$"


def plain(line: str) -> str:
    """Words of a docstring, whose letters mean themselves but for `code`."""
    parts = line.split("`")
    special = r"([\\*_<>$\[\]{}|~^#`])" if len(parts) % 2 == 0 else r"([\\*_<>$\[\]{}|~^#])"
    if len(parts) % 2 == 0:
        return re.sub(special, r"\\\1", line)
    return "`".join(part if i % 2 else re.sub(special, r"\\\1", part) for i, part in enumerate(parts))


def latex(line: str) -> str | None:
    """One formula; None where something in it is no part of one."""
    found: list[str] = []
    if re.search(r"(?<!\.)\.\.(?!\.)", line):  # 1..r
        return None
    for number, name, sign, other in TOKEN.findall(re.sub(r"(?<!\.)[.,;\s]+$", "", line)):
        if other.strip():
            return None
        if number:
            found.append(number)
        elif name:
            if (letter := _name(name)) is None:
                return None
            found.append(letter)
        elif sign:
            found.append(SIGNS.get(sign, sign))
    text = " ".join(found).replace("^ T", r"^{\top}")
    text = re.sub(r"\^ ?\(([^()]*)\)", r"^{\1}", text)
    text = re.sub(r"\^ ?- ([^ ]+)", r"^{-\1}", text)
    text = re.sub(r"\^ ?(\w+|\\\w+)", r"^{\1}", text)
    text = re.sub(r"\\sqrt \( ([^()]*) \)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\sqrt (\w+)", r"\\sqrt{\1}", text)
    return None if re.search(r"\\sqrt(?!\{)|\^(?!\{)", text) else text


def _name(name: str) -> str | None:
    """x, W_oi, d_out, alpha, softmax: a letter with its index, or a function's name."""
    head, _, index = name.partition("_")
    stem, primes = head.rstrip("'"), "'" * (len(head) - len(head.rstrip("'")))
    if stem == "sqrt":
        return r"\sqrt"
    if stem == "sum":
        made = r"\sum"
    elif stem in GREEK:
        made = r"\epsilon" if stem == "eps" else rf"\{stem}"
    elif len(stem) == 1 or re.fullmatch(r"d[A-Za-z]", stem):
        made = stem
    elif re.fullmatch(r"[A-Za-z]\d", stem):
        made, index = stem[0], ",".join(filter(None, [stem[1], index]))
    elif stem in WORDS:
        made = (
            rf"\text{{ {stem} }}"
            if stem in ("if", "and", "else", "for", "or", "with", "where", "so", "of")
            else rf"\mathrm{{{stem}}}"
        )
    else:
        return None
    if not index:
        return made + primes
    index = index.strip("(){}").replace("!=", r"\ne ")
    inner = rf"\mathrm{{{index}}}" if re.fullmatch(r"[a-z]{2,}", index) and index in SUBSCRIPTS else index
    return rf"{made}{primes}_{{{inner}}}"


SUBSCRIPTS = {"out", "in", "max", "min", "new", "old", "model", "head", "ff", "kv", "norm", "base", "hat", "eff"}
