"""The course: its problem sets, and the folder that nbgrader releases and grades them in."""

import os
import re
import shutil
import sysconfig
from pathlib import Path
from typing import Any

from .submissions import NOT_IN_A_NAME

COURSE = Path("notebooks/homework")
CONFIG = "nbgrader_config.py"


def find_course(folder: str | Path | None = None) -> Path:
    """The course folder: the given one, or notebooks/homework here, in the checkout that this
    package runs from, or as the wheel brought it along.

    Raises FileNotFoundError when there is no source/ with problem sets in it.
    """
    package = Path(__file__).parents[1]
    places = [Path(folder)] if folder else [COURSE, package.parent / COURSE, package / "course" / "homework"]
    for place in places:
        if any(place.glob("source/*/*.ipynb")):
            return place
    looked = f"{str(folder)!r}" if folder else f"no {COURSE} here"
    raise FileNotFoundError(
        f"{looked}: expected a course folder with source/ps1/NAME.ipynb in it; --course takes notebooks/homework "
        "of a checkout of minilora"
    )


def problem_sets(course: Path) -> dict[str, str]:
    """{problem set: the name of its notebook}, such as {"ps1": "gradients"}. Raises ValueError for two in one set."""
    found: dict[str, str] = {}
    for path in sorted(course.glob("source/*/*.ipynb")):
        if path.parent.name in found:
            raise ValueError(f"{path.parent} has two notebooks, expected one a problem set")
        found[path.parent.name] = path.stem
    return found


def release(output: str | Path, course: str | Path | None = None) -> list[Path]:
    """Write the students' version of every problem set, and the capstone's pages: -> the files to hand out.

    Raises ImportError without nbgrader, FileNotFoundError without a course, ValueError when nbgrader refuses.
    """
    output, course = Path(output), find_course(course)
    sets = problem_sets(course)
    open_course(output, course, sets)
    pages = [output / "release" / page.relative_to(course) for page in sorted(course.glob("capstone/*"))]
    for page in pages:
        page.parent.mkdir(exist_ok=True)
        shutil.copyfile(course / page.relative_to(output / "release"), page)
    return [*(output / "release" / name / f"{notebook}.ipynb" for name, notebook in sets.items()), *pages]


def open_course(output: Path, course: Path, sets: dict[str, str], timeout: int | None = None) -> Any:
    """nbgrader's own interface to `output`, in which these problem sets of the course have been released."""
    if output.resolve().is_relative_to(course.resolve()):
        raise ValueError(f"{output} is in the course folder, which stays as it is; --output takes a folder elsewhere")
    if bad := sorted(NOT_IN_A_NAME & set(str(output.resolve()))):
        raise ValueError(f"{output.resolve()}: nbgrader takes no path with {' '.join(bad)} in it; --output elsewhere")
    require_nbgrader()
    output.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(course / CONFIG, output / CONFIG)
    api = course_api(output, timeout)
    for name, notebook in sets.items():
        release_one(api, output, course, f"{name}/{notebook}.ipynb")
    return api


def require_nbgrader() -> None:
    """Raises ImportError, with what to install, where nbgrader is not."""
    try:
        import nbgrader.apps  # noqa: F401
    except ImportError:
        raise ImportError('homework is graded by nbgrader: pip install "minilora[homework]"') from None


def course_api(folder: Path, timeout: int | None = None) -> Any:
    """nbgrader's own interface to a folder that holds a course and its settings. timeout: seconds a cell."""
    from nbgrader.apps import NbGraderAPI
    from traitlets.config.loader import PyFileConfigLoader

    config = PyFileConfigLoader(CONFIG, path=str(folder)).load_config()
    config.CourseDirectory.root = str(folder.resolve())
    config.NbGraderAPI.log_level = "ERROR"
    if timeout is not None:
        config.Execute.timeout = timeout
    find_programs()
    return NbGraderAPI(config=config)


def find_programs() -> None:
    """Let nbgrader find alembic, which it runs by name, beside this Python: its environment need not be active."""
    here, path = sysconfig.get_path("scripts"), os.environ.get("PATH", "")
    if here not in path.split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([here, path])


def release_one(api: Any, output: Path, course: Path, path: str) -> None:
    """Release a problem set unless it is there already; changed since, it is released anew, to be graded anew."""
    ours, theirs, name = course / "source" / path, output / "source" / path, Path(path).parent.name
    same = theirs.exists() and theirs.read_bytes() == ours.read_bytes()
    if same and (output / "release" / path).exists():
        return
    for stale in [output / "release" / name, *output.glob(f"autograded/*/{name}")]:
        shutil.rmtree(stale, ignore_errors=True)
    shutil.rmtree(theirs.parent, ignore_errors=True)
    shutil.copytree(ours.parent, theirs.parent, ignore=shutil.ignore_patterns(".*"))
    result = api.generate_assignment(name)
    if not result["success"]:
        raise ValueError(f"nbgrader cannot release {name}: {cause(result)}; a new --output starts a new gradebook")


def cause(result: dict) -> str:
    """The last error in what nbgrader has to say. Raises KeyboardInterrupt when that was it: nbgrader catches it."""
    said = result.get("log", "") + result.get("error", "")
    if re.search(r"^KeyboardInterrupt", said, re.M):
        raise KeyboardInterrupt
    errors = re.findall(r"^ *(?:\w+\.)*(\w*Error\b.*)", said, re.M)
    return errors[-1] if errors else said.strip().rpartition("\n")[2]
