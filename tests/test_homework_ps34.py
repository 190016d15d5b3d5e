"""Problem sets 3 (rank) and 4 (budget), graded by nbgrader: full marks for the solution, none for the released version,
and for typical wrong answers exactly the points that they should lose."""

import homework_grading as grading
import pytest
from homework_grading import Wrong

pytestmark = pytest.mark.slow

ALL_OF_SVD = ("svd-product", "svd-error", "svd-balance")
ALL_OF_PHI = ("phi-equal", "phi-unequal", "phi-invariance")
SPLIT = "u[:, :r] * root, root[:, None] * vt[:r]"
RIGHT_VECTORS = "np.linalg.svd(A1, full_matrices=False)[2][:i].T"
BOTH_COUNTS = ["lora-parameters-square", "lora-parameters-oblong"]
BOTH_DEMANDS = ["design-fits", "design-demands"]

RANK = [
    Wrong("factors swapped", "truncated-svd", SPLIT, "root[:, None] * vt[:r], u[:, :r] * root", ALL_OF_SVD),
    Wrong("no root in A", "truncated-svd", SPLIT, "u[:, :r] * root, vt[:r]", ALL_OF_SVD),
    Wrong("V for V^T", "truncated-svd", SPLIT, "u[:, :r] * root, root[:, None] * vt.T[:r]", ALL_OF_SVD),
    Wrong("all of s in B", "truncated-svd", SPLIT, "u[:, :r] * s[:r], vt[:r]", ["svd-balance"]),
    Wrong("energies not squared", "energies", "** 2", "", ["energies-values"]),
    Wrong("energies not added up", "energies", "squares.cumsum()", "squares", ["energies-values"]),
    Wrong("rank counted from 0", "smallest-rank", "share)) + 1", "share))", ["smallest-rank-values"]),
    Wrong("more than the share", "smallest-rank", ">=", ">", ["smallest-rank-values"]),
    Wrong("p from squares", "effective-rank", "p = p[p > 0]", "p = p[p > 0] ** 2 / (p @ p)", ["effective-rank-value"]),
    Wrong("0 log 0", "effective-rank", "p = p[p > 0]", "p = p[:]", ["effective-rank-zeros"]),
    Wrong(
        "entropy in bits", "effective-rank", "np.log(p)", "np.log2(p)", ["effective-rank-value", "effective-rank-zeros"]
    ),
    Wrong("divided by the larger", "phi", "min(i, j)", "max(i, j)", ["phi-unequal"]),
    Wrong("norm not squared", "phi", "** 2 ", "", ["phi-equal", "phi-unequal"]),
    Wrong("not divided", "phi", " / min(i, j)", "", ["phi-equal", "phi-unequal"]),
    Wrong("rows for singular vectors", "phi", RIGHT_VECTORS, "A1[:i].T", ALL_OF_PHI),
    Wrong(
        "upside down",
        "amplification",
        "np.linalg.norm(delta) / np.linalg.norm(inside)",
        "np.linalg.norm(inside) / np.linalg.norm(delta)",
        ["amplification-value", "amplification-scaling"],
    ),
    Wrong("directions of W", "amplification", "svd(delta,", "svd(weight,", ["amplification-value"]),
    Wrong("Delta W cut to rank r", "amplification", "norm(delta)", "norm(_[:r])", ["amplification-value"]),
]

DESIGN = 'return {"method": "lora", "bits": 4, "rank": 16, "target_modules": targets}'
NEAREST = "np.abs(relative[:, :, None] - levels).argmin(axis=2)"

BUDGET = [
    Wrong("A alone", "lora-parameters", "d_out + d_in", "d_in", BOTH_COUNTS),
    Wrong("every matrix square", "lora-parameters", "d_out + d_in", "d_in + d_in", ["lora-parameters-oblong"]),
    Wrong("one layer", "lora-parameters", "layers * ", "", BOTH_COUNTS),
    Wrong("optimiser of the frozen", "memory", "12 * trained", "12 * (trained + frozen)", ["memory-training"]),
    Wrong("no scales", "memory", "4 + 8 / 64 + 32 / (64 * 256)", "4", ["memory-4"]),
    Wrong("embeddings in 4 bits", "memory", "in_layers * held / 8 + 2 * (frozen - in_layers + trained)",
          "frozen * held / 8 + 2 * trained", ["memory-4"]),
    Wrong("adapters forgotten", "memory", "- in_layers + trained", "- in_layers", ["memory-16", "memory-4"]),
    Wrong("full fine-tuning", "design", DESIGN, 'return {"method": "full", "bits": 16}', BOTH_DEMANDS),
    Wrong("16 bits", "design", '"bits": 4', '"bits": 16', ["design-fits"]),
    Wrong("rank 1", "design", '"rank": 16', '"rank": 1', ["design-demands"]),
    Wrong("not mergeable", "design", DESIGN, 'return {"method": "pfeiffer", "bits": 4}', ["design-demands"]),
    Wrong("not divided", "nf4-levels", "levels / levels.max()", "levels", ["nf4-levels-values", "measure-base"]),
    Wrong("sides exchanged", "nf4-levels", "quantiles(9), quantiles(8)", "quantiles(8), quantiles(9)",
          ["nf4-levels-values"]),
    Wrong("sign lost", "quantise", "np.abs(blocks).max", "blocks.max", ["quantise-nearest", "measure-base"]),
    Wrong("next level, not nearest", "quantise", NEAREST, "np.searchsorted(levels, relative).clip(0, 15)",
          ["quantise-nearest", "measure-base"]),
    Wrong("short block dropped", "quantise", "blocks = np.zeros",
          "x = x[: len(x) // block * block]\n    blocks = np.zeros",
          ["quantise-short-block"]),
    Wrong("divided by zero", "quantise", "np.where(scales == 0, 1, scales)", "scales", ["quantise-zeros"]),
    Wrong("halves exchanged", "pack", "(high << 4) | low", "(low << 4) | high", ["pack-bytes", "measure-base"]),
    Wrong("count ignored", "unpack", "[:count]", "", ["unpack-codes"]),
    Wrong("scales in turn", "dequantise", "np.repeat(scales, block)[: len(codes)]", "np.resize(scales, len(codes))",
          ["dequantise-values", "measure-base"]),
    Wrong("the whole gap", "error-bound", " / 2", "", ["error-bound-values"]),
    Wrong("the last gap", "error-bound", "np.diff(levels).max()", "(levels[-1] - levels[-2])", ["error-bound-values"]),
    Wrong("short block has no scale", "bits-per-number", "-(-count // block)", "count // block",
          ["bits-per-number-values"]),
]  # fmt: skip

SETS = {"ps3": RANK, "ps4": BUDGET}
CASES = [(name, wrong) for name, wrongs in SETS.items() for wrong in wrongs]


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """{problem set: {student: Row}}. One thread a kernel for linear algebra: two of them wait for one another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        yield {name: grade(name, wrongs, tmp_path_factory.mktemp(name)) for name, wrongs in SETS.items()}


def grade(name, wrongs, folder):
    """All students of a problem set."""
    students = {"solved": grading.solved(name), "untouched": grading.released(name)}
    return grading.grade(name, {**students, **grading.wrong_students(name, wrongs)}, folder, timeout=60)


@pytest.mark.parametrize("name", SETS)
def test_form(name):
    grading.check_form(name)


@pytest.mark.parametrize("name", SETS)
def test_the_solution_has_full_marks(graded, name):
    row = graded[name]["solved"]
    assert set(row.cells) >= set(grading.maxima(name, by_hand=False)), row.note
    assert grading.lost(row) == {}


@pytest.mark.parametrize("name", SETS)
def test_the_released_version_has_no_points(graded, name):
    row = graded[name]["untouched"]
    assert grading.lost(row) == grading.maxima(name, by_hand=False), row.note


@pytest.mark.parametrize(("name", "wrong"), CASES, ids=[f"{name}: {wrong.name}" for name, wrong in CASES])
def test_a_wrong_answer_loses_its_points(graded, name, wrong):
    grading.check_wrong(graded[name], name, SETS[name], wrong)
