"""What an ablation varies: axes on the command line, and the cells that they make.

An axis is a key of the recipe with values, `finetune.temperature=0.02,0.1`; a value is TOML or else a word, as after
`--set`, and a comma inside braces, brackets or quotes does not end it. A key alone takes the values of `AXES`.

Invariant: a cell is the recipe with overrides and nothing else, and its name is a function of its settings; so the same
command finds its cells again, and two cells are never the same experiment.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError

if TYPE_CHECKING:
    from launch.recipe import Recipe

BASE = "base"
MOST_CELLS = 200
_LONGEST = 48
_NO_RESULT = ("about", "checkpoint", "export", "fanout", "launch", "name", "slurm")
_OPEN, _CLOSE = "{[", "}]"


@dataclass(frozen=True)
class KnownAxis:
    """An axis that needs no values. `about`: what it answers. `values`: for a recipe, each as a TOML value."""

    about: str
    values: Callable[[Recipe], list[Any]]


def _blends(recipe: Recipe) -> list[Any]:
    """Each source of pairs left out, and each alone."""
    on = {n: share for n, share in recipe.finetune.blend.items() if getattr(recipe, n.partition(":")[0]) is not None}
    without = [{n: share for n, share in on.items() if n != left} for left in on if len(on) > 1]
    alone = [{name: 1.0} for name in on if len(on) > 2]
    return [*without, *alone]


def _layers(recipe: Recipe) -> list[Any]:
    """Half and twice as many layers as the recipe keeps, as far as the base is known to have them."""
    kept = recipe.truncate.layers
    count = kept if isinstance(kept, int) else len(kept)
    most = recipe.base.random.layers if recipe.base.random else 2 * count
    return sorted({max(1, count // 2), count, min(most, 2 * count)})


def _prefixes(recipe: Recipe) -> list[Any]:
    """Without shorter vectors, and with a half and a quarter of the width (of 512 where it is not known yet)."""
    width = recipe.encoder.projection or (recipe.base.random.hidden if recipe.base.random else 512)
    return [[], [width // 2, width // 4]]


def _policies(recipe: Recipe) -> list[Any]:
    from typing import get_args

    from data_prep.mine.policy import Preset

    return [{"preset": name} for name in get_args(Preset)] if recipe.mine else []


def _losses(_: Recipe) -> list[Any]:
    from train.objectives import OBJECTIVES

    return list(OBJECTIVES)


AXES: dict[str, KnownAxis] = {
    "finetune.blend": KnownAxis("with and without synthetic pairs: each source of pairs left out", _blends),
    "truncate.layers": KnownAxis("layers kept of the base: half, as in the recipe, twice", _layers),
    "finetune.loss": KnownAxis("the contrastive loss", _losses),
    "finetune.hard_negatives": KnownAxis("stored negatives of a query in a step; 0: those of the batch alone",
                                         lambda _: [0, 1, 3]),
    "mine.policy": KnownAxis("what is mined as positive and negative: the presets as they come", _policies),
    "finetune.temperature": KnownAxis("sharpness of the loss; the paper took 0.02", lambda _: [0.02, 0.05, 0.1]),
    "encoder.bidirectional": KnownAxis("whether a token sees the text after it", lambda _: [False, True]),
    "finetune.matryoshka": KnownAxis("whether shorter prefixes of the vector are trained too", _prefixes),
    "encoder.pooling": KnownAxis("how token states become one vector", lambda _: ["mean", "last", "weighted_mean"]),
}  # fmt: skip
"""Axes that may be named without values: the open questions of the field."""


@dataclass(frozen=True)
class Axis:
    """A key with its values, each as it would stand after `--set KEY=`. `given`: whether the user wrote them."""

    key: str
    values: tuple[str, ...]
    given: bool = True


@dataclass(frozen=True)
class Cell:
    """One experiment of an ablation.

    Attributes:
        name: of its run folder. settings: what differs from the recipe, by key. overrides: the same as for `--set`,
            after the command's own. recipe: with all of them.
    """

    name: str
    settings: dict[str, Any]
    overrides: tuple[str, ...]
    recipe: Recipe = field(compare=False)


def parse_axes(texts: Sequence[str], recipe: Recipe) -> list[Axis]:
    """The axes of `--axis` options.

    Args:
        texts: `KEY=V1,V2,…`, or `KEY,KEY,…` with the built-in values.
        recipe: without any axis; tells which tables are on.

    Raises:
        UserError: no such key (with the nearest), a key twice, one that changes no result, one without values.
    """
    found: list[Axis] = []
    for text in texts:
        keys, equals, values = text.partition("=")
        if equals and "," in keys:
            raise UserError(
                f"--axis {text!r}", "has values for more than one key", "give each its own --axis KEY=V1,V2"
            )  # fmt: skip
        for key in [k.strip() for k in keys.split(",")]:
            _check_key(key, recipe)
            given = tuple(_split(values, text)) if equals else tuple(map(_toml, _built_in(key, recipe)))
            if not given:
                raise UserError(f"--axis {text!r}", "has no value", f"for example: --axis {key}=V1,V2")
            found.append(Axis(key, given, bool(equals)))
    keys_ = [axis.key for axis in found]
    if twice := next((key for key in keys_ if keys_.count(key) > 1), None):
        raise UserError(f"--axis {twice}", "stands twice", f"put all its values in one: --axis {twice}=V1,V2")
    if not found:
        raise UserError("rumpun ablate", "has no axis", f"add --axis KEY=V1,V2, or one of: {', '.join(AXES)}")
    return found


def _check_key(key: str, recipe: Recipe) -> None:
    from launch.recipe import Recipe, fields_of

    leaves = [name for name, _ in fields_of(Recipe)]
    parts = [name.split(".") for name in leaves]
    known = dict.fromkeys([*leaves, *(".".join(p[:n]) for p in parts for n in range(1, len(p)))])
    # inside a table that a recipe fills freely (finetune.blend) every word is a key; the recipe's own check says more
    inside = key.rpartition(".")[0] in leaves
    if key not in known and not inside:
        ends = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
        near = ends or difflib.get_close_matches(key, list(known), 1, cutoff=0.5)
        fix = f"did you mean {near[0]!r}?" if near else "`rumpun recipe show RECIPE` lists all keys"
        raise UserError(f"--axis {key}", "unknown key", fix)
    table = key.partition(".")[0]
    if table == "seed":
        raise UserError("--axis seed", "is no axis", "repeat every cell with other seeds: --seeds N")
    if table == "eval":
        raise UserError(
            f"--axis {key}", "changes what is measured, and cells are compared on the same queries",
            "use --set for all cells",
        )  # fmt: skip
    if table in _NO_RESULT:
        raise UserError(f"--axis {key}", "changes no result", "use --set for all cells")
    at: Any = recipe
    for depth, part in enumerate(key.split(".")[:-1], start=1):
        at = getattr(at, part, None)
        if at is None:
            off = ".".join(key.split(".")[:depth])
            raise UserError(
                f"--axis {key}", f"this recipe has [{off}] switched off", f"switch it on: --set {off}={{…}}"
            )
        if isinstance(at, dict):
            break


def _built_in(key: str, recipe: Recipe) -> list[Any]:
    if key not in AXES:
        raise UserError(
            f"--axis {key}", "needs values", f"--axis {key}=V1,V2; known without values: {', '.join(AXES)}"
        )  # fmt: skip
    values = AXES[key].values(recipe)
    if not values:
        what = "has [mine] switched off" if key == "mine.policy" else "leaves nothing to vary"
        raise UserError(f"--axis {key}", f"this recipe {what}", f"give values: --axis {key}=V1,V2")
    return values


def _split(text: str, whole: str) -> list[str]:
    """The values between commas that stand in no braces, brackets or quotes."""
    found, depth, quote, start = [], 0, "", 0
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote and not (quote == '"' and _escaped(text, at)) else quote
        elif letter in "\"'":
            quote = letter
        elif letter in _OPEN:
            depth += 1
        elif letter in _CLOSE:
            depth -= 1
        elif letter == "," and depth == 0:
            found.append(text[start:at].strip())
            start = at + 1
        if depth < 0:
            break
    if quote or depth:
        raise UserError(
            f"--axis {whole!r}", "has a brace, bracket or quote without its other half",
            "put the option in single quotes: --axis 'finetune.blend={synth = 1.0},{mine = 1.0}'",
        )  # fmt: skip
    found.append(text[start:].strip())
    if "" in found:
        raise UserError(f"--axis {whole!r}", "has an empty value", "for example: --axis finetune.temperature=0.02,0.1")
    return found


def _escaped(text: str, at: int) -> bool:
    before = text[:at]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def _toml(value: Any) -> str:
    """A value as it would be typed: words bare, tables in braces."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_quoted(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else _toml(value)


def value_of(text: str) -> Any:
    """What a value means: TOML, or else the word."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def cells_of(
    recipe: Recipe, axes: Sequence[Axis], load: Callable[[Sequence[str]], Recipe], *, grid: bool
) -> tuple[list[Cell], list[str]]:
    """The cells, the recipe itself first, and a line for each built-in value that this recipe cannot have.

    Args:
        recipe: the base. load: the recipe with further overrides.
        grid: every combination; else one change at a time.

    Raises:
        UserError: a value that the recipe refuses; more cells than `MOST_CELLS`.
    """
    combinations: Iterable[tuple[tuple[Axis, str], ...]]
    if grid:
        combinations = itertools.product(*([(axis, value) for value in axis.values] for axis in axes))
        count = 1
        for axis in axes:
            count *= len(axis.values)
    else:
        combinations = (((axis, value),) for axis in axes for value in axis.values)
        count = sum(len(axis.values) for axis in axes)
    if count > MOST_CELLS:
        raise UserError(
            f"{count} cells", f"must be at most {MOST_CELLS}", "give fewer values, or change one thing at a time"
        )
    found, notes = [Cell(BASE, {}, (), recipe)], []
    seen = [recipe.model_dump()]
    for chosen in combinations:
        texts = {axis.key: text for axis, text in chosen}
        overrides = tuple(f"{key}={text}" for key, text in texts.items())
        try:
            loaded = load(overrides)
        except UserError as error:
            if any(axis.given for axis, _ in chosen):
                raise
            notes.append(f"left out: {', '.join(overrides)} ({error.rule})")
            continue
        dumped = loaded.model_dump()
        if dumped in seen:  # the recipe's own value, or one that was written twice
            continue
        seen.append(dumped)
        settings = {key: value_of(text) for key, text in texts.items() if _value(loaded, key) != _value(recipe, key)}
        found.append(Cell(cell_name(settings), settings, overrides, loaded))
    return found, notes


def _value(recipe: Recipe, key: str) -> Any:
    at: Any = recipe.model_dump(mode="json")
    for part in key.split("."):
        at = at.get(part) if isinstance(at, dict) else None
    return at


def base_values(recipe: Recipe, axes: Sequence[Axis]) -> dict[str, Any]:
    """What the recipe itself has on each axis."""
    return {axis.key: _value(recipe, axis.key) for axis in axes}


def cell_name(settings: dict[str, Any]) -> str:
    """The name of a cell: its settings in letters that a folder may have; where letters were lost, with a digest.

    For example `finetune.temperature-0.02_encoder.pooling-last`.
    """
    exact = "_".join(f"{key}-{value if isinstance(value, str) else _toml(value)}" for key, value in settings.items())
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", exact).strip("-._")
    if plain == exact and len(plain) <= _LONGEST:
        return plain
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]
    return f"{plain[: _LONGEST - 7].rstrip('-._')}-{digest}"


def shown(settings: dict[str, Any]) -> str:
    """The settings of a cell for people, `base` where there are none."""
    words = [f"{key} = {value if isinstance(value, str) else _toml(value)}" for key, value in settings.items()]
    return ", ".join(words) or BASE
