"""One training that is killed again and again at random moments, and what it comes to in the end.

    python benchmarks/soak.py [--quick] [--seed 0] [--out PAGE]      (make soak; without --quick: results/soak.md)

Two soaks, each compared with a run of the same recipe that nobody disturbed:

1. two ranks, always: SIGKILL of one rank, of all, SIGTERM, SIGUSR1, and damage to the newest checkpoint; the losses,
   the gradient norms and the final weights must be the same bits;
2. the same, with another number of ranks and another ZeRO stage at every start; losses within 1e-5 relative.

Both ledgers are then verified with `rumpun ledger verify`. Ranks are real processes of the real worker, forked from one
that has imported everything (tests/train/survival/ranks.py), or fifty starts would be ten minutes of imports. The
training is tiny on purpose: what is tested are the moments, and a step of a few milliseconds has all of them.
Exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _facts import REPO, RESULTS, machine_lines, table, versions

sys.path[:0] = [str(REPO), str(REPO / "tests" / "train")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

from survival.ranks import Result, Zygote  # noqa: E402 - found by the line above
from survival.runs import BATCH, Run, make_data, numbers  # noqa: E402

from train.exit_codes import DEFECT, DONE, STOPPED  # noqa: E402

EVERY = 4
"""Steps between two checkpoints."""
KINDS = {"SIGKILL, one rank": 7, "SIGKILL, all ranks": 7, "SIGTERM, all ranks": 3, "SIGUSR1, one rank": 3}
DAMAGES = ("truncated", "one bit flipped", "one file deleted")
DAMAGED_SHARE = 0.4
"""Of the times that all ranks are killed while there are two good checkpoints."""
LIMIT = 1e-5
SETTINGS: dict[str, Any] = {"learning_rate": 3e-4, "warmup_steps": 20}


@dataclass
class Soak:
    """What one soak went through.

    Attributes:
        hits: (kind, place, what the saver was at) of every kill. damages: what was done to checkpoints.
        starts: (ranks, stage) of each start. busy_s: seconds that ranks ran.
    """

    hits: list[tuple[str, str, str]] = field(default_factory=list)
    damages: Counter[str] = field(default_factory=Counter)
    starts: list[tuple[int, int]] = field(default_factory=list)
    late: int = 0
    fallbacks: int = 0
    busy_s: float = 0.0


def harm(place: Path, how: str, rng: random.Random) -> None:
    """Damage one state file of a checkpoint."""
    path = rng.choice(sorted(place.glob("state-*")))
    if how == "one file deleted":
        path.unlink()
        return
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content))
    if how == "truncated":
        path.write_bytes(content[:at])
    else:
        content[at] ^= 1 << rng.randrange(8)
        path.write_bytes(content)


def check_codes(result: Result, kind: str, whom: int) -> None:
    """A start must end as train/exit_codes.py says; anything else is a finding."""
    if kind.startswith("SIGKILL"):
        right = result.codes[whom] in (-signal.SIGKILL, DONE) and {*result.codes} <= {-signal.SIGKILL, DEFECT, DONE}
    else:
        right = {*result.codes} in ({STOPPED}, {DONE})
    if not right:
        raise SystemExit(f"a start ended with {result.codes} after {kind} of rank {whom}\n{result.told()}")


def soak(run: Run, rng: random.Random, *, kills: int, whole: Run, resize: bool) -> Soak:
    """Start `run` until it is done, killing `kills` of its starts; `whole` tells how fast it goes undisturbed."""
    steps = len(whole.steps())
    # so that the kills are spread over the whole training; most starts also do a step or two again
    most_s = 2 * (steps / kills + 1) * whole.starts[0].wall_s / steps
    found, hurt = Soak(), set[str]()
    while True:
        ranks, stage = (rng.randint(1, 4), rng.randint(0, 3)) if resize else (2, 1)
        run.settings["zero_stage"] = stage
        found.starts.append((ranks, stage))
        signals: list[Any] = []
        kind = rng.choices([*KINDS], [*KINDS.values()])[0]
        whom = rng.randrange(ranks)
        if len(found.hits) < kills:
            name, _, who = kind.partition(", ")
            # four in ten at any moment of a start, the others among the steps
            since, limit_s = ("start", 0.8) if rng.random() < 0.4 else ("first step", most_s)
            delay_s = rng.uniform(0, limit_s)
            signals = [(since, delay_s, int(signal.Signals[name]), None if who == "all ranks" else [whom])]
        result = run.start(ranks, {"at": "everywhere", "do": "RECORD", "where": "here"}, signals=signals)
        found.busy_s += result.wall_s
        found.late += len(result.late)
        found.fallbacks += result.stderr[0].count("is damaged")
        check_codes(result, kind, whom)
        if result.code == DONE:
            return found
        if result.hit:
            found.hits.append((kind, result.hit[0].place, result.hit[0].saving))
        hurt = {name for name in hurt if (run.checkpoints / name).exists()}
        good = sorted(p for p in run.checkpoints.glob("step-*") if p.name not in hurt)
        if kind == "SIGKILL, all ranks" and len(good) >= 2 and rng.random() < DAMAGED_SHARE:
            how = rng.choice(DAMAGES)
            harm(good[-1], how, rng)
            hurt.add(good[-1].name)
            found.damages[how] += 1


def lost_steps(run: Run) -> list[int]:
    """For every start after the first: steps that were done before it, and not saved."""
    lost, last = [], 0
    for record in run.records():
        if record["kind"] == "start":
            lost.append(last - record["step"])
        last = record["step"] if record["kind"] in ("start", "step") else last
    return lost[1:]


def proof(run: Run) -> str:
    """What `rumpun ledger verify` prints, without the folder. Ends the soak where it does not prove."""
    code = "import sys; from launch.cli import main; sys.argv[0] = 'rumpun'; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "ledger", "verify", str(run.home)],
        env=os.environ | {"PYTHONPATH": str(REPO)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"the ledger is not proven:\n{done.stdout}{done.stderr}")
    return "\n".join(line for line in done.stdout.splitlines() if str(run.home) not in line).strip()


def apart(run: Run, whole: Run, name: str) -> float:
    """The largest relative difference of a number over all steps."""
    return max(abs(a[name] - b[name]) / abs(b[name]) for a, b in zip(run.steps(), whole.steps(), strict=True))


def weights_apart(run: Run, whole: Run) -> float:
    """The largest |difference| / |weights| of a tensor of the final models."""
    from safetensors.torch import load_file

    ours, theirs = (load_file(r.starts[-1].out / "model" / "model.safetensors") for r in (run, whole))
    return max(float((ours[k] - theirs[k]).norm() / theirs[k].norm()) for k in theirs)


def section(title: str, found: Soak, run: Run, whole: Run, result: str) -> str:
    """A soak as Markdown."""
    lost, steps = lost_steps(run), len(run.steps())
    whole_s = whole.starts[0].wall_s
    each_s = (found.busy_s - whole_s) / max(1, len(found.hits))
    kinds = Counter(kind for kind, _, _ in found.hits)
    places = Counter(place for _, place, _ in found.hits)
    saving = Counter(saver for _, _, saver in found.hits if saver)
    worlds = Counter(found.starts)
    facts = [
        ("result", result),
        ("kills", f"{len(found.hits)} in {len(found.starts)} starts"),
        ("steps", f"{steps:,} of {BATCH} samples, a checkpoint every {EVERY}"),
        (
            "steps done again",
            f"{sum(lost):,}: {sum(lost) / max(1, len(lost)):.1f} a restart, {max(lost, default=0)} at most",
        ),
        ("checkpoints damaged", ", ".join(f"{n} {how}" for how, n in found.damages.items()) or "none"),
        ("starts that fell back to an older checkpoint", found.fallbacks),
        ("ranks that the launcher had to end", found.late),
        (
            "seconds of all starts",
            f"{found.busy_s:.0f}, undisturbed {whole_s:.0f}: {each_s:.1f} more for "
            "each kill, in which ranks start anew (without imports) and do steps again",
        ),
    ]
    if len(worlds) > 1:
        each = ", ".join(f"{ranks}×{stage}: {n}" for (ranks, stage), n in sorted(worlds.items()))
        facts.append(("ranks × ZeRO stage of the starts", each))
    return "\n\n".join(
        [
            f"## {title}",
            table(("", ""), facts),
            table(("what", "kills"), kinds.most_common()),
            table(
                ("where the rank was", "kills"),
                [*places.most_common(), *((f"… while its saver wrote {what}", n) for what, n in saving.most_common())],
            ),
            "```\n" + proof(run) + "\n```",
        ]
    )


def main() -> int:
    """Run both soaks, print the page and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few kills, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="instead of results/soak.md; --quick alone writes nothing")
    given = parser.parse_args()
    (kills, steps), (kills_resized, steps_resized) = ((6, 60), (4, 50)) if given.quick else ((60, 600), (40, 400))
    load, started = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch, Zygote() as zygote:
        folder = Path(scratch)
        data = make_data(folder / "data")

        def new(name: str, steps: int, **settings: Any) -> Run:
            return Run(
                zygote, data, folder / name, settings={**SETTINGS, "max_steps": steps, **settings},
                checkpoint={"every_steps": EVERY, "keep": 3},
            )  # fmt: skip

        whole = new("whole", steps)
        whole.start(2, expect=DONE)
        run = new("killed", steps)
        found = soak(run, random.Random(given.seed), kills=kills, whole=whole, resize=False)
        same = numbers(run.steps()) == numbers(whole.steps()) and run.weights() == whole.weights()
        first = section(
            "1. Two ranks, killed", found, run, whole,
            "all losses, gradient norms, rates and samples and the final weights are **the same bits**"
            if same else "**DIFFERENT**",
        )  # fmt: skip

        alone = new("alone", steps_resized, zero_stage=0)
        alone.start(1, expect=DONE)
        resized = new("resized", steps_resized)
        found_resized = soak(resized, random.Random(given.seed + 1), kills=kills_resized, whole=alone, resize=True)
        loss, norm = (apart(resized, alone, name) for name in ("loss", "grad_norm"))
        orders = [s["order"] for s in resized.steps()] == [s["order"] for s in alone.steps()]
        close = orders and loss < LIMIT
        second = section(
            "2. Killed, and resized at every start", found_resized, resized, alone,
            f"{'the same samples' if orders else '**OTHER SAMPLES**'}; against one process under ZeRO 0, relative: "
            f"losses within **{loss:.1e}** (limit {LIMIT:.0e}), gradient norms {norm:.1e}, "
            f"weights {weights_apart(resized, alone):.1e}",
        )  # fmt: skip
    packages = versions(sys.executable, ["torch", "deepspeed", "transformers"])
    total = len(found.hits) + len(found_resized.hits)
    page = "\n\n".join(
        [
            "# A training that was killed " + f"{total} times",
            *machine_lines(threads=1, load_before=load, packages=packages),
            f"gloo, fp32, a Llama of 2 layers of 32; seed {given.seed}; {time.perf_counter() - started:.0f} s in all. "
            "Ranks are forked from a process that has imported everything; a start from nothing adds its imports to "
            "what a kill costs.",
            first,
            second,
        ]
    )
    print(page)
    out = given.out or (None if given.quick else RESULTS / "soak.md")
    if out is not None:
        out.write_text(page + "\n")
    return 0 if same and close else 1


if __name__ == "__main__":
    sys.exit(main())
