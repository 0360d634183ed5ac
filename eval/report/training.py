"""The training section: the curves of each phase, and where a step's time and arithmetic went.

Invariant: a figure appears where the run wrote it and nowhere else; runs of older versions show fewer. A summary's own
figure goes before the mean over the steps, which leaves out the first step where there are more: it warms up memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.report import charts, charts_training
from eval.report.blocks import is_number
from eval.report.facts import Phase
from eval.report.parts import make_chart, number


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _plain(value: float) -> str:
    return f"{value:,.2f}".rstrip("0").rstrip(".") if abs(value) < 100 else f"{value:,.0f}"


# (key, label, how it is written); the summary's figure where it has one, else the mean over the steps
_FACTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("tokens_per_s", "tokens/s", _plain),
    ("sequences_per_s", "sequences/s", _plain),
    ("pairs_per_s", "pairs/s", _plain),
    ("trunk_mfu", "trunk MFU", _percent),
    ("hfu", "HFU", _percent),
    ("padding", "padding, of the computed tokens", _percent),
    ("data_wait", "waiting for data, of the time", _percent),
    ("gather", "exchanging embeddings, of the time", _percent),
    ("checkpoint_share", "held up by checkpoints, of the time", _percent),
    ("rank_imbalance", "tokens of the busiest rank above the mean", _percent),
    ("chunks", "forward passes of a rank in a step", _plain),
    ("kept_chunks", "of these kept their graph", _plain),
    ("duplicates_in_batch", "samples of a batch that share a text", _plain),
)
_RATES = ("tokens_per_s", "sequences_per_s")  # old summaries lack them, and the note says their like


def training(phases: Mapping[str, Phase]) -> list[dict[str, Any]]:
    """For each phase its chart, the facts as (label, value), and the convention behind MFU where one is claimed."""
    drawn = []
    colours = {"pretrain": "pretrained", "finetune": "finetuned"}
    for name, phase in phases.items():
        title = {"pretrain": "Continued pretraining", "finetune": "Contrastive finetuning"}.get(name, name)
        colour = charts.KIND_COLOURS[colours.get(name, "finetuned")]
        label = f"{title}: loss, learning rate, tokens per second"
        svg = charts_training.training(phase.steps, phase.validations, colour=colour, title=label, ident=name)
        facts = _facts(phase)
        claimed = any(label in ("trunk MFU", "HFU") for label, _ in facts)
        convention = phase.summary.get("flops_convention") if claimed else None
        drawn.append({"chart": make_chart(title, svg, _note(phase)), "facts": facts, "convention": convention})
    return drawn


def _facts(phase: Phase) -> list[tuple[str, str]]:
    """The figures that this phase wrote."""
    shown = []
    for key, label, written in _FACTS:
        value = phase.summary.get(key)
        if not is_number(value) and key not in _RATES:
            value = _mean([s.get(key) for s in phase.steps])
        if is_number(value):
            shown.append((label, written(value)))
    return shown


def _mean(values: Sequence[Any]) -> float | None:
    found = [v for v in values if is_number(v)]
    steady = found[1:] or found
    return sum(steady) / len(steady) if steady else None


def _note(phase: Phase) -> str:
    summary, parts = phase.summary, []
    first, last = phase.steps[0]["loss"], phase.steps[-1]["loss"]
    parts.append(f"{len(phase.steps):,} steps, loss {first:.3f} → {last:.3f}")
    before, after = summary.get("validation_loss_before"), summary.get("validation_loss_after")
    if is_number(before) and is_number(after):
        parts.append(f"validation loss {before:.3f} → {after:.3f}")
    if summary.get("world_size"):
        ranks = summary["world_size"]
        zero, precision, device = (summary.get(key, "?") for key in ("zero_stage", "precision", "device"))
        layout = f", {summary['layout']}" if summary.get("layout") else ""
        parts.append(f"{ranks} rank{'s' if ranks != 1 else ''}, ZeRO {zero}, {precision}{layout} on {device}")
    if summary.get("tokens") and summary.get("train_s") and not summary.get("tokens_per_s"):
        parts.append(f"{number(round(summary['tokens'] / summary['train_s']))} tokens/s on average")
    if summary.get("truncated"):
        parts.append(f"{number(summary['truncated'])} texts were cut to the longest length")
    if restarts := summary.get("restarts"):
        parts.append(f"interrupted and resumed {restarts} time{'s' if restarts != 1 else ''}")
    if summary.get("startup_s"):
        parts.append(f"{charts.seconds(summary['startup_s'])} to start")
    memory, host = summary.get("peak_memory_gb"), summary.get("peak_rss_gb")
    if is_number(memory) and summary.get("device") != "cpu":
        parts.append(f"peak memory {memory:.1f} GiB on the device")
    elif is_number(host):
        parts.append(f"peak memory {host:.1f} GiB")
    return "; ".join(parts) + "."
