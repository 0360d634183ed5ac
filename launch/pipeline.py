"""The graph: which stages a recipe has, what each reads, and which room builds it.

corpus → {tokenizer → tokens, mine, synth, pairs} → base → {probe, truncate} → pretrain → finetune → eval → export →
report.
Only this file knows all rooms at once; each stage's `config` holds exactly what its output depends on, so that a change
rebuilds what depends on it and nothing else. How many processes train is not among it: it never changes the result.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from data_prep.config import Section
from data_prep.errors import UserError
from data_prep.files import read_json
from data_prep.shards import SCHEMA_VERSION
from launch.stages import RECORD, SCRATCH, Counts, Stage

if TYPE_CHECKING:
    from data_prep.progress import Progress
    from launch.recipe import Recipe

PLACEHOLDER = "{data}"
SHARD_STAGES = ("corpus", "tokens", "pairs", "mine", "synth")
PHASE_FILES = ("metrics.jsonl", "summary.json", "tensorboard/*")
STAGES = (
    "generate", "corpus", "tokenizer", "tokens", "pairs", "mine", "synth",
    "base", "probe", "truncate", "pretrain", "finetune", "eval", "export", "report",
)  # fmt: skip

AnySection = TypeVar("AnySection", bound=Section)


@dataclass(frozen=True)
class Plan:
    """A recipe bound to a run folder and a data folder; makes the stages.

    Attributes:
        data: what `{data}` stands for, None where neither --data nor [generate] gives one.
        fresh: whether training phases start over beside an unfinished history.
        deadline: seconds since the epoch after which training saves and stops, None for no limit.
    """

    recipe: Recipe
    run: Path
    data: Path | None
    fresh: bool = False
    deadline: float | None = None

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

    def _made_here(self, patterns: list[str]) -> bool:
        return self.recipe.generate is not None and any(PLACEHOLDER in p for p in patterns)

    def _outside(self, patterns: list[str], what: str) -> list[Path]:
        """Files from outside the run that the patterns name; a made corpus counts as the generate stage instead."""
        from data_prep.files import expand

        return [] if self._made_here(patterns) else expand(self._fill(patterns), what=what)

    def _set_files(self) -> list[Path]:
        patterns = self.recipe.eval.sets
        if self._made_here(patterns):
            return []
        return [f for folder in self.sets() for f in sorted(folder.iterdir()) if f.suffix in (".gz", ".jsonl", ".tsv")]

    def sets(self) -> list[Path]:
        """The folders of the evaluation sets."""
        from data_prep.evaluation_sets import find_sets

        return find_sets(self._fill(self.recipe.eval.sets))

    def base_files(self) -> list[Path]:
        """Files of a base that is a local folder."""
        model = self.recipe.base.model
        folder = Path(model).expanduser() if model else None
        if folder is None or not folder.is_dir():
            return []
        return sorted(f for f in folder.iterdir() if f.is_file() and f.suffix in (".json", ".safetensors", ".model"))

    def pair_folder(self, source: str) -> Path:
        """The pair shards of a source."""
        return self.run / source / "pairs" if source == "mine" else self.run / source

    def scratch(self, stage: str) -> Path:
        """Where a stage keeps finished parts until it is whole; made and removed by the workshop."""
        return (self.run / SCRATCH / stage).resolve()

    def cache(self, what: str) -> Path:
        """What stages of this run may find again after a rebuild: embeddings, answers of endpoints. Safe to delete."""
        return (self.run / "cache" / what).resolve()

    def probe_source(self) -> Literal["pairs", "mine", "synth"]:
        """The source whose pairs the probe asks: the named one, or the first that is on."""
        probe = self.recipe.truncate.probe
        if probe and probe.source:
            return probe.source
        order: tuple[Literal["pairs", "mine", "synth"], ...] = ("pairs", "synth", "mine")
        return next(name for name in order if getattr(self.recipe, name))

    def _list_cut(self) -> list[int] | None:
        """The kept layers where they are no prefix of the base; the probe's own depths tell of all others."""
        layers = self.recipe.truncate.layers
        return None if isinstance(layers, int) or layers == list(range(len(layers))) else layers

    def stages(self) -> list[Stage]:
        """All stages of the recipe, each after those it needs."""
        recipe, seed = self.recipe, self.recipe.seed
        made = ("generate",) if recipe.generate else ()
        pair_sources = tuple(n for n in ("pairs", "mine", "synth") if getattr(recipe, n) and n in recipe.finetune.blend)
        sets = recipe.eval.sets
        found: list[Stage] = []

        def add(name: str, needs: Iterable[str], config: dict[str, Any], build: Any, **more: Any) -> None:
            # a new shard schema rebuilds what writes shards
            version = SCHEMA_VERSION if name in SHARD_STAGES else 1
            found.append(Stage(name=name, version=version, needs=tuple(needs), config=config, build=build, **more))

        if recipe.generate:
            add("generate", (), {"generate": recipe.generate.model_dump(), "seed": seed}, self._generate)
        add(
            "corpus", made, {"corpus": recipe.corpus.model_dump(), "sets": sets}, self._corpus,
            external=lambda: [*self._outside(recipe.corpus.files, "corpus.files"), *self._set_files()],
        )  # fmt: skip
        add("tokenizer", ("corpus",), {"tokenizer": recipe.tokenizer.model_dump()}, self._tokenizer)
        add("tokens", ("corpus", "tokenizer"), {"tokens": recipe.tokens.model_dump(), "seed": seed}, self._tokens)
        if pairs := recipe.pairs:
            add(
                "pairs", made, {"pairs": pairs.model_dump(), "sets": sets}, self._pairs,
                external=lambda: [*self._outside(pairs.files, "pairs.files"), *self._set_files()],
            )  # fmt: skip
        if recipe.mine:
            add("mine", ("corpus",), {"mine": recipe.mine.model_dump(), "seed": seed}, self._mine)
        if recipe.synth:
            add("synth", ("corpus",), {"synth": recipe.synth.model_dump(), "seed": seed}, self._synth)
        add(
            "base", ("tokenizer",) if recipe.base.random else (), {"base": recipe.base.model_dump(), "seed": seed},
            self._base,
        )  # fmt: skip
        # a named base is not copied: what reads its weights depends on its files
        if probe := recipe.truncate.probe:
            read = recipe.encoder.model_dump(include={"bidirectional", "max_tokens", "query_prompt", "passage_prompt"})
            add(
                "probe", ("base", "tokenizer", self.probe_source()),
                {"probe": probe.model_dump(), "cut": self._list_cut(), "encoder": read, "seed": seed}, self._probe,
                external=self.base_files,
            )  # fmt: skip
        add(
            "truncate", ("base", "tokenizer"),
            {"truncate": {"layers": recipe.truncate.layers}, "precision": recipe.pretrain.precision}, self._truncate,
            external=self.base_files,
        )  # fmt: skip
        add(
            "pretrain", ("tokens", "truncate"),
            {"pretrain": recipe.pretrain.essentials(), "seed": seed}, self._pretrain,
            volatile=PHASE_FILES,
        )  # fmt: skip
        add(
            "finetune", (*pair_sources, "pretrain"),
            {"finetune": recipe.finetune.essentials(), "encoder": recipe.encoder.model_dump(), "seed": seed},
            self._finetune, volatile=PHASE_FILES,
        )  # fmt: skip
        measured = [n for n in ("mine", "truncate", "pretrain", "finetune") if n in {s.name for s in found}]
        add(
            "eval", (*made, *measured),
            {"eval": recipe.eval.model_dump(), "encoder": recipe.encoder.model_dump(), "seed": seed},
            self._eval, external=self._set_files, volatile=("encoding.json",),
        )  # fmt: skip
        add("export", ("corpus", "finetune"), {"export": recipe.export.model_dump()}, self._export)
        everything = tuple(s.name for s in found)
        add("report", everything, {"name": recipe.name, "about": recipe.about}, self._report, volatile=("*",))
        return found

    def _generate(self, out: Path, progress: Progress) -> Counts:
        from data_prep.demo.generate import generate_demo

        assert self.recipe.generate is not None
        return generate_demo(self.recipe.generate, out=out, seed=self.recipe.seed, progress=progress)

    def _corpus(self, out: Path, progress: Progress) -> Counts:
        from data_prep.corpus.build import build_corpus

        counts = build_corpus(self.filled(self.recipe.corpus), evaluation_sets=self.sets(), out=out, progress=progress)
        if counts["kept"] < self.recipe.launch.nproc:
            raise UserError(
                f"corpus: {counts['kept']} documents left",
                f"must be at least one for each of the {self.recipe.launch.nproc} processes (launch.nproc)",
                "add text, loosen [corpus], or lower --nproc",
            )
        return counts

    def _tokenizer(self, out: Path, progress: Progress) -> Counts:
        from data_prep.tokenizer import train_tokenizer

        return train_tokenizer(self.recipe.tokenizer, documents=self.run / "corpus", out=out, progress=progress)

    def _tokens(self, out: Path, progress: Progress) -> Counts:
        from data_prep.tokens import build_tokens

        return build_tokens(
            self.recipe.tokens, documents=self.run / "corpus", tokenizer=self.run / "tokenizer", out=out,
            seed=self.recipe.seed, progress=progress,
        )  # fmt: skip

    def _pairs(self, out: Path, progress: Progress) -> Counts:
        from data_prep.pairs.files import import_pairs

        assert self.recipe.pairs is not None
        return import_pairs(self.filled(self.recipe.pairs), evaluation_sets=self.sets(), out=out, progress=progress)

    def _mine(self, out: Path, progress: Progress) -> Counts:
        from data_prep.mine.mine import mine_pairs

        assert self.recipe.mine is not None
        return mine_pairs(
            self.recipe.mine, documents=self.run / "corpus", out=out, seed=self.recipe.seed, progress=progress
        )

    def _synth(self, out: Path, progress: Progress) -> Counts:
        from data_prep.synth.synthesize import synthesize_pairs

        assert self.recipe.synth is not None
        return synthesize_pairs(
            self.recipe.synth, documents=self.run / "corpus", out=out, seed=self.recipe.seed, progress=progress
        )

    def _base(self, out: Path, progress: Progress) -> Counts:
        from train.backbone import make_base

        vocabulary = None
        if self.recipe.base.random:
            from data_prep.tokenizer import load_tokenizer

            vocabulary = len(load_tokenizer(self.run / "tokenizer"))
        return make_base(self.recipe.base, vocabulary=vocabulary, out=out, seed=self.recipe.seed, progress=progress)

    def _probe(self, out: Path, progress: Progress) -> Counts:
        from train.probe import probe

        assert self.recipe.truncate.probe is not None
        source = self.probe_source()
        return probe(
            self.recipe.truncate.probe, self.recipe.encoder, base=self.run / "base", tokenizer=self.run / "tokenizer",
            pairs=self.pair_folder(source), source=source, cut=self._list_cut(), out=out, seed=self.recipe.seed,
            progress=progress,
        )  # fmt: skip

    def _truncate(self, out: Path, progress: Progress) -> Counts:
        from train.truncate import truncate

        return truncate(
            self.recipe.truncate, base=self.run / "base", tokenizer=self.run / "tokenizer", out=out,
            precision=self.recipe.pretrain.precision, progress=progress,
        )  # fmt: skip

    def _train(self, phase: str, out: Path, progress: Progress, **job: Any) -> Counts:
        from launch.history import prepare
        from launch.supervisor import run_phase

        history, line = prepare(self.run, phase, fresh=self.fresh)
        if line:
            progress.note(line)
        given = {
            "phase": phase,
            "out": out,
            "seed": self.recipe.seed,
            "history": history,
            "checkpoint": self.recipe.checkpoint.model_dump(),
            "guard": self.recipe.guard.model_dump(),
            "deadline": self.deadline,
            # the content of the model's stage is known: its files need not be hashed again
            "inputs": {"model": read_json(job["model"].parent / RECORD)["content"]},
            **job,
        }
        # the ranks run elsewhere: every path they get is absolute
        summary = run_phase(
            {k: str(v.resolve()) if isinstance(v, Path) else v for k, v in given.items()},
            out=out, logs=(self.run / "logs" / phase).resolve(), launch=self.recipe.launch, progress=progress,
        )  # fmt: skip
        wanted = (
            "steps",
            "world_size",
            "tokens",
            "loss_first",
            "loss_last",
            "validation_loss_before",
            "validation_loss_after",
            "truncated",
            "head_parameters_left_out",
            "head_training_bytes_left_out",
        )
        return {k: summary[k] for k in wanted if summary.get(k) is not None}

    def _pretrain(self, out: Path, progress: Progress) -> Counts:
        return self._train(
            "pretrain", out, progress, config=self.recipe.pretrain.model_dump(), tokens=self.run / "tokens",
            model=self.run / "truncate" / "model",
        )  # fmt: skip

    def _finetune(self, out: Path, progress: Progress) -> Counts:
        recipe = self.recipe
        sources = [n for n in ("pairs", "mine", "synth") if getattr(recipe, n) and n in recipe.finetune.blend]
        on = {n: str(self.pair_folder(n).resolve()) for n in sources}
        return self._train(
            "finetune", out, progress, config=recipe.finetune.model_dump(), encoder=recipe.encoder.model_dump(),
            sources=on, model=self.run / "pretrain" / "model",
        )  # fmt: skip

    def _eval(self, out: Path, progress: Progress) -> Counts:
        from eval.retrieval import evaluate
        from eval.systems import build_systems

        systems = build_systems(
            self.recipe.eval,
            teacher=self.run / "mine" / "teacher" if self.recipe.mine else None,
            untrained=self.run / "truncate" / "model",
            pretrained=self.run / "pretrain" / "model",
            finetuned=self.run / "finetune" / "model",
            encoder=self.recipe.encoder,
        )
        return evaluate(
            self.recipe.eval, sets=self.sets(), systems=systems, out=out, seed=self.recipe.seed, progress=progress
        )

    def _export(self, out: Path, progress: Progress) -> Counts:
        from data_prep.shards import Shards
        from train.export import export_model

        documents = Shards(self.run / "corpus", "documents")
        wanted = min(self.recipe.export.probe_texts, len(documents))
        rows = documents.take([i * len(documents) // wanted for i in range(wanted)])
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return export_model(
            self.recipe.export, model=self.run / "finetune" / "model", texts=[r["text"] for r in rows], out=out,
            progress=progress,
        )  # fmt: skip

    def _report(self, out: Path, progress: Progress) -> Counts:
        from eval.report import write_report

        return write_report(run=self.run, out=out, title=self.recipe.name)
