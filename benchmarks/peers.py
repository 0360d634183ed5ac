"""rumpun against the peers: same weights, same pairs, same loss, same optimiser, side by side in one run.

    python benchmarks/peers.py --quick                      toy size, two minutes: does it run, do the losses agree
    python benchmarks/peers.py                              CPU: pairs per second, and the first 20 losses
    python benchmarks/peers.py --python VENV/bin/python     the peers of that environment (FlagEmbedding, tevatron)
    python benchmarks/peers.py --device cuda                a 1B cut on a GPU: MFU, memory, and the same comparison
    python benchmarks/peers.py --quick --rehearse           the GPU's measurements at toy size on the CPU

Each peer gets its best: first every setting of it trains a few steps, then the fastest one of each library takes turns
with rumpun. Texts have a long tail of lengths (median 60 tokens, 95th percentile 500, cut at 512). The run fails where
the losses of rumpun and sentence-transformers on the same batches differ by more than 1e-4 (fp32).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import _facts
from _peer_cuda import alone, cuda_lines
from _peer_texts import LLAMA2_7B_CUT, TOY, Lengths, Shape, length_facts, make_world, pair_stream, write_batches
from _turns import Arena, Block, Job, as_json, best, label, largest_difference, losses, rate, ratio, take_turns

SCRIPT = Path(__file__).resolve().parent / "_peer_sides.py"
TOLERANCE = 1e-4
COMPARED_STEPS = 20
REFERENCE = "sentence-transformers"
PACKAGES = ("torch", "transformers", "deepspeed", "sentence-transformers", "FlagEmbedding", "tevatron", "flash-attn")


def settings(*, quick: bool, device: str) -> dict[str, list[Job]]:
    """The settings of each library among which its best is sought; the first is how it is shipped."""
    plain = {"side": "sentence-transformers", "loss": "mnrl"}
    cached = {"side": "sentence-transformers", "loss": "cached"}
    flag = {"side": "FlagEmbedding"}
    if quick:
        return {REFERENCE: [plain, {**cached, "mini_batch_size": 4}]}
    sizes, budgets = ((1, 2, 4, 8, 32), (256, 1024, 4096)) if device == "cpu" else ((32, 128), (16384, 65536))
    found = {
        REFERENCE: [
            plain,
            *({**cached, "mini_batch_size": n} for n in sizes),
            *({**cached, "mini_batch_num_tokens": n} for n in budgets),
            # no library lays the rows of a batch by length: we do it for them, to see what they could reach
            *({**cached, "mini_batch_num_tokens": n, "sorted": True} for n in budgets),
        ],
        "FlagEmbedding": [
            *({**flag, "sub_batch_size": n} for n in (-1, *sizes)),
            *({**flag, "sub_batch_size": n, "sorted": True} for n in sizes[1:3]),
        ],
        "tevatron": [{"side": "tevatron"}],
    }
    if device == "cuda":  # with this kernel sentence-transformers leaves the padding out
        flash = {"attention": "flash_attention_2"}
        found[REFERENCE] += [{**plain, **flash}, {**cached, **flash, "mini_batch_num_tokens": budgets[1]}]
    return found


class Bench:
    """One comparison: its world on disk, the jobs of the sides, and where they run."""

    def __init__(self, args: argparse.Namespace, folder: Path, *, shape: Shape, lengths: Lengths, batch: int) -> None:
        from transformers import AutoTokenizer

        from train.encoder import EncoderConfig
        from train.finetune_config import FinetuneConfig

        self.args, self.folder, self.batch = args, folder, batch
        self.steps = 1 + args.warm + args.rounds * args.steps
        self.clock = "cpu" if args.device == "cpu" else "wall"
        self.precision = "fp32" if args.device == "cpu" else "bf16"
        finetune = {
            "batch_pairs": batch, "hard_negatives": 0, "temperature": 0.05, "learning_rate": args.rate,
            "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0, "gradient_clip": 1.0,
            "precision": self.precision, "zero_stage": 1,
        }  # fmt: skip
        encoder = {"max_tokens": lengths.longest}
        self.facts = make_world(
            folder, shape=shape, lengths=lengths, pairs=3 * self.steps * batch, data=args.data, seed=args.seed
        )
        stream = pair_stream(
            folder / "pairs",
            AutoTokenizer.from_pretrained(folder / "model", local_files_only=True),
            FinetuneConfig(**finetune),
            EncoderConfig(**encoder),
            seed=args.seed,
        )
        self.counts = write_batches(stream, folder / "batches.jsonl", steps=self.steps)
        job: Job = {
            "folder": str(folder), "model": str(folder / "model"), "st": str(folder / "st"),
            "pairs": str(folder / "pairs"), "batches": str(folder / "batches.jsonl"), "steps": self.steps,
            "batch": batch, "temperature": 0.05, "rate": args.rate, "clip": 1.0, "device": args.device,
            "seed": args.seed, "encoder": encoder, "finetune": finetune,
        }  # fmt: skip
        self.arena = Arena(folder, SCRIPT, job, python=args.python, threads=args.threads)


# what a library's training needs to be importable
NEEDS = {
    "sentence-transformers": "sentence_transformers, datasets, accelerate",
    "FlagEmbedding": "FlagEmbedding.finetune.embedder.decoder_only.base",
    "tevatron": "tevatron.retriever.trainer",
}


def why_not(python: str, modules: str) -> str | None:
    """Why some modules cannot be imported by an interpreter; None where they can."""
    done = subprocess.run([python, "-c", f"import {modules}"], capture_output=True, text=True)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1]


def choose(bench: Bench) -> tuple[dict[str, Job], list[str], list[tuple[str, str, str]]]:
    """The sides that are measured: rumpun, and the best of each library, as shipped and with our help.

    Returns:
        Jobs by name, rumpun first and sentence-transformers' plain loss second; lines on libraries that are missing;
        and (library, setting, seconds a step) of all that was tried.
    """
    args = bench.args
    chosen: dict[str, Job] = {"rumpun": {"side": "rumpun"}}
    missing: list[str] = []
    rows: list[tuple[str, str, str]] = []
    for library, candidates in settings(quick=args.quick, device=args.device).items():
        reason = why_not(args.python, NEEDS[library])
        if reason:
            missing.append(f"{library} was not compared: `{reason}`.")
            continue
        if args.quick:
            chosen |= {f"{library} ({label(job)})": job for job in candidates}
            continue
        print(f"seeking the best of {library}", flush=True)
        trials = bench.arena.trials(candidates, steps=args.trial, clock=bench.clock)
        rows += [(library, label(t.job), str(t)) for t in trials]
        wanted = [candidates[0] if library == REFERENCE and not trials[0].failed else None]
        wanted += [best(trials, as_shipped=True), best(trials)]
        chosen |= {f"{library} ({label(job)})": job for job in wanted if job is not None}
    if not args.quick and args.device == "cpu":
        chosen["rumpun, PyTorch's default products"] = {"side": "rumpun", "host_linear": False}
    return chosen, missing, rows


def compare(bench: Bench) -> tuple[list[str], dict[str, list[Block]], bool]:
    """Let all sides train. Returns Markdown parts, all blocks, and whether the losses agree."""
    args = bench.args
    chosen, missing, rows = choose(bench)
    print(f"measuring: {', '.join(chosen)}", flush=True)
    if args.device == "cuda":  # a device has no room for several trainers at once
        blocks = {name: alone(bench, job, name="alone") for name, job in chosen.items()}
    else:
        trainees = [bench.arena.start(job, name=name) for name, job in chosen.items()]
        blocks = take_turns(trainees, warm=args.warm, steps=args.steps, rounds=args.rounds)
        for trainee in trainees:
            trainee.close()
    ours = blocks["rumpun"]
    speed = [
        (
            name,
            rate(found, args.steps * bench.batch, clock="wall"),
            ratio(found, ours, clock="wall"),
            ratio(found, ours, clock="cpu"),
            f"{max(b.told['peak_memory_gb'] for b in found):.2f}",
        )
        for name, found in blocks.items()
    ]
    parts = [
        _facts.table(["side", "pairs/s (wall)", "wall ratio to rumpun", "CPU-time ratio", "peak GB"], speed),
        f"Median (least–greatest) of {args.rounds} rounds of {args.steps} steps. A ratio is that side's time over "
        "rumpun's in the same round, on the same batches: 2 means that rumpun is twice as fast.",
        *missing,
    ]
    reference = next((name for name in blocks if name.startswith(REFERENCE)), None)
    worst = 0.0
    if reference is not None:
        line, worst = agreement(blocks, reference)
        parts.append(line)
    if rows:
        parts.append("### The settings that were tried\n\n" + _facts.table(["library", "setting", "s a step"], rows))
    return parts, blocks, args.device != "cpu" or worst <= TOLERANCE


def agreement(blocks: dict[str, list[Block]], reference: str) -> tuple[str, float]:
    """A line on how far the losses of all sides are from the reference's, and how far rumpun's are."""
    expected, ours = losses(blocks[reference]), losses(blocks["rumpun"])
    steps = min(COMPARED_STEPS, len(ours))
    apart = {
        name: largest_difference(losses(found), expected, steps=steps)
        for name, found in blocks.items()
        if name != reference
    }
    listed = "; ".join(f"{name} {value:.1e}" for name, value in apart.items())
    return (
        f"Largest relative difference of the first {steps} losses to {reference}: {listed}. First loss {ours[0]:.4f}, "
        f"last compared {ours[steps - 1]:.4f}. In fp32 the run fails where rumpun's passes {TOLERANCE:g}."
    ), apart["rumpun"]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, with sizes filled in for the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="toy size")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rehearse", action="store_true", help="run the GPU measurements at toy size on the CPU")
    parser.add_argument("--only", choices=("peers", "alone"), help="GPU: one half of the run, where time is short")
    parser.add_argument("--data", type=Path, help="data folder with corpora/: real words instead of generated ones")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the peers installed")
    parser.add_argument("--threads", type=int, help="OpenMP threads of every process: 1 on a CPU, 8 beside a GPU")
    parser.add_argument("--batch", type=int, help="pairs in a batch")
    parser.add_argument("--rounds", type=int, help="rounds of turns")
    parser.add_argument("--steps", type=int, help="steps in a turn")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate, constant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="Markdown file for the results, with every block in a .json beside it")
    args = parser.parse_args(argv)
    args.quick = small = args.quick or args.rehearse
    args.warm = 1 if small else 2 if args.device == "cpu" else 3
    args.trial = 1 if small else 2
    args.threads = args.threads or (1 if args.device == "cpu" else 8)
    args.rounds = args.rounds or (2 if small else 6)
    args.steps = args.steps or (2 if small else 3)
    args.batch = args.batch or (8 if small else 32 if args.device == "cpu" else 256)
    return args


def main(argv: list[str] | None = None) -> int:
    """Measure and write the page. Returns 1 where the losses do not agree."""
    args = parse(argv)
    load = os.getloadavg()[0]
    small = args.quick
    shape = TOY if small else Shape() if args.device == "cpu" else LLAMA2_7B_CUT
    lengths = Lengths(median=12, p95=50, longest=64) if small else Lengths()
    with tempfile.TemporaryDirectory(prefix="rumpun-peers-") as temporary:
        bench = Bench(args, Path(temporary), shape=shape, lengths=lengths, batch=args.batch)
        parts, blocks, agree = ([], {}, True) if args.only == "alone" else compare(bench)
        if (args.device == "cuda" or args.rehearse) and args.only != "peers":
            more, phases = cuda_lines(bench, shape=shape, lengths=lengths, small=small)
            parts += more
            blocks |= phases
    found = length_facts(bench.counts)
    head = [
        f"# rumpun against the peers, {'GPU' if args.device == 'cuda' else 'CPU'}",
        *_facts.machine_lines(threads=args.threads, load_before=load, packages=_facts.versions(args.python, PACKAGES)),
        f"Llama, {', '.join(f'{k} {v}' for k, v in bench.facts['shape'].items())}; "
        f"{bench.facts['parameters'] / 1e6:.1f} M parameters, "
        f"{'fp32' if args.device == 'cpu' else 'bf16 with fp32 master weights'}; mean pooling, causal. "
        f"{bench.facts['text'].capitalize()}: tokens of a text have median {found['median']:.0f}, 95th percentile "
        f"{found['p95']:.0f}, mean {found['mean']:.0f}, longest {found['longest']:.0f}, queries and passages alike. "
        f"{args.batch} pairs a batch, InfoNCE in the batch at temperature 0.05, AdamW at {args.rate:g}, constant, no "
        "decay, gradient norm cut at 1.",
    ]
    page = "\n\n".join([*head, *parts]) + "\n"
    print(page)
    out = args.out or (None if small else _facts.RESULTS / f"peers_{args.device}.md")
    if out:
        out.write_text(page)
        if args.out:
            out.with_suffix(".json").write_text(json.dumps(as_json(blocks)))
    if not agree:
        print(f"the losses differ by more than {TOLERANCE:g}", file=sys.stderr)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
