"""The graph: which stages a recipe has, what each reads, and which room builds it.

corpus → {tokenizer → tokens, mine, synth, pairs} → gates → base → {probe, truncate} → pretrain → finetune → eval →
export → report.
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
GATES = ("gate", "gate_pairs")
PHASE_FILES = ("metrics.jsonl", "summary.json", "tensorboard/*")
STAGES = (
    "generate", "corpus", "held_out", "tokenizer", "tokens", "pairs", "mine", "synth", "gate", "gate_pairs",
    "base", "probe", "truncate", "pretrain", "finetune", "eval", "export", "report",
)  # fmt: skip

VERSIONS = {"eval": 2}
"""Of what a stage writes, where that has changed: folders of an older one are rebuilt."""


class Plan(Binding):
    """A bound recipe as a graph of stages."""

    def stages(self) -> list[Stage]:
        """All stages of the recipe, each after those it needs."""
        recipe, seed = self.recipe, self.recipe.seed
        made = ("generate",) if recipe.generate else ()
        pair_sources = tuple(self.pair_sources())
        held_out = ("held_out",) if recipe.corpus.held_out else ()
        sets = [*recipe.eval.sets, *recipe.eval.sts]
        cleaning = recipe.corpus.model_dump(include={"decontaminate", "private"})
        measures = {"sets": sets, "corpus": cleaning}
        split = {"seed": seed} if held_out else {}
        found: list[Stage] = []
        made_by = Builders(self)

        def add(name: str, needs: Iterable[str], config: dict[str, Any], build: Any, **more: Any) -> None:
            # a new shard schema rebuilds what writes shards
            version = SCHEMA_VERSION if name in SHARD_STAGES else VERSIONS.get(name, 1)
            found.append(Stage(name=name, version=version, needs=tuple(needs), config=config, build=build, **more))

        if recipe.generate:
            add("generate", (), {"generate": recipe.generate.model_dump(), "seed": seed}, made_by.generate)
        add(
            "corpus", made, {"corpus": recipe.corpus.model_dump(), "sets": sets, **split}, made_by.corpus,
            external=lambda: [*self.outside(recipe.corpus.files, "corpus.files"), *self.set_files()],
        )  # fmt: skip
        if held_out:
            add("held_out", ("corpus",), {"seed": seed, **measures}, made_by.held_out)
        add("tokenizer", ("corpus",), {"tokenizer": recipe.tokenizer.model_dump()}, made_by.tokenizer)
        add("tokens", ("corpus", "tokenizer"), {"tokens": recipe.tokens.model_dump(), "seed": seed}, made_by.tokens)
        if pairs := recipe.pairs:
            add(
                "pairs", (*made, *held_out), {"pairs": pairs.model_dump(), "sets": sets}, made_by.pairs,
                external=lambda: [*self.outside(pairs.files, "pairs.files"), *self.set_files()],
            )  # fmt: skip
        if mine := recipe.mine:
            add(
                "mine", ("corpus", *made), {"mine": mine.model_dump(mode="json"), "seed": seed}, made_by.mine,
                external=lambda: [*self.outside(mine.audit_pairs, "mine.audit_pairs"), *self.teacher_files()],
            )  # fmt: skip
        if recipe.synth:
            asked = {"synth": recipe.synth.model_dump(mode="json"), **measures, "seed": seed, **self.prompts()}
            add(
                "synth", ("corpus", *made, *held_out), asked, made_by.synth,
                external=lambda: [*self.set_files(), *self.synth_files()],
            )  # fmt: skip
        # a gate lets through or fails: what follows does not depend on what the proof says; and pretraining does not
        # wait for pairs
        for name, guarded, gate in (
            ("gate", ("corpus",), made_by.gate), ("gate_pairs", pair_sources, made_by.gate_pairs),
        ):  # fmt: skip
            needs = (*made, *held_out, *guarded)
            add(name, needs, measures, gate, external=self.set_files, volatile=("*",))
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
            "pretrain", ("gate", "tokens", "truncate"),
            {"pretrain": recipe.pretrain.essentials(), "seed": seed}, made_by.pretrain,
            volatile=PHASE_FILES,
        )  # fmt: skip
        add(
            "finetune", ("gate_pairs", *pair_sources, "pretrain"),
            {"finetune": recipe.finetune.essentials(), "encoder": recipe.encoder.model_dump(), "seed": seed},
            made_by.finetune, volatile=PHASE_FILES,
        )  # fmt: skip
        measured = [n for n in ("mine", "truncate", "pretrain", "finetune") if n in {s.name for s in found}]
        add(
            "eval", (*made, *held_out, *measured),
            {"eval": recipe.eval.model_dump(), "encoder": recipe.encoder.model_dump(), "seed": seed},
            made_by.eval, external=self.set_files, volatile=("encoding.json",),
        )  # fmt: skip
        add("export", ("corpus", "finetune"), {"export": recipe.export.model_dump()}, made_by.export)
        everything = tuple(s.name for s in found)
        add("report", everything, {"name": recipe.name, "about": recipe.about}, made_by.report, volatile=("*",))
        return found
