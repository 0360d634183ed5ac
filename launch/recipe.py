"""The recipe: one TOML file is one experiment, typed, strict and explained.

A recipe may begin with `extends = "OTHER"`: it is then laid on that one, table by table.

Each table is the config class that lives beside the code it configures; this file only composes them, reads TOML,
applies `--set` overrides and turns every mistake into one line with the nearest valid key.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from data_prep.blend import stages_of
from data_prep.config import Section
from data_prep.corpus.build import CorpusConfig
from data_prep.demo.generate import GenerateConfig
from data_prep.errors import UserError
from data_prep.mine.config import MineConfig
from data_prep.pairs.files import PairsConfig
from data_prep.synth.config import SynthConfig
from data_prep.tokenizer import TokenizerConfig
from data_prep.tokens import TokensConfig
from eval.retrieval import EvalConfig
from launch.fanout import FanoutConfig
from launch.slurm.config import SlurmConfig
from train.backbone import BaseConfig
from train.encoder import EncoderConfig
from train.export import ExportConfig
from train.finetune_config import FinetuneConfig
from train.guard import GuardConfig
from train.history.checkpoint import CheckpointConfig
from train.pretrain import PretrainConfig
from train.truncate import TruncateConfig, kept_layers

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


class LaunchConfig(Section):
    """[launch]: the processes of a training phase on this machine."""

    nproc: Annotated[int, Field(gt=0)] = 2
    """Processes; one per GPU, or one per core or two on a CPU. Never changes the result."""
    threads_per_process: Annotated[int, Field(gt=0)] = 1
    """OpenMP threads of each process; more than the free cores slows small operations up to sixty-fold."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Rendezvous port on this machine; 0 takes none: the ranks meet through a file."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """Times that a phase whose rank crashed or hung is started again from its last checkpoint; never twice for the
    same failure at the same step."""
    hang_after_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds in which no rank passes any place that make a hang; above the longest step and the longest save."""
    start_within_s: Annotated[float, Field(gt=0)] = 1800.0
    """The same until the first step has ended: loading and compiling from a busy file system takes its time."""
    grace_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds that ranks have to end their step and save when asked to stop; less than a cluster's notice."""
    stop_after_s: Annotated[float, Field(gt=0)] | None = None
    """Save and stop after so many seconds; unset: no limit. For time slots that end without notice."""


class Recipe(Section):
    """One experiment. Tables that may be left out switch their stage off."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Name of the run folder: letters, digits, '.', '_' and '-'."""
    about: str = ""
    """One sentence on what this experiment is for."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of everything that is drawn: data order, initial weights, samples."""
    generate: GenerateConfig | None = None
    corpus: CorpusConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    tokens: TokensConfig = TokensConfig()
    pairs: PairsConfig | None = None
    mine: MineConfig | None = None
    synth: SynthConfig | None = None
    base: BaseConfig
    truncate: TruncateConfig = TruncateConfig()
    encoder: EncoderConfig = EncoderConfig()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    eval: EvalConfig
    export: ExportConfig = ExportConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    launch: LaunchConfig = LaunchConfig()
    fanout: FanoutConfig = FanoutConfig()
    slurm: SlurmConfig = SlurmConfig()

    @model_validator(mode="after")
    def _tables_agree(self) -> Recipe:
        if self.base.random:
            try:
                kept_layers(self.truncate.layers, self.base.random.layers)
            except UserError as error:
                raise ValueError(str(error)) from error
            # known here, so it need not wait until finetuning finds it out
            width = self.encoder.projection or self.base.random.hidden
            if self.finetune.matryoshka and max(self.finetune.matryoshka) > width:
                raise ValueError(
                    f"finetune.matryoshka = {self.finetune.matryoshka}: holds a dimension above the model's {width}. "
                    f"Fix: use dimensions up to {width}"
                )
        on = [name for name in ("pairs", "mine", "synth") if getattr(self, name) is not None]
        if not set(on) & stages_of(self.finetune.blend):
            raise ValueError(
                f"finetune.blend = {sorted(self.finetune.blend)}: none of these is switched on (on: {on or 'none'}). "
                "Fix: add a [mine], [synth] or [pairs] table"
            )
        if (probe := self.truncate.probe) and probe.source and probe.source not in on:
            raise ValueError(
                f"truncate.probe.source = {probe.source!r}: this source is switched off (on: {on or 'none'}). "
                f"Fix: add a [{probe.source}] table, or name one that is on"
            )
        for phase, field in (("pretrain", "batch_rows"), ("finetune", "batch_pairs")):
            batch, nproc = getattr(getattr(self, phase), field), self.launch.nproc
            if batch < nproc:
                raise ValueError(
                    f"{phase}.{field} = {batch}: must be at least 1 for each of the {nproc} processes. "
                    f"Fix: use {nproc} or more, or --nproc {batch}"
                )
        return self


def find_recipe(name: str) -> Path:
    """The file of a recipe given as a path or as the name of one in recipes/."""
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        if path.is_file():
            return path
    elif (RECIPES / f"{name}.toml").is_file():
        return RECIPES / f"{name}.toml"
    known = sorted(p.stem for p in RECIPES.glob("*.toml"))
    near = difflib.get_close_matches(path.stem, known, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(
        f"recipe {name!r}", "no such file or recipe", f"{hint}give a .toml file or one of: {', '.join(known)}"
    )


def _submodel(annotation: Any) -> type[BaseModel] | None:
    """The pydantic class inside an annotation such as `MineConfig | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated):
        for part in typing.get_args(annotation):
            if found := _submodel(part):
                return found
    return None


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, one-line reason) of every leaf field."""
    for name, field in model.model_fields.items():
        inner = _submodel(field.annotation)
        if inner is None:
            yield prefix + name, " ".join((field.description or "").split())
        else:
            yield from fields_of(inner, f"{prefix}{name}.")


def _set(tree: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    key = key.strip()
    if not sign or not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", key):
        raise UserError(
            f"--set {override!r}", "must look like table.key=value", "for example: --set finetune.temperature=0.02"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string: --set base.model=meta-llama/Llama-2-7b-hf
    *tables, leaf = key.split(".")
    for table in tables:
        tree = tree.setdefault(table, {})
        if not isinstance(tree, dict):
            raise UserError(
                f"--set {override!r}", f"{table!r} is not a table", "check the key with `rumpun recipe show`"
            )
    tree[leaf] = value


def _complaint(where: str, error: ValidationError) -> UserError:
    """The first mistake that pydantic found, as value, rule and fix."""
    found = error.errors(include_url=False)
    first, path = found[0], _typed_path(found[0]["loc"])
    dotted = ".".join(path)
    kind, given = first["type"], first.get("input")
    if kind == "extra_forbidden":
        valid = [key for key, _ in fields_of(Recipe)]
        tables = sorted({key.rsplit(".", 1)[0] for key in valid if "." in key})
        near = difflib.get_close_matches(dotted, valid + tables, 1, cutoff=0.5)
        parent = dotted.rsplit(".", 1)[0] + "." if "." in dotted else ""
        siblings = [key.removeprefix(parent) for key in valid if key.startswith(parent)]
        fix = f"did you mean {near[0]!r}?" if near else f"valid here: {', '.join(siblings[:12])}"
        return UserError(f"{where}: {dotted}", "unknown key", fix)
    message = str(first["msg"]).removeprefix("Value error, ")
    if kind == "missing":
        return UserError(f"{where}: {dotted}", "is missing", f"add it (see `rumpun recipe show demo`): {dotted} = …")
    if kind == "value_error":
        head, _, fix = message.partition(". Fix: ")
        value, _, rule = head.partition(": ")
        return UserError(
            f"{where}: {value if rule else dotted}", rule or head, fix or "change it in the recipe or with --set"
        )
    shown = json.dumps(given, default=str) if not isinstance(given, dict) else "a table"
    # a value that may be one of several types fails once for each
    messages = [str(e["msg"]) for e in found if _typed_path(e["loc"]) == path]
    rule = " or ".join(m[0].lower() + m[1:] for m in dict.fromkeys(messages))
    return UserError(f"{where}: {dotted} = {shown}", rule, f"change it in the recipe, or: --set {dotted}=…")


def _typed_path(loc: tuple[str | int, ...]) -> list[str]:
    """The keys that a user typed: dict keys and union members leave markers of pydantic in the path."""
    markers = ("function-", "constrained-", "literal[")
    return [str(part) for part in loc if part != "[key]" and not str(part).startswith(markers)]


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, table by table."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The TOML of a recipe, laid on the recipe that its `extends` names (a file beside it, or one of recipes/)."""
    where = f"recipe {path.name}"
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(where, f"is not valid TOML ({error})", "mend the file at that place") from error
    except OSError as error:
        raise UserError(where, f"cannot be read ({error.strerror})", "check its permissions") from error
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise UserError(f"{where}: extends = {parent!r}", "must be text", 'for example: extends = "malaysian-600m"')
    beside = path.parent / f"{parent.removesuffix('.toml')}.toml"
    other = beside if beside.is_file() else find_recipe(parent)
    if other.resolve() in {p.resolve() for p in (*above, path)}:
        raise UserError(f"{where}: extends = {parent!r}", "goes round in a circle", "remove one of the `extends` lines")
    return _merge(_read(other, (*above, path)), tree)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> tuple[Recipe, Path]:
    """Read, override and check a recipe.

    Args:
        name: a .toml path, or the name of a recipe in recipes/.
        overrides: `table.key=value` strings; the value is TOML, or else text.

    Raises:
        UserError: a mistake anywhere, with its dotted key, the rule and the nearest valid key or value.
    """
    path = find_recipe(name)
    where = f"recipe {path.name}"
    tree = _read(path)
    for override in overrides:
        _set(tree, override)
    try:
        return Recipe(**tree), path
    except ValidationError as error:
        raise _complaint(where, error) from None


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def show(config: BaseModel, table: str = "") -> Iterator[str]:
    """The lines of a resolved recipe as TOML: every value, with its reason as a comment."""
    inner = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            inner.append((name, value))
            continue
        if _submodel(field.annotation) is not None:
            yield f"# [{table}{name}] is off"
            continue
        reason = " ".join((field.description or "").split())
        plain = config.model_dump(mode="json")[name]
        yield f"# {name} is unset  # {reason}" if plain is None else f"{name} = {_toml(plain)}  # {reason}"
    for name, value in inner:
        yield ""
        yield f"[{table}{name}]"
        yield from show(value, f"{table}{name}.")
