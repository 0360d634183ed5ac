"""Prompts as files that one can edit: Jinja templates, one for each style and target language.

A file is `STYLE.LANGUAGE.txt`, or `STYLE.txt` for every language that has none of its own. What stands above the line
`=== user ===` is the system message, what stands below it is the user's. Templates know:

- `passages`: the texts to ask about (two for multi_hop), `passage`: the first of them
- `count`: how many questions, `title`: title and headings above the text, may be empty
- `language`, `target`: tags of the text's language and the question's; `language_name`, `target_name`: in English
- `mark`: eight hex digits from the texts; around them it makes a border that no text can forge

Invariant: texts are values and never read as templates, so nothing in a document is executed or changes a prompt's
shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.files import content_id, sha256_file
from data_prep.synth.generator import LLM_STYLES, Ask

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment

BUILT_IN = Path(__file__).parent / "prompts"
LANGUAGES = {
    "ms": "Malay",
    "id": "Indonesian",
    "en": "English",
    "zh": "Chinese (simplified)",
    "ta": "Tamil",
    "mixed": "Malay mixed with English, as Malaysians write",
}
_UNKNOWN = "the language of the text"
_BORDER = "=== user ==="
_VARIABLES = ("passages", "passage", "count", "title", "language", "target", "language_name", "target_name", "mark")
_REPAIR = "repair"


class Prompts:
    """The templates of a folder over the built-in ones.

    Args:
        folder: holds any of the files; None takes the built-in ones alone.

    Attributes:
        digest: 32 hex digits that change with any of the files.

    Raises:
        UserError: no such folder, a file whose name fits no style, a template that is not UTF-8, has a mistake in its
            syntax, an unknown variable, or does not use the passages.
    """

    def __init__(self, folder: Path | None = None) -> None:
        from jinja2 import StrictUndefined
        from jinja2.sandbox import SandboxedEnvironment

        self._environment = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False, trim_blocks=True)
        self._folders = [BUILT_IN]
        if folder is not None:
            if not folder.is_dir():
                raise UserError(f'synth.llm.prompts = "{folder}"', "no such folder", f"copy {BUILT_IN} and change it")
            self._folders.insert(0, folder)
        paths = [(place, path) for place in self._folders for path in sorted(place.glob("*.txt"))]
        self.digest = content_id(
            "".join(f"{n}\n{path.name}\n{sha256_file(path)}\n" for n, (_, path) in enumerate(paths))
        )
        self._templates = {(place, path.name): _compiled(self._environment, path) for place, path in paths}

    def messages(self, ask: Ask) -> list[tuple[str, str]]:
        """The system and the user message of an ask. Raises `UserError` where a template cannot be filled with it."""
        from jinja2 import TemplateError

        values = {
            "passages": list(ask.chunks),
            "passage": ask.chunks[0],
            "count": ask.count,
            "title": ask.title,
            "language": ask.language,
            "target": ask.target_language,
            "language_name": LANGUAGES.get(ask.language, _UNKNOWN),
            "target_name": LANGUAGES.get(ask.target_language, _UNKNOWN),
            "mark": content_id("\n".join(ask.chunks))[:8],
        }
        parts = self._find(ask.style, ask.target_language)
        try:
            rendered = [part.render(values).strip() for part in parts]
        except (TemplateError, TypeError, ValueError) as error:
            raise UserError(
                f"the prompt for style {ask.style!r} in {ask.target_language!r}",
                f"cannot be filled for {len(ask.chunks)} texts ({error})",
                "mend the template: passages[1] is there for multi_hop only",
            ) from error
        return [(role, text) for role, text in zip(("system", "user"), rendered, strict=True) if text]

    def repair(self, reason: str, count: int) -> str:
        """What is said to a model whose answer could not be read."""
        return str(self._find(_REPAIR, "")[1].render(reason=reason, count=count)).strip()

    def _find(self, style: str, language: str) -> tuple[Any, Any]:
        for place in self._folders:
            for name in (f"{style}.{language}.txt", f"{style}.txt"):
                if (found := self._templates.get((place, name))) is not None:
                    return found
        raise UserError(
            f"style {style!r} in language {language!r}",
            f"no prompt for it in {' or '.join(map(str, self._folders))}",
            f"write {style}.txt there, or use one of the styles {', '.join(LLM_STYLES)}",
        )


def _compiled(environment: SandboxedEnvironment, path: Path) -> tuple[Any, Any]:
    """The templates of the system and of the user message in a file."""
    from jinja2 import TemplateSyntaxError, meta

    style = path.name.partition(".")[0]
    if style not in (*LLM_STYLES, _REPAIR) or path.name.count(".") > 2:
        names = ", ".join(f"{name}.txt" for name in (*LLM_STYLES, _REPAIR))
        raise UserError(str(path), "fits no style", f"name it {names}, or with a language as in {LLM_STYLES[0]}.ms.txt")
    try:
        text = path.read_text(encoding="utf-8-sig")
        used = meta.find_undeclared_variables(environment.parse(text))
        system, border, user = text.partition(f"{_BORDER}\n")
        parts = environment.from_string(system if border else ""), environment.from_string(user if border else system)
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"is not UTF-8 ({error.reason})", "save it as UTF-8") from error
    except TemplateSyntaxError as error:
        raise UserError(
            f"{path}, line {error.lineno}", f"is no template ({error.message})", "mend that line"
        ) from error
    known = ("reason", "count") if style == _REPAIR else _VARIABLES
    if unknown := sorted(used - set(known)):
        raise UserError(str(path), f"uses {', '.join(unknown)}, which nobody sets", f"use {', '.join(known)}")
    if style != _REPAIR and not used & {"passages", "passage"}:
        raise UserError(str(path), "never shows the text to ask about", "put {{ passage }} into it")
    return parts
