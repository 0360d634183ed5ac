"""The section on robustness: what typing errors, other spellings, cut texts and changed meanings cost.

Invariant: figures are those of eval/robustness.json. A loss is the clean value less the damaged one on the same
queries, so its interval is a paired one; a run without that file has no such section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.report import charts_robust
from eval.report.blocks import cell, fold, matrix, section, signed, spread, words
from eval.report.parts import make_chart

_DRAWN = ("finetuned", "pretrained", "untrained", "bm25")
"""Kinds of systems that the plot shows, at most three of them; the table has all."""
_MOST = 12  # kinds that the plot shows


def robust(record: Mapping[str, Any] | None, results: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The section; None where the run has no such file or it holds no row.

    Raises:
        KeyError, TypeError, ValueError: a figure that it needs is not there.
    """
    if record is None or not record["rows"]:
        return None
    rows, metric = record["rows"], str(record["metric"])
    told = record.get("systems") or (results or {}).get("systems") or []
    kinds = {system["name"]: system["kind"] for system in told}
    systems = list(dict.fromkeys(row["system"] for row in rows))
    damages = [kind for kind in record["kinds"] if any(row["kind"] == kind for row in rows)]
    chosen = next((s for s in systems if kinds.get(s) == "finetuned"), systems[0])
    drawn = [s for kind in _DRAWN for s in systems if kinds.get(s) == kind][:3] or systems[:3]
    strongest = {(row["kind"], row["system"]): row for row in rows}  # rows of a kind rise in strength
    lost = {(words(kind), s): _loss(row) for (kind, s), row in strongest.items()}
    shown = sorted(damages, key=lambda k: -strongest[k, chosen]["lost"] if (k, chosen) in strongest else 0.0)[:_MOST]
    svg = charts_robust.losses(
        [words(kind) for kind in shown], [(s, kinds.get(s, "baseline")) for s in drawn], lost, metric=metric,
        title=f"{metric} lost to each kind of damage at its greatest strength", ident="robust",
    )  # fmt: skip
    note = "At the greatest strength of each kind; what lies right of the line is lost."
    if len(shown) < len(damages):
        note = f"The {len(shown)} of {len(damages)} kinds that cost {chosen} most. {note}"
    last = {kind: strongest[kind, next(s for k, s in strongest if k == kind)]["strength"] for kind in damages}
    at_last = [row for row in rows if row["strength"] == last[row["kind"]]]
    return section(
        "Robustness",
        [_worst(chosen, damages, strongest, metric, record.get("about") or {}), _safe(chosen, damages, strongest)],
        note=(
            f"Texts were damaged on purpose, the same way for every system. Shown is the {metric} that this loses, "
            f"over {rows[0]['queries']:,} queries of {len(record['sets'])} "
            f"set{'s' if len(record['sets']) != 1 else ''}, with paired 95 % intervals."
        ),
        charts=[make_chart(f"What costs {metric}", svg, note)],
        matrices=[
            matrix(f"{metric} lost at the greatest strength", "damage", systems, _lines(at_last, damages, systems)),
            *_others(record, systems),
        ],
        more=[matrix(f"{metric} lost at every strength", "damage", systems, _lines(rows, damages, systems))],
        folds=[fold("Damaged texts to read", _examples(record.get("examples") or []))],
    )


def _examples(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a reader needs of an example: the damage, the texts, and where the answer went."""
    found = []
    for row in rows:
        ranks = f"{row['before']} → {row['after'] if row['after'] is not None else 'not found'}"
        damage = f"{words(row['kind'])}, {_strength(row['strength'])}, {row['system']}, rank of the answer {ranks}"
        found.append({"": damage, "as it was": row["original"], "damaged": row["perturbed"]})
    return found


def _loss(row: Mapping[str, Any]) -> dict[str, float]:
    return {"mean": row["lost"], "low": row["lost_low"], "high": row["lost_high"]}


def _lines(
    rows: Sequence[Mapping[str, Any]], damages: Sequence[str], systems: Sequence[str]
) -> list[tuple[str, str, bool, list[dict[str, Any] | None]]]:
    """One line a kind and strength; the kind is named on its first."""
    lines = []
    for kind in damages:
        strengths = list(dict.fromkeys(row["strength"] for row in rows if row["kind"] == kind))
        for number, strength in enumerate(strengths):
            found = {r["system"]: r for r in rows if r["kind"] == kind and r["strength"] == strength}
            any_row = next(iter(found.values()))
            cells = [
                cell(
                    signed(-found[s]["lost"]), small=spread(-found[s]["lost_high"], -found[s]["lost_low"], sign=True),
                    shade=2 * found[s]["lost"], tone="warn",
                ) if s in found else None
                for s in systems
            ]  # fmt: skip
            label = words(kind) if number == 0 else "stronger"
            note = f"{_strength(strength)}, {any_row['changed']:,} of {any_row['queries']:,} changed"
            lines.append((label, note, number > 0, cells))
    return lines


def _strength(value: Any) -> str:
    return f"{100 * value:.0f} %" if isinstance(value, (int, float)) else str(value)


def _worst(
    chosen: str, damages: Sequence[str], strongest: Mapping[tuple[str, str], Mapping[str, Any]], metric: str,
    about: Mapping[str, str],
) -> str:  # fmt: skip
    found = [strongest[kind, chosen] for kind in damages if (kind, chosen) in strongest]
    worst = max(found, key=lambda row: row["lost"])
    if worst["lost_low"] <= 0:
        return f"No kind of damage costs {chosen} more {metric} than chance may."
    meaning = f" ({about[worst['kind']]})" if about.get(worst["kind"]) else ""
    return (
        f"{chosen} loses most to {words(worst['kind'])}{meaning}: {metric} "
        f"{worst['mean'] + worst['lost']:.3f} → {worst['mean']:.3f}, a loss of {worst['lost']:.3f} "
        f"[{worst['lost_low']:.3f}, {worst['lost_high']:.3f}] at {_strength(worst['strength'])}."
    )


def _safe(chosen: str, damages: Sequence[str], strongest: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """Which kinds cost nothing that can be told from chance."""
    names = [words(k) for k in damages if (k, chosen) in strongest and strongest[k, chosen]["lost_low"] <= 0]
    if not names or len(names) == len(damages):
        return ""
    return f"No loss beyond chance: {', '.join(names)}."


def _others(record: Mapping[str, Any], systems: Sequence[str]) -> list[dict[str, Any]]:
    """Whether a changed meaning is noticed, and whether a question of another field stands out, where it was asked."""
    found = []
    noticed = [row for row in record.get("noticed") or [] if row.get("mean") is not None]
    lines = []
    for kind, strength in dict.fromkeys((row["kind"], row["strength"]) for row in noticed):
        told = {row["system"]: row for row in noticed if (row["kind"], row["strength"]) == (kind, strength)}
        lines.append((words(kind), _strength(strength), False, [_share(told.get(s)) for s in systems]))
    found.append(matrix("How often the true passage stays above its falsified copy", "falsified", systems, lines))
    apart = [row for row in record.get("out_of_domain") or [] if row.get("mean") is not None]
    lines = []
    for name in dict.fromkeys(row.get("set") for row in apart):
        told = {row["system"]: row for row in apart if row.get("set") == name}
        lines.append((name or "mean over sets", "", False, [_share(told.get(s)) for s in systems]))
    title = "How well scores tell a question of another field (AUROC, 0.5 is chance)"
    return [*found, matrix(title, "set", systems, lines)]


def _share(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return cell(f"{row['mean']:.3f}", small=spread(row["low"], row["high"]), shade=(row["mean"] - 0.5) * 2)
