"""Homework: hand out the students' version, grade what comes back, make a table. nbgrader does both.

The course, `notebooks/homework`, is only read: everything is written to an output folder, which is a complete nbgrader
course of its own (nbgrader formgrader opens it):

    source/ release/ submitted/ autograded/ gradebook.db nbgrader_config.py grades.csv

    submissions    where they may lie; a submission is put back on the released notebook before it is graded
    course         problem sets, and the folders laid out as nbgrader wants them
    grading        one submission after the other, each in a process and a folder of its own
    containment    how that process is started, watched and, where asked for, isolated
    worker         what runs in it
    rubrics        the model answers and rubrics that the one who grades by hand sees
    table          grades as text and as CSV
    checks         what the tests in the notebooks are written with
"""

from .course import release
from .grading import grade
from .table import Cell, Row, save_table, table

__all__ = ["Cell", "Row", "grade", "release", "save_table", "table"]
