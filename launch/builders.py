"""How each stage of a recipe is built: which room's function is called with which folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.files import read_json
from launch.stages import RECORD, Counts

if TYPE_CHECKING:
    from data_prep.progress import Progress
    from launch.binding import Binding


class Builders:
    """One method a stage; each fills an empty folder and returns counts.

    Args:
        at: the recipe with its folders.
    """

    def __init__(self, at: Binding) -> None:
        self.at, self.recipe, self.run, self.seed = at, at.recipe, at.run, at.recipe.seed

    def generate(self, out: Path, progress: Progress) -> Counts:
        """Write the demo corpus."""
        from data_prep.demo.generate import generate_demo

        assert self.recipe.generate is not None
        return generate_demo(self.recipe.generate, out=out, seed=self.seed, progress=progress)

    def corpus(self, out: Path, progress: Progress) -> Counts:
        """Read, clean and deduplicate text."""
        from data_prep.corpus.build import build_corpus

        counts = build_corpus(
            self.at.filled(self.recipe.corpus), evaluation_sets=[*self.at.sets(), *self.at.sts_files()],
            out=out, seed=self.seed, progress=progress, fanout=self.at.fanout, scratch=self.at.scratch("corpus"),
        )  # fmt: skip
        if counts["kept"] < self.recipe.launch.nproc:
            raise UserError(
                f"corpus: {counts['kept']} documents left",
                f"must be at least one for each of the {self.recipe.launch.nproc} processes (launch.nproc)",
                "add text, loosen [corpus], or lower --nproc",
            )
        return counts

    def held_out(self, out: Path, progress: Progress) -> Counts:
        """Make an evaluation set of the documents that training never sees."""
        from data_prep.corpus.split import held_out_set

        return held_out_set(
            self.run / "corpus" / "held_out", out / "held_out", seed=self.seed, training=self.run / "corpus",
            config=self.recipe.corpus, progress=progress, fanout=self.at.fanout, scratch=self.at.scratch("held_out"),
        )  # fmt: skip

    def gate(self, out: Path, progress: Progress) -> Counts:
        """Make sure that no document of the corpus repeats an evaluation text."""
        return self._gate("gate", {"corpus": self.run / "corpus"}, out, progress)

    def gate_pairs(self, out: Path, progress: Progress) -> Counts:
        """Make sure that no pair holds an evaluation text."""
        folders = {name: self.at.pair_folder(name) for name in self.at.pair_sources()}
        return self._gate("gate_pairs", folders, out, progress)

    def _gate(self, name: str, folders: dict[str, Path], out: Path, progress: Progress) -> Counts:
        from data_prep.gate import prove

        return prove(
            self.recipe.corpus, folders=folders, evaluation_sets=self.at.kept_out(), out=out, progress=progress,
            fanout=self.at.fanout, scratch=self.at.scratch(name),
        )  # fmt: skip

    def tokenizer(self, out: Path, progress: Progress) -> Counts:
        """Train the tokenizer, or fetch it."""
        from data_prep.tokenizer import train_tokenizer

        return train_tokenizer(self.recipe.tokenizer, documents=self.run / "corpus", out=out, progress=progress)

    def tokens(self, out: Path, progress: Progress) -> Counts:
        """Tokenise and pack."""
        from data_prep.tokens import build_tokens

        return build_tokens(
            self.recipe.tokens, documents=self.run / "corpus", tokenizer=self.run / "tokenizer", out=out,
            seed=self.seed, progress=progress, scratch=self.at.scratch("tokens"),
        )  # fmt: skip

    def pairs(self, out: Path, progress: Progress) -> Counts:
        """Import labelled pairs."""
        from data_prep.pairs.files import import_pairs

        assert self.recipe.pairs is not None
        return import_pairs(
            self.at.filled(self.recipe.pairs), evaluation_sets=self.at.kept_out(), out=out, progress=progress
        )

    def mine(self, out: Path, progress: Progress) -> Counts:
        """Mine pairs from the corpus."""
        from data_prep.mine.mine import mine_pairs

        assert self.recipe.mine is not None
        scratch = self.at.scratch("mine")
        return mine_pairs(
            self.recipe.mine, documents=self.run / "corpus", out=out, seed=self.seed, progress=progress,
            fanout=self.at.device_fanout, scratch=scratch, cache=self.at.cache("vectors"),
            labelled=self._audit_pairs(scratch, progress),
        )  # fmt: skip

    def _audit_pairs(self, scratch: Path, progress: Progress) -> list[Path]:
        """Labelled pairs that judge mining, as shards; evaluation text is among them, since nothing trains on them."""
        from data_prep.pairs.files import PairsConfig, import_pairs

        assert self.recipe.mine is not None
        if not self.recipe.mine.audit_pairs:
            return []
        config = self.at.filled(PairsConfig(files=self.recipe.mine.audit_pairs))
        folder = scratch / "audit_pairs"
        import_pairs(config, evaluation_sets=[], out=folder, progress=progress)
        return [folder]

    def synth(self, out: Path, progress: Progress) -> Counts:
        """Synthesise pairs from the corpus."""
        from data_prep.synth.synthesize import synthesize_pairs

        assert self.recipe.synth is not None
        return synthesize_pairs(
            self.at.filled(self.recipe.synth), documents=self.run / "corpus", out=out, seed=self.seed,
            progress=progress, evaluation_sets=self.at.kept_out(), fanout=self.at.device_fanout,
            scratch=self.at.scratch("synth"), cache=self.at.cache("synth"),
            decontaminate=self.recipe.corpus.decontaminate, private=self.recipe.corpus.private,
        )  # fmt: skip

    def base(self, out: Path, progress: Progress) -> Counts:
        """Make or name the base."""
        from train.backbone import make_base

        vocabulary = None
        if self.recipe.base.random:
            from data_prep.tokenizer import load_tokenizer

            vocabulary = len(load_tokenizer(self.run / "tokenizer"))
        return make_base(self.recipe.base, vocabulary=vocabulary, out=out, seed=self.seed, progress=progress)

    def probe(self, out: Path, progress: Progress) -> Counts:
        """Measure what each depth of the base retrieves."""
        from train.probe import probe

        assert self.recipe.truncate.probe is not None
        source = self.at.probe_source()
        return probe(
            self.recipe.truncate.probe, self.recipe.encoder, base=self.run / "base", tokenizer=self.run / "tokenizer",
            pairs=self.at.pair_folder(source), source=source, cut=self.at.list_cut(), out=out, seed=self.seed,
            progress=progress,
        )  # fmt: skip

    def truncate(self, out: Path, progress: Progress) -> Counts:
        """Cut the base."""
        from train.truncate import truncate

        return truncate(
            self.recipe.truncate, base=self.run / "base", tokenizer=self.run / "tokenizer", out=out,
            precision=self.recipe.pretrain.precision, progress=progress,
        )  # fmt: skip

    def _train(self, phase: str, out: Path, progress: Progress, **job: Any) -> Counts:
        from data_prep.blend import blend_counts
        from launch.history import prepare
        from launch.supervisor import run_phase

        history, line = prepare(self.run, phase, fresh=self.at.fresh)
        if line:
            progress.note(line)
        given = {
            "phase": phase,
            "out": out,
            "seed": self.seed,
            "history": history,
            "checkpoint": self.recipe.checkpoint.model_dump(),
            "guard": self.recipe.guard.model_dump(),
            "deadline": self.at.here.deadline,
            # the content of the model's stage is known: its files need not be hashed again
            "inputs": {"model": read_json(job["model"].parent / RECORD)["content"]},
            **job,
        }
        # the ranks run elsewhere: every path they get is absolute
        summary = run_phase(
            {k: str(v.resolve()) if isinstance(v, Path) else v for k, v in given.items()},
            out=out, logs=(self.run / "logs" / phase).resolve(), launch=self.at.launch, progress=progress,
            starter=self.at.here.starter,
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
        blend = blend_counts(summary["blend"]) if summary.get("blend") else {}
        return {k: summary[k] for k in wanted if summary.get(k) is not None} | blend

    def pretrain(self, out: Path, progress: Progress) -> Counts:
        """Continue its pretraining."""
        return self._train(
            "pretrain", out, progress, config=self.recipe.pretrain.model_dump(), tokens=self.run / "tokens",
            model=self.run / "truncate" / "model",
        )  # fmt: skip

    def finetune(self, out: Path, progress: Progress) -> Counts:
        """Finetune it."""
        from train.pair_stream import blend_table

        recipe = self.recipe
        on = {n: str(self.at.pair_folder(n).resolve()) for n in self.at.pair_sources()}
        settings = recipe.finetune
        table = blend_table(
            settings.blend, {name: Path(place) for name, place in on.items()}, cap=settings.blend_cap,
            temperature=settings.blend_temperature,
        )  # fmt: skip
        for line in table:
            progress.note(line)
        for name in ("pairs", "mine", "synth"):
            if getattr(recipe, name) and name not in on:
                progress.note(f"{name}: made, but not named in finetune.blend, so nothing of it is trained on")
        return self._train(
            "finetune", out, progress, config=recipe.finetune.model_dump(), encoder=recipe.encoder.model_dump(),
            sources=on, model=self.run / "pretrain" / "model",
            watched=[str(s.resolve()) for s in self.at.all_sets()] if settings.eval_every_steps else [],
        )  # fmt: skip

    def eval(self, out: Path, progress: Progress) -> Counts:
        """Evaluate all systems."""
        from eval.retrieval import evaluate
        from eval.systems.checkpoints import exporter
        from eval.systems.listing import build_systems
        from launch.history import folder_of

        systems = build_systems(
            self.recipe.eval,
            teacher=self.run / "mine" / "teacher" if self.recipe.mine else None,
            untrained=self.run / "truncate" / "model",
            pretrained=self.run / "pretrain" / "model",
            finetuned=self.run / "finetune" / "model",
            encoder=self.recipe.encoder,
            history=folder_of(self.run, "finetune"),
            materialise=exporter(self.run / "pretrain" / "model", self.recipe.encoder),
            scratch=self.at.scratch("eval"),
            cache=self.at.cache("endpoints"),
        )
        sets = self.at.all_sets()
        counts = evaluate(
            self.recipe.eval, sets=sets, sts=self.at.sts_files(), systems=systems, out=out, seed=self.seed,
            progress=progress,
        )  # fmt: skip
        if self.recipe.eval.robustness is not None:
            from eval.robustness.measure import measure

            lost = measure(
                self.recipe.eval.robustness, sets=sets, systems=systems, out=out, seed=self.seed, progress=progress
            )
            counts |= {f"robustness_{name}": value for name, value in lost.items()}
        return counts

    def export(self, out: Path, progress: Progress) -> Counts:
        """Write the model folder and check it."""
        from data_prep.shards import Shards
        from train.export import export_model

        documents = Shards(self.run / "corpus", "documents")
        wanted = min(self.recipe.export.probe_texts, len(documents))
        rows = documents.take([i * len(documents) // wanted for i in range(wanted)])
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return export_model(
            self.recipe.export, model=self.run / "finetune" / "model", texts=[r["text"] for r in rows], out=out,
            progress=progress, matryoshka=self.recipe.finetune.matryoshka,
        )  # fmt: skip

    def report(self, out: Path, progress: Progress) -> Counts:
        """Draw the page."""
        from eval.report.page import write_report
        from launch.slurm.telling.history_command import make_timeline

        make_timeline(self.run)
        return write_report(run=self.run, out=out, title=self.recipe.name)
