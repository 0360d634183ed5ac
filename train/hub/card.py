"""The model card: a pure function of the model's folder and the run that made it.

Every figure comes from a file of the run; what no file tells is "not recorded". No text of a corpus is quoted, and
names from elsewhere are escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from train.hub import facts as read
from train.hub.facts import CardFacts, interval, mapping, objects, read_facts
from train.hub.licences import LICENCES, BaseLicence, base_licence
from train.hub.markdown import MISSING, fenced, number, recipe_text, table, text, yaml_lines
from train.hub.usage import with_sentence_transformers, with_transformers

_HEADLINE = ("recall@1", "recall@10", "ndcg@10", "mrr@10")
_COMPARED = "recall@10"


def make_card(
    model: Path,
    run: Path | None,
    *,
    name: str,
    licence: str | None,
    base: BaseLicence | None = None,
    data_licences: Mapping[str, str] | None = None,
) -> str:
    """The text of README.md.

    Args:
        model: the exported folder. run: its run folder, if there is one.
        name: ORG/NAME on the hub. licence: identifier of the model's licence, if anybody has said.
        base: the base and its licence; read from the run by default.
        data_licences: licence by source; a key may be a pattern (`news_*`).
    """
    facts = read_facts(model, run)
    base = base if base is not None else base_licence(run)
    sections = [
        _front(facts, name, licence, base),
        _head(facts, name, base),
        _usage(facts, name),
        _results(facts),
        _data(facts, data_licences or {}),
        _clean(facts),
        _parity(facts),
        _training(facts),
        _licence(licence, base),
        _limits(facts),
        _recipe(facts),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _front(facts: CardFacts, name: str, licence: str | None, base: BaseLicence) -> list[str]:
    known = licence is None or licence in LICENCES
    own = read.finetuned(facts)
    results = []
    for (system, set_), row in read.rows(facts).items():
        found = [(m, interval(row.get("metrics"), m)) for m in mapping(row.get("metrics"))]
        metrics = [{"type": m, "value": round(cell[0], 6), "name": m} for m, cell in found if cell]
        if system == own and metrics:
            results.append(
                {
                    "task": {"type": "information-retrieval", "name": "Information Retrieval"},
                    "dataset": {"type": set_, "name": set_},
                    "metrics": metrics,
                }
            )
    values: dict[str, Any] = {
        "language": read.languages(facts),
        "license": licence if known else "other",
        "license_name": None if known else licence,
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "base_model": base.base if base.base and base.base.count("/") == 1 else None,
        "tags": ["sentence-transformers", "feature-extraction", "sentence-similarity", "transformers", "rumpun"],
        "datasets": _hub_datasets(facts),
        "model-index": [{"name": name.split("/")[-1], "results": results}] if results else None,
    }
    return ["---", *yaml_lines(values), "---"]


def _hub_datasets(facts: CardFacts) -> list[str]:
    """Data sets of the Hub that the corpus was read from (`hf://datasets/ORG/NAME`), as the recipe names them."""
    found = []
    files = facts.config("corpus", "corpus").get("files")
    for file in files if isinstance(files, list) else []:
        parts = str(file).removeprefix("hf://datasets/").removeprefix("hf://").split("/")
        if str(file).startswith("hf://") and len(parts) >= 2:
            found.append("/".join(parts[:2]).split("@")[0])
    return sorted(set(found))


def _head(facts: CardFacts, name: str, base: BaseLicence) -> list[str]:
    shape = facts.shape
    prompts = [f"query {text(shape.query_prompt)}", f"passage {text(shape.passage_prompt)}"]
    stated = ", ".join(prompts) if shape.query_prompt or shape.passage_prompt else "none"
    prefixes = shape.prefixes or facts.config("finetune", "finetune").get("matryoshka")
    shorter = (", ".join(map(number, prefixes)) or "none") if isinstance(prefixes, list) else MISSING
    origin = "made from a seed, trained from nothing" if base.made else text(base.base)
    cut = facts.counts("truncate")
    if cut.get("base_layers") and cut.get("layers"):
        origin += f"; {number(cut['layers'])} of its {number(cut['base_layers'])} layers are kept"
    truth = [
        ("base", origin),
        ("parameters", number(mapping(facts.phases.get("finetune")).get("parameters"))),
        ("dimension of the vectors", number(shape.dimension)),
        ("shorter prefixes that were trained too", shorter),
        ("longest text", f"{number(shape.max_tokens)} tokens"),
        ("pooling", text(shape.pooling) + (", normalised" if shape.normalised else "")),
        ("attention", "bidirectional" if shape.bidirectional else "as the architecture has it"),
        ("prompts", stated),
        ("lineage", f"`{value}`" if (value := read.lineage(facts)) else MISSING),
    ]
    return [
        f"# {text(name.split('/')[-1])}",
        "",
        "A text-embedding model for search and similarity in Malaysian text, made with rumpun. Every figure below was "
        "read from the files of the run that made it.",
        "",
        *table(("", ""), truth),
        "",
        "The lineage is one SHA-256 over the content of every stage behind these weights: models with the same one "
        "have the same data, settings and weights behind them.",
    ]


def _usage(facts: CardFacts, name: str) -> list[str]:
    plain = with_transformers(name, facts.shape)
    lines = ["## Use", "", *fenced(with_sentence_transformers(name, facts.shape), "python"), ""]
    if plain is None:
        return [*lines, "With transformers alone, pool as `1_Pooling/config.json` says."]
    return [*lines, "With transformers alone:", "", *fenced(plain, "python")]


def _cell(row: Mapping[str, Any], metric: str) -> str:
    value = interval(row.get("metrics"), metric)
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]" if value else MISSING


def _results(facts: CardFacts) -> list[str]:
    lines, own, rows = ["## Results", ""], read.finetuned(facts), read.rows(facts)
    if own is None or not rows:
        return [*lines, f"Retrieval: {MISSING}."]
    sizes = {str(s.get("name")): s for s in objects(facts.results.get("sets"))}
    sets = list(dict.fromkeys(set_ for _, set_ in rows))
    systems = list(dict.fromkeys(system for system, _ in rows))
    samples = mapping(facts.results.get("bootstrap")).get("samples")
    lines += [
        f"Means over queries with bootstrap 95 % intervals ({number(samples)} resamplings). Development sets: settings "
        "may have been chosen with them.",
        "",
        *table(
            ("set", "documents", "queries", *_HEADLINE),
            (
                (
                    text(set_),
                    number(sizes.get(set_, {}).get("documents")),
                    number(rows[own, set_].get("queries")),
                    *(_cell(rows[own, set_], metric) for metric in _HEADLINE),
                )
                for set_ in sets
                if (own, set_) in rows
            ),
        ),
        "",
        f"{_COMPARED} beside the other systems of the same evaluation:",
        "",
        *table(
            ("set", *map(text, systems)),
            ((text(set_), *(_cell(rows.get((s, set_), {}), _COMPARED) for s in systems)) for set_ in sets),
        ),
    ]
    means = [m for m in objects(facts.results.get("means")) if m.get("subset") == "all"]
    if means:
        lines += ["", *table(("mean over sets", *_HEADLINE), _means(means))]
    for row in [r for r in objects(facts.results.get("sts")) if r.get("system") == own]:
        spearman = _cell(row, "spearman")
        lines += ["", f"Similarity, {text(row.get('set'))} ({number(row.get('pairs'))} pairs): Spearman {spearman}."]
    return lines


def _means(means: list[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [(text(m.get("system")), *(_cell(m, metric) for metric in _HEADLINE)) for m in means]


def _data(facts: CardFacts, licences: Mapping[str, str]) -> list[str]:
    def licence(source: str) -> str:
        exact = licences.get(source)
        return text(exact or next((v for k, v in licences.items() if fnmatch(source, k)), None))

    lines = ["## Training data", ""]
    kept: dict[str, int] = {}
    for row in objects(facts.corpus.get("sources")):
        source = str(row.get("source"))
        kept[source] = kept.get(source, 0) + (read.whole(row.get("kept")) or 0)
    if kept:
        lines += table(
            ("source of the corpus", "documents", "licence"),
            ((text(s), number(n), licence(s)) for s, n in kept.items()),
        )
    else:
        lines.append(f"Sources of the corpus: {MISSING}.")
    pairs = mapping(facts.pairs.get("sources"))
    if pairs:
        rows = ((text(s), number(n), licence(str(s))) for s, n in pairs.items())
        lines += ["", *table(("source of labelled pairs", "pairs", "licence"), rows)]
    counts = facts.counts("corpus")
    lines += ["", f"- documents read: {number(counts.get('read'))}, kept: {number(counts.get('kept'))}"]
    mined = facts.config("mine", "mine")
    if "mine" in facts.stages:
        teacher = mapping(mined.get("teacher"))
        who = Path(str(teacher.get("model") or teacher.get("kind") or "")).name
        lines.append(f"- mined pairs: {number(facts.counts('mine').get('pairs'))}, teacher {text(who)}")
    if "synth" in facts.stages:
        made = facts.config("synth", "synth").get("generator")
        lines.append(f"- pairs with made questions: {number(facts.counts('synth').get('pairs'))}, by {text(made)}")
    for row in objects(mapping(facts.phases.get("finetune")).get("blend")):
        share = number(row.get("rows_per_epoch"))
        lines.append(f"- an epoch of finetuning: {share} of {number(row.get('rows'))} from {text(row.get('source'))}")
    return lines


def _clean(facts: CardFacts) -> list[str]:
    lines = ["## Evaluation text in the training data", ""]
    if not facts.gates:
        return [*lines, f"Proof that none is in it: {MISSING}."]
    removed = facts.counts("corpus").get("evaluation_overlap")
    lines.append(f"Documents left out of the corpus because they repeat evaluation text: {number(removed)}.")
    for name, proof in facts.gates.items():
        sets = proof.get("evaluation_sets")
        checked = mapping(proof.get("checked"))
        told = ", ".join(f"{number(n)} of {text(s)}" for s, n in checked.items()) or MISSING
        lines += [
            "",
            f"`{name}` compared all training texts ({told}) with {number(proof.get('evaluation_texts'))} evaluation "
            f"texts of {number(len(sets) if isinstance(sets, list) else None)} sets, near copies included: "
            f"{number(proof.get('overlapping'))} overlap.",
        ]
    return lines


def _parity(facts: CardFacts) -> list[str]:
    parity, lines = facts.parity, ["## Is this the trained model?", ""]
    difference = parity.get("max_abs_difference")
    if not isinstance(difference, (int, float)):
        return [*lines, f"Comparison with the training model: {MISSING}."]
    half = parity.get("dtype") in ("bf16", "fp16")
    lines.append(
        f"The largest difference of any component of any vector of {number(parity.get('texts'))} texts from the "
        f"training model (fp32) is {difference:.1e}"
        + ("." if half else f"; {text(parity.get('tolerance'))} was allowed.")
        + (f" The weights are {parity['dtype']}." if half else "")
    )
    against = mapping(parity.get("against"))
    if against:
        least = parity.get("min_cosine")
        asked = "smallest cosine" + (f" (at least {text(least)} asked)" if least is not None else "")
        rows = []
        for name, told in against.items():
            told = mapping(told)
            worst, cosine = told.get("max_abs_difference"), told.get("min_cosine")
            rows.append((text(name), f"{worst:.1e}" if isinstance(worst, (int, float)) else MISSING, number(cosine, 7)))
        lines += ["", *table(("loaded with", "largest difference", asked), rows)]
    return lines


def _training(facts: CardFacts) -> list[str]:
    lines = ["## Training", ""]
    if not facts.phases:
        return [*lines, f"Cost: {MISSING}."]
    rows = []
    for name, told in facts.phases.items():
        seconds, world = told.get("train_s"), told.get("world_size")
        numbers = isinstance(seconds, (int, float)) and isinstance(world, int)
        rows.append(
            (
                name,
                number(told.get("steps")),
                number(told.get("tokens")),
                f"{number(world)} × {text(told.get('device'))}",
                number(seconds / 3600, 3) if isinstance(seconds, (int, float)) else MISSING,
                number(seconds * world / 3600, 3) if numbers else MISSING,  # type: ignore[operator]
                text(told.get("precision")),
            )
        )
    header = ("phase", "steps", "tokens", "processes", "hours", "process hours", "precision")
    first = facts.stages.get("export") or facts.stages.get("finetune") or {}
    made = f"Made with rumpun {text(first.get('rumpun'))}, commit {text(first.get('commit'))}."
    return [*lines, *table(header, rows), "", "The world size is that of the last start of a phase.", "", made]


def _licence(licence: str | None, base: BaseLicence) -> list[str]:
    lines = ["## Licence", "", f"Of this model: {text(licence)}."]
    if base.made:
        return lines
    entry = LICENCES.get(base.name or licence or "") if base.name or not base.base else base.licence
    lines.append(f"Of its base {text(base.base)}: {text(entry.title if entry else base.name)}.")
    if entry is not None:
        lines.append(f"Its terms: <{entry.source}>.")
        lines += ["", f"**{entry.built_with}**"] if entry.built_with else []
        lines += ["", entry.notice] if entry.notice else []
    return lines


def _limits(facts: CardFacts) -> list[str]:
    lines = ["## Limits", ""]
    if facts.shape.max_tokens:
        lines.append(f"- Text after {facts.shape.max_tokens:,} tokens is not read.")
    codes = read.languages(facts)
    told = ", ".join(codes) if codes else MISSING
    lines.append(f"- Languages of the corpus: {told} (guessed, or as its files say). Others are untested or zero-shot.")
    lines.append("- Scores rank texts; they are no probabilities, and a threshold must be measured on your own texts.")
    lines.append("- It repeats what its corpus takes for granted, as every model does; nobody has audited it for bias.")
    return lines


def _recipe(facts: CardFacts) -> list[str]:
    if not facts.recipe:
        return ["## Recipe", "", f"{MISSING.capitalize()}."]
    body = fenced(recipe_text(facts.recipe), "toml")
    return ["## Recipe", "", "<details><summary>every setting of the run</summary>", "", *body, "", "</details>"]
