"""A recipe bound to a run folder and a data folder: which files and folders its tables mean."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from data_prep.blend import stages_of
from data_prep.config import Section
from data_prep.errors import UserError
from launch.fanout import make_fanout
from launch.stages import SCRATCH

if TYPE_CHECKING:
    from data_prep.fanout import Fanout
    from launch.fanout import FanoutConfig
    from launch.ranks import Starter
    from launch.recipe import LaunchConfig, Recipe

PLACEHOLDER = "{data}"

AnySection = TypeVar("AnySection", bound=Section)


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where a recipe is walked: on this machine as the recipe says, or on what a job was given.

    Attributes:
        launch, fanout: in place of the recipe's tables, where they are set.
        starter: who starts the ranks of a training phase; None: this machine.
        deadline: seconds since the epoch after which training saves and stops, None for no limit.
        job, restart: the scheduler's id of this job, and how often it was started before.
    """

    launch: LaunchConfig | None = None
    fanout: FanoutConfig | None = None
    starter: Starter | None = None
    deadline: float | None = None
    job: str | None = None
    restart: int = 0


ON_THIS_MACHINE = Surroundings()


@dataclass(frozen=True)
class Binding:
    """A recipe bound to a run folder and a data folder.

    Attributes:
        data: what `{data}` stands for, None where neither --data nor [generate] gives one.
        fresh: whether training phases start over beside an unfinished history.
        here: where this happens; nothing of it changes a result.
    """

    recipe: Recipe
    run: Path
    data: Path | None
    fresh: bool = False
    here: Surroundings = ON_THIS_MACHINE

    def _fill(self, value: Any) -> Any:
        """Replace `{data}` in every string of a JSON value."""
        if isinstance(value, str) and PLACEHOLDER in value:
            if self.data is None:
                raise UserError(
                    f"path {value!r}", f"{PLACEHOLDER} stands for a data folder, and none was given", "add --data PATH"
                )
            return value.replace(PLACEHOLDER, str(self.data))
        if isinstance(value, list):
            return [self._fill(v) for v in value]
        if isinstance(value, dict):
            return {k: self._fill(v) for k, v in value.items()}
        return value

    def filled(self, section: AnySection) -> AnySection:
        """The section with `{data}` replaced."""
        return type(section).model_validate(self._fill(section.model_dump()))

    def made_here(self, patterns: list[str]) -> bool:
        """Whether the patterns name data that the run generates itself."""
        return self.recipe.generate is not None and any(PLACEHOLDER in p for p in patterns)

    def outside(self, patterns: list[str], what: str) -> list[Path]:
        """Files from outside the run that the patterns name; a made corpus counts as the generate stage instead."""
        from data_prep.files import expand

        # a Hub data set is no file of this machine
        named = [p for p in patterns if not p.startswith("datasets:") and not self.made_here([p])]
        return expand(self._fill(named), what=what) if named else []

    def set_files(self) -> list[Path]:
        """Files of the evaluation sets and of the scored pairs that come from outside the run."""
        from data_prep.evaluation_sets import find_sets, set_files
        from data_prep.similarity_sets import find_similarity_sets

        own = [pattern for pattern in self.recipe.eval.sets if not self.made_here([pattern])]
        scored = [pattern for pattern in self.recipe.eval.sts if not self.made_here([pattern])]
        found = [
            *(find_sets(self._fill(own)) if own else []),
            *(find_similarity_sets(self._fill(scored)) if scored else []),
        ]
        return [file for place in found for file in set_files(place)]

    def sts_files(self) -> list[Path]:
        """The files of scored pairs that the recipe names."""
        from data_prep.similarity_sets import find_similarity_sets

        return find_similarity_sets(self._fill(self.recipe.eval.sts)) if self.recipe.eval.sts else []

    def kept_out(self) -> list[Path]:
        """All evaluation text: no training text may be a copy of any of it."""
        return [*self.all_sets(), *self.sts_files()]

    def all_sets(self) -> list[Path]:
        """The folders of all evaluation sets, with the one that the run makes of its held-out documents."""
        made = [self.run / "held_out" / "held_out"] if self.recipe.corpus.held_out else []
        return [*self.sets(), *made]

    def sets(self) -> list[Path]:
        """The folders of the evaluation sets that the recipe names."""
        from data_prep.evaluation_sets import find_sets

        return find_sets(self._fill(self.recipe.eval.sets))

    def base_files(self) -> list[Path]:
        """Files of a base that is a local folder."""
        return model_files(self.recipe.base.model)

    def teacher_files(self) -> list[Path]:
        """Files of the models that mining asks, where they are local folders."""
        mine = self.recipe.mine
        if mine is None:
            return []
        named = [t.model for t in (mine.teacher, mine.second_teacher) if t is not None]
        named.append(mine.cross_encoder.model if mine.cross_encoder else None)
        return [path for name in named for path in model_files(name)]

    def synth_files(self) -> list[Path]:
        """Files of the models that synthesis asks, where they are local folders."""
        synth = self.recipe.synth
        if synth is None:
            return []
        named = [synth.teacher.model, synth.chunks.tokenizer if synth.chunks else None]
        return [path for name in named for path in model_files(name)]

    def pair_sources(self) -> list[str]:
        """The stages whose pairs finetuning takes."""
        wanted = stages_of(self.recipe.finetune.blend)
        return [name for name in ("pairs", "mine", "synth") if getattr(self.recipe, name) and name in wanted]

    def pair_folder(self, source: str) -> Path:
        """The pair shards of a source."""
        return self.run / source / "pairs" if source == "mine" else self.run / source

    def scratch(self, stage: str) -> Path:
        """Where a stage keeps finished parts until it is whole; made and removed by the workshop."""
        return (self.run / SCRATCH / stage).resolve()

    def cache(self, what: str) -> Path:
        """What all runs beside this one may find again: vectors by teacher and text, answers of endpoints by request.

        Deleting it costs time (or money), never a result.
        """
        return (self.run.parent / ".cache" / what).resolve()

    @cached_property
    def fanout(self) -> Fanout:
        """Who computes the parts of data stages."""
        return make_fanout(self.here.fanout or self.recipe.fanout)

    @cached_property
    def device_fanout(self) -> Fanout:
        """The same for stages that embed and search, on accelerators where there are any."""
        return make_fanout(self.here.fanout or self.recipe.fanout, devices=True)

    @property
    def launch(self) -> LaunchConfig:
        """The processes of a training phase."""
        return self.here.launch or self.recipe.launch

    def probe_source(self) -> Literal["pairs", "mine", "synth"]:
        """The source whose pairs the probe asks: the named one, or the first that is on."""
        probe = self.recipe.truncate.probe
        if probe and probe.source:
            return probe.source
        order: tuple[Literal["pairs", "mine", "synth"], ...] = ("pairs", "synth", "mine")
        return next(name for name in order if getattr(self.recipe, name))

    def prompts(self) -> dict[str, str]:
        """The digest of the templates that a language model is asked with; empty where none is asked."""
        synth = self.recipe.synth
        if synth is None or synth.llm is None:
            return {}
        from data_prep.synth.prompt import Prompts

        return {"prompts": Prompts(Path(synth.llm.prompts).expanduser() if synth.llm.prompts else None).digest}

    def list_cut(self) -> list[int] | None:
        """The kept layers where they are no prefix of the base; the probe's own depths tell of all others."""
        layers = self.recipe.truncate.layers
        return None if isinstance(layers, int) or layers == list(range(len(layers))) else layers


def model_files(name: str | None) -> list[Path]:
    """The files of a model that is a local folder, its modules' folders included; none where it is an id."""
    folder = Path(name).expanduser() if name else None
    if folder is None or not folder.is_dir():
        return []
    found = [*folder.iterdir(), *folder.glob("*/*")]
    return sorted(f for f in found if f.is_file() and f.suffix in (".json", ".safetensors", ".model", ".txt"))
