"""The one exception that a user sees: it names the value, the rule and the fix.

Anything a user can mistype or a machine can lack raises `UserError`; the command line prints it as one line and exits
with code 2. Every other exception is a defect of rumpun and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake that the user can mend.

    Args:
        value: what was found, with its name and place, e.g. `recipe demo.toml: truncate.layers = 9`.
        rule: what it broke, e.g. `must be at most 8, the number of layers of the base`.
        fix: what to type or change, e.g. `set truncate.layers to 8 or fewer`.
    """

    def __init__(self, value: str, rule: str, fix: str) -> None:
        super().__init__(f"{value}: {rule}. Fix: {fix}")
        self.value = value
        self.rule = rule
        self.fix = fix


@contextmanager
def within(table: str) -> Iterator[None]:
    """Say which table of the recipe a mistake stands in: for code that serves several tables and cannot know.

    A value that is a setting (`dimension = 256`) becomes one of the table (`mine.teacher.dimension = 256`).

    Raises:
        UserError: the one that was raised inside, with the table before its value.
    """
    try:
        yield
    except UserError as error:
        key, equals, _ = error.value.partition(" = ")
        between = "." if equals and key.replace(".", "").isidentifier() else ": "
        raise UserError(f"{table}{between}{error.value}", error.rule, error.fix) from error
