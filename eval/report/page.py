"""One self-contained HTML page for a run, and the same results as text.

Invariant: the page is a pure function of the files of the run folder: it computes nothing anew, loads nothing from
anywhere, runs no script, and escapes every text that came from a corpus. A file that is missing leaves its section out
and is named at the end of the page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_prep.files import write_atomically, write_json
from eval.metrics import metric_names
from eval.report import parts
from eval.report.chain import chain, read_chain
from eval.report.cost import cost_tables
from eval.report.cut import cut
from eval.report.data import data_sections
from eval.report.evidence import evidence
from eval.report.facts import RunFacts, read_run, time_summary
from eval.report.robust import robust
from eval.report.summary import summary
from eval.report.training import training
from eval.table import results_lines

TEMPLATES = Path(__file__).parent / "templates"


def write_report(*, run: Path, out: Path, title: str) -> dict[str, int | float]:
    """Write `report.html`, `table.txt` and `time.json` to `out`.

    Args:
        run: a run folder; only its files are read.
        out: an existing folder.
        title: the heading, usually the name of the run.

    Returns:
        Counts: stages, systems, sets, charts, examples, missing sections, bytes of the page, overhead_percent.

    Raises:
        UserError: the run holds no finished stage, or the disk is full.
    """
    facts = read_run(run)
    context = _context(facts, title, read_chain(run, facts.missing))
    page = render("report.html.j2", context)
    write_atomically(out / "report.html", page.encode())
    write_atomically(out / "table.txt", (_table(facts) + "\n").encode())
    times = time_summary(facts.stages)
    write_json(out / "time.json", times)
    results = facts.results or {"systems": [], "sets": []}
    return {
        "stages": len(facts.stages),
        "systems": len(results["systems"]),
        "sets": len(results["sets"]),
        "charts": page.count("<svg"),
        "examples": len((context["wrong"] or {"examples": []})["examples"]),
        "missing": len(context["missing"]),
        "bytes": len(page.encode()),
        "overhead_percent": times["overhead_percent"],
    }


def page_of(run: Path, *, title: str) -> str:
    """The page of a run as text. Raises `UserError` where no stage of it is finished."""
    facts = read_run(run)
    return render("report.html.j2", _context(facts, title, read_chain(run, facts.missing)))


def render(template: str, context: dict[str, Any]) -> str:
    """A page from its template; every value that is not ours is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(context)


def _table(facts: RunFacts) -> str:
    if facts.results is None:
        return f"no results: {facts.missing['results']}"
    return "\n".join(results_lines(facts.results))


def _context(facts: RunFacts, title: str, timeline: dict[str, Any] | None) -> dict[str, Any]:
    data, lacking = data_sections(facts.data)
    missing = dict(facts.missing) | lacking
    parity = parts.parity(facts.parity)
    if facts.parity is not None and parity is None:
        missing["export parity"] = "export/parity.json lacks a figure"
    if facts.recipe is None:
        missing["recipe"] = "the run keeps no recipe.toml; the settings of each stage are shown instead"
    context: dict[str, Any] = {
        "title": title,
        "headline": parts.headline(facts, title),
        "summary": summary(facts),
        "evidence": _evidence(facts, missing),
        "tables": None,
        "training": training(facts.phases),
        "cut": cut(facts.probe, facts.stages),
        "flow": parts.flow(facts.stages),
        "flow_line": parts.flow_line(facts.stages),
        "data": data,
        "time": parts.time_part(facts.stages),
        "cost": cost_tables(facts),
        "chain": chain(timeline),
        "wrong": parts.wrong(facts),
        "parity": parity,
        "folded": _folded(facts),
        "footer": _footer(facts),
    }
    if facts.results is not None:
        context |= {
            "metric_names": metric_names(facts.results["ks"]),
            "all_names": parts.all_names(facts.results),
            "level": round(100 * facts.results["bootstrap"]["level"]),
            "samples": facts.results["bootstrap"]["samples"],
            "tables": parts.result_tables(facts.results, per_set=False),
            "set_tables": parts.result_tables(facts.results, per_set=True),
            "result_charts": parts.result_charts(facts.results),
            "heat": parts.heat(facts.results),
        }
    context["missing"] = sorted(missing.items())
    context["contents"] = _contents(context)
    return context


def _evidence(facts: RunFacts, missing: dict[str, str]) -> dict[str, Any]:
    """The sections on what the figures are worth, by name; None for those that the run has no figures for."""
    found: dict[str, Any] = dict.fromkeys(("significance", "groups", "robustness", "sts", "published"))
    if facts.results is not None:
        made, lacking = evidence(facts.results)
        found |= made
        missing |= lacking
    try:
        found["robustness"] = robust(facts.robustness, facts.results)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError):
        missing["robustness"] = "eval/robustness.json lacks a figure"
    return found


def _contents(context: dict[str, Any]) -> list[tuple[str, str]]:
    """(anchor, heading) of every section that is there, in the order of the page."""
    worth = context["evidence"]

    def part(name: str) -> list[tuple[str, str]]:
        return [(worth[name]["ident"], worth[name]["title"])] if worth[name] else []

    chained = context["chain"]
    return [
        *([("at-results", "Results")] if context["tables"] else []),
        *part("significance"),
        *([("at-sets", "Set by set")] if context["tables"] else []),
        *(entry for name in ("groups", "robustness", "sts", "published") for entry in part(name)),
        *([("at-fails", "Where it still fails")] if context["wrong"] else []),
        *([("at-training", "Training")] if context["training"] else []),
        ("at-cost", "Cost and time"),
        *([("at-chain", "Chain of jobs" if chained["jobs"] else "Starts and stages")] if chained else []),
        *([("at-cut", "What a cut costs")] if context["cut"] else []),
        *([("at-data", "Data, stage by stage")] if context["flow"] else []),
        *((part["ident"], part["title"]) for part in context["data"]),
        ("at-made", "How it was made"),
    ]


def _folded(facts: RunFacts) -> list[tuple[str, str]]:
    """Recipe, settings and versions, for the folded boxes."""
    boxes = []
    if facts.recipe is not None:
        boxes.append((f"Recipe as resolved ({facts.recipe[0]})", facts.recipe[1].rstrip()))
    settings = {stage.name: stage.config for stage in facts.stages if stage.config}
    if settings:
        boxes.append(("Settings of each stage", json.dumps(settings, indent=1, ensure_ascii=False)))
    if facts.results is not None:
        lines = [f"{s['name']}: {s['detail']}" for s in facts.results["systems"]]
        boxes.append(("Systems", "\n".join(lines)))
    versions: dict[str, str] = {}
    for phase in facts.phases.values():
        versions |= {str(k): str(v) for k, v in (phase.summary.get("versions") or {}).items()}
    made_by = {s.rumpun for s in facts.stages if s.rumpun}
    commits = {s.commit for s in facts.stages if s.commit}
    lines = [f"rumpun {', '.join(sorted(made_by))}"] if made_by else []
    lines += [f"commit {', '.join(sorted(commits))}"] if commits else []
    lines += [f"{name} {version}" for name, version in sorted(versions.items())]
    if lines:
        boxes.append(("Versions", "\n".join(lines)))
    return boxes


def _footer(facts: RunFacts) -> str:
    started = [stage.started_at for stage in facts.stages if stage.started_at]
    when = f" Its first stage started at {min(started)}." if started else ""
    return f"Every figure on this page comes from the files of the run.{when}"
