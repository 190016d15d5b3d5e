"""nbgrader's settings for this course; `minilora homework` uses them, too."""

import secrets

c = get_config()  # noqa: F821  (nbgrader defines it)

c.CourseDirectory.course_id = "lora"

# A cell may take 30 s. Then it is interrupted, counts as failed, and the next one runs.
c.Execute.timeout = 30
c.Execute.interrupt_on_timeout = True

c.Execute.extra_arguments = ["--log-level=ERROR"]  # a kernel that starts says nothing about it

# A kernel that cannot be interrupted costs its student the cells that are left, not those before.
c.Execute.iopub_timeout = 10
c.Execute.raise_on_iopub_timeout = False

# By default a cell with the tag "skip-execution" is skipped, and a test that did not run has no error: full points.
# So the tag is one that nobody can know.
c.Execute.skip_cells_with_tag = secrets.token_hex(16)

# What a student finds in the place of a solution, if the notebook says nothing else.
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError()"}
c.ClearSolutions.text_stub = "*Your answer here.*"
