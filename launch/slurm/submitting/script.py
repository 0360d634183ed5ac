"""A job script from its template: three blocks are replaced, everything else stays as an admin wrote it.

Invariant: the text depends on the arguments alone, and no value in it is ever read as shell: values are quoted for the
reader that meets them (sbatch for directives, bash for the rest), and what would end a line is refused. A template
marks its blocks with lines that begin with `# >>> NAME` and `# <<< NAME`.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import UserError

BLOCKS = ("directives", "environment", "arguments")
TEMPLATES = Path(__file__).resolve().parents[3] / "slurm"
_WIDTH = 116
_PLAIN = re.compile(r"[A-Za-z0-9_./:,=@%+^~-]+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Directive:
    """One line that sbatch reads.

    Attributes:
        option: long name, without dashes. value: None for a switch.
        why: what it is for, and the fact behind it; printed as a comment above it.
    """

    option: str
    value: str | None
    why: str

    @property
    def line(self) -> str:
        """As it stands in a script."""
        value = "" if self.value is None else f"={quote_for_sbatch(self.value, what=f'--{self.option}')}"
        return f"#SBATCH --{self.option}{value}"


def one_line(value: str, *, what: str) -> str:
    """The value itself.

    Raises:
        UserError: it holds a line break or another control character, or bytes that are no text: in a script it would
            end the line that it stands in.
    """
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{what} {value!r}", "is not valid UTF-8", "rename it") from error
    if _CONTROL.search(value):
        raise UserError(
            f"{what} {value!r}", "holds a line break or another control character", "rename it, or leave that out"
        )
    return value


def quote_for_sbatch(value: str, *, what: str) -> str:
    r"""A value as sbatch's own reader takes it: in double quotes, where a backslash keeps the next character.

    Shell quoting does not serve: that reader takes a backslash for an escape inside single quotes too.
    """
    if _PLAIN.fullmatch(one_line(value, what=what)):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def export(name: str, value: str) -> str:
    """The line of shell that sets an environment variable, its value taken as it is."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"environment variable {name!r}", "must be letters, digits and '_', not starting with a digit", "rename it"
        )
    return f"export {name}={shlex.quote(one_line(value, what=f'environment variable {name} ='))}"


def quote_but_names(value: str) -> str:
    """A value in which bash replaces `$NAME` and `${NAME}` and nothing else: for folders such as /local/$USER."""
    kept = re.split(r"(\$[A-Za-z_][A-Za-z0-9_]*|\$\{[A-Za-z_][A-Za-z0-9_]*\})", one_line(value, what="path"))
    return '"' + "".join(part if n % 2 else re.sub(r'([\\"$`])', r"\\\1", part) for n, part in enumerate(kept)) + '"'


def comment(text: str) -> list[str]:
    """A text of any length as lines of comment, whatever it holds."""
    plain = " ".join(_CONTROL.sub(" ", text).split())
    return [f"# {line}" for line in textwrap.wrap(plain, _WIDTH, break_on_hyphens=False)]


def _set_arguments(arguments: Sequence[str]) -> list[str]:
    """`set -- …`, an option and its value on one line."""
    lines: list[str] = []
    after_option = False
    for argument in arguments:
        quoted = shlex.quote(one_line(argument, what="argument"))
        if after_option:
            lines[-1] += f" {quoted}"
            after_option = False
        else:
            lines.append(quoted)
            after_option = argument.startswith("--")
    return [" \\\n    ".join(["set --", *lines])]


def _replaced(text: str, block: str, lines: Iterable[str], *, template: Path) -> str:
    """The template's text with the lines of one block replaced; the marks stay."""
    pattern = re.compile(rf"^(# >>> {block}\b[^\n]*\n).*?^(# <<< {block}\b)", re.DOTALL | re.MULTILINE)
    if len(pattern.findall(text)) != 1:
        raise UserError(
            f"template {template}", f"must hold the block {block!r} once, from '# >>> {block}' to '# <<< {block}'",
            "restore it with git",
        )  # fmt: skip
    body = "".join(f"{line}\n" for line in lines)
    return pattern.sub(lambda found: found[1] + body + found[2], text)


def render(
    template: Path, *, directives: Sequence[Directive], setup: Sequence[str], arguments: Sequence[str], program: str
) -> str:
    """The text of a job script.

    Args:
        template: an .sbatch file with the three blocks.
        directives: what the job asks for, in this order.
        setup: lines of shell for the environment: comments, and commands whose values are quoted already (`export`).
        arguments: what the program gets after `job NAME`, unquoted.
        program: absolute path of the `rumpun` of this environment.

    Raises:
        UserError: no such template, a block is missing in it, or a value holds a line break.
    """
    try:
        text = template.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"template {template}", f"cannot be read ({error.strerror})", "run rumpun from a checkout that has slurm/"
        ) from error
    told = [line for directive in directives for line in (*comment(directive.why), directive.line)]
    environment = [*(one_line(line, what="setup line") for line in setup)]
    environment.append(f"RUMPUN={shlex.quote(one_line(program, what='path of rumpun'))}")
    for block, lines in zip(BLOCKS, (told, environment, _set_arguments(arguments)), strict=True):
        text = _replaced(text, block, lines, template=template)
    return text
