"""The graph: which stages a recipe has, what each reads, and which room builds it.

corpus → {tokenizer → tokens, mine, synth, pairs} → base → {probe, truncate} → pretrain → finetune → eval → export →
report.
Only this file knows all rooms at once; each stage's `config` holds exactly what its output depends on, so that a change
rebuilds what depends on it and nothing else. How many processes train is not among it: it never changes the result.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from data_prep.shards import SCHEMA_VERSION
from launch.binding import Binding
from launch.builders import Builders
from launch.stages import Stage

if TYPE_CHECKING:
    pass

SHARD_STAGES = ("corpus", "tokens", "pairs", "mine", "synth")
PHASE_FILES = ("metrics.jsonl", "summary.json", "tensorboard/*")
STAGES = (
    "generate", "corpus", "tokenizer", "tokens", "pairs", "mine", "synth",
    "base", "probe", "truncate", "pretrain", "finetune", "eval", "export", "report",
)  # fmt: skip


class Plan(Binding):
    """A bound recipe as a graph of stages."""

    def stages(self) -> list[Stage]:
        """All stages of the recipe, each after those it needs."""
        recipe, seed = self.recipe, self.recipe.seed
        made = ("generate",) if recipe.generate else ()
        pair_sources = tuple(n for n in ("pairs", "mine", "synth") if getattr(recipe, n) and n in recipe.finetune.blend)
        sets = recipe.eval.sets
        found: list[Stage] = []
        made_by = Builders(self)

        def add(name: str, needs: Iterable[str], config: dict[str, Any], build: Any, **more: Any) -> None:
            # a new shard schema rebuilds what writes shards
            version = SCHEMA_VERSION if name in SHARD_STAGES else 1
            found.append(Stage(name=name, version=version, needs=tuple(needs), config=config, build=build, **more))

        if recipe.generate:
            add("generate", (), {"generate": recipe.generate.model_dump(), "seed": seed}, made_by.generate)
        add(
            "corpus", made, {"corpus": recipe.corpus.model_dump(), "sets": sets}, made_by.corpus,
            external=lambda: [*self.outside(recipe.corpus.files, "corpus.files"), *self.set_files()],
        )  # fmt: skip
        add("tokenizer", ("corpus",), {"tokenizer": recipe.tokenizer.model_dump()}, made_by.tokenizer)
        add("tokens", ("corpus", "tokenizer"), {"tokens": recipe.tokens.model_dump(), "seed": seed}, made_by.tokens)
        if pairs := recipe.pairs:
            add(
                "pairs", made, {"pairs": pairs.model_dump(), "sets": sets}, made_by.pairs,
                external=lambda: [*self.outside(pairs.files, "pairs.files"), *self.set_files()],
            )  # fmt: skip
        if mine := recipe.mine:
            add(
                "mine", (*made, "corpus"), {"mine": mine.model_dump(mode="json"), "seed": seed}, made_by.mine,
                external=lambda: self.outside(mine.audit_pairs, "mine.audit_pairs"),
            )  # fmt: skip
        if recipe.synth:
            add(
                "synth", ("corpus",), {"synth": recipe.synth.model_dump(mode="json"), "sets": sets, "seed": seed},
                made_by.synth, external=self.set_files,
            )  # fmt: skip
        add(
            "base", ("tokenizer",) if recipe.base.random else (), {"base": recipe.base.model_dump(), "seed": seed},
            made_by.base,
        )  # fmt: skip
        # a named base is not copied: what reads its weights depends on its files
        if probe := recipe.truncate.probe:
            read = recipe.encoder.model_dump(include={"bidirectional", "max_tokens", "query_prompt", "passage_prompt"})
            add(
                "probe", ("base", "tokenizer", self.probe_source()),
                {"probe": probe.model_dump(), "cut": self.list_cut(), "encoder": read, "seed": seed}, made_by.probe,
                external=self.base_files,
            )  # fmt: skip
        add(
            "truncate", ("base", "tokenizer"),
            {"truncate": {"layers": recipe.truncate.layers}, "precision": recipe.pretrain.precision}, made_by.truncate,
            external=self.base_files,
        )  # fmt: skip
        add(
            "pretrain", ("tokens", "truncate"),
            {"pretrain": recipe.pretrain.essentials(), "seed": seed}, made_by.pretrain,
            volatile=PHASE_FILES,
        )  # fmt: skip
        add(
            "finetune", (*pair_sources, "pretrain"),
            {"finetune": recipe.finetune.essentials(), "encoder": recipe.encoder.model_dump(), "seed": seed},
            made_by.finetune, volatile=PHASE_FILES,
        )  # fmt: skip
        measured = [n for n in ("mine", "truncate", "pretrain", "finetune") if n in {s.name for s in found}]
        add(
            "eval", (*made, *measured),
            {"eval": recipe.eval.model_dump(), "encoder": recipe.encoder.model_dump(), "seed": seed},
            made_by.eval, external=self.set_files, volatile=("encoding.json",),
        )  # fmt: skip
        add("export", ("corpus", "finetune"), {"export": recipe.export.model_dump()}, made_by.export)
        everything = tuple(s.name for s in found)
        add("report", everything, {"name": recipe.name, "about": recipe.about}, made_by.report, volatile=("*",))
        return found
