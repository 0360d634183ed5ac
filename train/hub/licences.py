"""Licences of bases: what each asks of somebody who publishes a model made from it.

The table holds what its licences say about passing a changed model on, each with the place to read it. It is a
reminder, not legal advice: a base that is not in it, or that restricts, needs the user's word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_prep.errors import UserError

Terms = Literal["free", "conditions", "forbidden"]


@dataclass(frozen=True)
class Licence:
    """A licence by the Hub's identifier.

    Attributes:
        terms: `free` asks for its text and credit at most; `conditions` restricts use or names; `forbidden` lets nobody
            pass a changed model on.
        demands: what it asks, in one sentence. notice: the text that must go with the model. prefix: how the model's
            name must begin. built_with: what the card must say visibly.
    """

    name: str
    title: str
    terms: Terms
    source: str
    demands: str = ""
    notice: str = ""
    prefix: str = ""
    built_with: str = ""


def _llama(name: str, title: str, notice: str, source: str, *, built_with: str = "", prefix: str = "") -> Licence:
    demands = "pass its text and the notice on, keep to its acceptable use policy, no licence above 700 M monthly users"
    if prefix:
        demands += f", begin the model's name with {prefix!r}, show {built_with!r}"
    return Licence(name, title, "conditions", source, demands, notice, prefix, built_with)


_CC = "https://creativecommons.org/licenses/"
LICENCES = {
    licence.name: licence
    for licence in (
        Licence("apache-2.0", "Apache License 2.0", "free", "https://www.apache.org/licenses/LICENSE-2.0"),
        Licence("mit", "MIT License", "free", "https://opensource.org/license/mit"),
        Licence("bsd-3-clause", "BSD 3-Clause", "free", "https://opensource.org/license/bsd-3-clause"),
        Licence("cc-by-4.0", "CC BY 4.0", "free", _CC + "by/4.0/", "name the author and the changes"),
        Licence("cc0-1.0", "CC0 1.0", "free", "https://creativecommons.org/publicdomain/zero/1.0/"),
        Licence("cc-by-sa-4.0", "CC BY-SA 4.0", "conditions", _CC + "by-sa/4.0/", "the same licence only"),
        Licence("cc-by-nc-4.0", "CC BY-NC 4.0", "conditions", _CC + "by-nc/4.0/", "no commercial use"),
        Licence(
            "cc-by-nc-sa-4.0", "CC BY-NC-SA 4.0", "conditions", _CC + "by-nc-sa/4.0/",
            "no commercial use, and the same licence only",
        ),
        Licence("cc-by-nd-4.0", "CC BY-ND 4.0", "forbidden", _CC + "by-nd/4.0/", "no changed versions"),
        Licence("cc-by-nc-nd-4.0", "CC BY-NC-ND 4.0", "forbidden", _CC + "by-nc-nd/4.0/", "no changed versions"),
        _llama(
            "llama2", "Llama 2 Community License",
            "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. "
            "All Rights Reserved.",
            "https://ai.meta.com/llama/license/",
        ),
        _llama(
            "llama3", "Meta Llama 3 Community License",
            "Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © Meta Platforms, Inc. "
            "All Rights Reserved.",
            "https://www.llama.com/llama3/license/", built_with="Built with Meta Llama 3", prefix="Llama 3",
        ),
        *(
            _llama(
                f"llama{number}", f"Llama {number} Community License",
                f"Llama {number} is licensed under the Llama {number} Community License, Copyright © Meta Platforms, "
                "Inc. All Rights Reserved.",
                f"https://www.llama.com/llama{number.replace('.', '_')}/license/", built_with="Built with Llama",
                prefix="Llama",
            )
            for number in ("3.1", "3.2", "3.3")
        ),
        Licence(
            "gemma", "Gemma Terms of Use", "conditions", "https://ai.google.dev/gemma/terms",
            "pass its use restrictions and the notice on, mark changed files",
            "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
        ),
        Licence(
            "qwen-research", "Qwen Research License", "conditions",
            "https://huggingface.co/Qwen/Qwen2.5-3B/blob/main/LICENSE",
            "no commercial use, pass its text and the notice on",
            "Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. "
            "All Rights Reserved.",
            built_with="Built with Qwen",
        ),
        Licence(
            "mrl", "Mistral AI Research License", "conditions", "https://mistral.ai/licenses/MRL-0.1.md",
            "research only, pass its text on",
        ),
    )
}  # fmt: skip
"""Licences that are known here. Whatever else a base carries needs the user's word."""

_BY_NAME = (
    (r"meta-llama/Llama-2-", "llama2"),
    (r"meta-llama/Meta-Llama-3-", "llama3"),
    (r"meta-llama/(Meta-)?Llama-(3\.[123])-", r"llama\2"),
    (r"mistralai/(Mistral-7B|Mixtral-8x7B|Mixtral-8x22B|Mistral-Nemo)", "apache-2.0"),
    (r"Qwen/Qwen2\.5-3B", "qwen-research"),
    (r"Qwen/Qwen2\.5-(0\.5B|1\.5B|7B|14B|32B)", "apache-2.0"),
    (r"Qwen/Qwen3-", "apache-2.0"),
    (r"google/gemma-", "gemma"),
)
"""Licences of families, for a base whose card is not at hand."""

_TEXTS = (
    (r"LLAMA 2 COMMUNITY LICENSE", "llama2"),
    (r"META LLAMA 3 COMMUNITY LICENSE", "llama3"),
    (r"LLAMA (3\.[123]) COMMUNITY LICENSE", r"llama\1"),
    (r"Gemma Terms of Use", "gemma"),
    (r"Qwen RESEARCH LICENSE", "qwen-research"),
    (r"Apache License\s+Version 2\.0", "apache-2.0"),
    (r"MIT License", "mit"),
)


@dataclass(frozen=True)
class BaseLicence:
    """The base of a model and its licence.

    Attributes:
        base: its name or folder's name; None where the base was made from a seed (`made`) or nobody knows.
        name: the licence as found, lower case; None where none is stated.
        found_in: where it stands.
        texts: licence files beside the base, which go up with the model.
    """

    base: str | None
    made: bool
    name: str | None
    found_in: str
    texts: Sequence[Path] = ()

    @property
    def licence(self) -> Licence | None:
        """The entry of the table, if it has one."""
        return LICENCES.get(self.name or "")


def base_licence(run: Path | None) -> BaseLicence:
    """What the run says about its base: the named folder or Hub id, and what is on this machine about its licence."""
    if run is None:
        return BaseLicence(None, False, None, "no run folder says what the base was")
    named = _object(run / "base" / "base.json")
    if not named:
        made = (run / "base" / "config.json").is_file()
        return BaseLicence(None, made, None, "the run made its base from a seed" if made else "the run names no base")
    model, revision = str(named.get("model")), named.get("revision")
    folder = Path(model).expanduser()
    if not folder.is_dir():
        cached = _cached(model, revision if isinstance(revision, str) else None)
        if cached is None:
            return _by_name(model, model)
        found = in_folder(cached)
        return BaseLicence(model, False, found[0], found[1], found[2]) if found[0] else _by_name(model, model)
    name, place, texts = in_folder(folder)
    if name is None:
        origin = str(_object(folder / "config.json").get("_name_or_path", ""))
        guess = _by_name(folder.name, origin)
        return BaseLicence(folder.name, False, guess.name, guess.found_in, texts)
    return BaseLicence(folder.name, False, name, place, texts)


def in_folder(folder: Path) -> tuple[str | None, str, list[Path]]:
    """(licence, where it stands, licence files) of a model folder: its card, its config, the heading of its licence."""
    texts = [p for p in sorted(folder.iterdir()) if re.match(r"(LICEN[CS]E|NOTICE|USE_POLICY)", p.name) and p.is_file()]
    card = folder / "README.md"
    if card.is_file():
        head = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        stated = dict(
            re.findall(r"^(license|license_name):[ \t]*['\"]?([\w.+-]+)", head[1] if head else "", re.MULTILINE)
        )
        name = stated.get("license_name") if stated.get("license") == "other" else stated.get("license")
        if name:
            return name.lower(), f"{card.name} of the base", texts
    stated_in = _object(folder / "config.json").get("license")
    if isinstance(stated_in, str) and stated_in:
        return stated_in.lower(), "config.json of the base", texts
    for path in texts:
        heading = path.read_text(encoding="utf-8", errors="replace")[:400]
        for pattern, name in _TEXTS:
            if match := re.search(pattern, heading, re.IGNORECASE):
                return match.expand(name), f"{path.name} of the base", texts
    return None, "", texts


def _by_name(base: str, name: str) -> BaseLicence:
    for pattern, licence in _BY_NAME:
        if match := re.match(pattern, name):
            return BaseLicence(base, False, match.expand(licence), "the base's name (its card is not on this machine)")
    return BaseLicence(base, False, None, "the base states none")


def _cached(model: str, revision: str | None) -> Path | None:
    """The folder of a base in the hub's cache, if it is there. Asks no network."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("README.md", "config.json"):
        try:
            found = try_to_load_from_cache(model, name, revision=revision)
        except ValueError:
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class Verdict:
    """Under which licence the model goes out.

    Attributes:
        name: for the card; None where nobody has said. line: the verdict for people. needs: the flag that is missing.
        warnings: lines that do not stop anything.
    """

    name: str | None
    line: str
    needs: str | None
    warnings: list[str]


def judge(base: BaseLicence, *, repo: str, own: str | None, accepted: str | None) -> Verdict:
    """Weigh the base's licence against what the user has said.

    Args:
        own: the licence of the new model (`--licence`). accepted: the base's, named by the user (`--accept-licence`).

    Raises:
        UserError: a name is no identifier, or `accepted` is not what the base carries.
    """
    for option, given in (("--licence", own), ("--accept-licence", accepted)):
        if given is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,63}", given):
            raise UserError(
                f"{option} {given!r}", "is no licence identifier", "write it as the hub does: apache-2.0, llama2"
            )
    if accepted and base.name and accepted != base.name:
        raise UserError(
            f"--accept-licence {accepted}", f"the base's licence is {base.name} ({base.found_in})", f"name {base.name}"
        )
    if base.made:
        line = f"base: {base.found_in}; no licence comes with it"
        warnings = (
            []
            if own
            else ["no licence is stated for the model: give --licence ID, or nobody knows what they may do with it"]
        )
        return Verdict(own, line, None, warnings)
    name = base.name or accepted
    licence = LICENCES.get(name or "")
    subject = f"base {base.base}" if base.base else "base not recorded"
    if licence is None:
        line = f"{subject}: licence {f'{name} is not known here' if name else 'not found'} ({base.found_in})"
        flag = None if accepted else f"--accept-licence {base.name or 'NAME'}: read the base's licence first"
        return Verdict(own or name, line, flag, [])
    line = f"{subject}: {licence.title} ({base.found_in}), {licence.source}"
    if licence.terms == "free":
        return Verdict(own or licence.name, line, None, [])
    word = "does not let changed versions be passed on" if licence.terms == "forbidden" else "sets conditions"
    warnings = [f"the base's licence {word}: {licence.demands}"]
    if licence.prefix and not repo.split("/")[-1].replace("-", " ").startswith(licence.prefix):
        warnings.append(f"the base's licence wants a name that begins with {licence.prefix!r}")
    if licence.notice and not base.texts:
        warnings.append("the base's licence wants its text beside the model: put LICENSE.txt into the model folder")
    flag = None if accepted else f"--accept-licence {licence.name}: {licence.demands}"
    return Verdict(licence.name, line, flag, warnings)
