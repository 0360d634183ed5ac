"""What the page shows: the nearest texts of one model, or of two side by side, as plain HTML without a script.

Invariant: texts, queries and names come from outside and are escaped; nothing is loaded from anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError

if TYPE_CHECKING:
    from launch.search.index import Index

MAX_K = 100
"""Texts of one answer: more is no page to read."""
MAX_QUERY = 4000
"""Characters of a query: about what a browser carries in an address."""
_TEXT = 1200


@dataclass(frozen=True)
class Asked:
    """A query and how many texts it wants; `mistake` says what was wrong with what the browser sent."""

    query: str
    k: int
    mistake: str = ""


def read_asked(fields: dict[str, list[str]], *, k: int) -> Asked:
    """What the form sent; `k` is the default."""
    query = fields.get("q", [""])[0].strip()
    wanted = fields.get("k", [str(k)])[0].strip()
    mistake = ""
    if wanted.isascii() and wanted.isdigit() and 1 <= int(wanted[:9]) <= MAX_K:
        k = int(wanted)
    else:
        mistake = f"How many texts must be a number from 1 to {MAX_K}."
    if len(query) > MAX_QUERY:
        mistake = f"A query may have {MAX_QUERY:,} characters; this one has {len(query):,}."
    return Asked(query, k, mistake)


def answer(asked: Asked, indexes: Sequence[Index], documents: Sequence[str]) -> list[dict[str, Any]]:
    """For each model its name, the milliseconds that it took, and its nearest texts with the other model's rank."""
    import numpy as np

    ranked, spent = [], []
    for index in indexes:
        began = time.perf_counter()
        ranked.append(index.ranking(asked.query))
        spent.append(1000 * (time.perf_counter() - began))
    places = []
    for order, _ in ranked:
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(1, len(order) + 1)
        places.append(place)
    columns = []
    for side, index in enumerate(indexes):
        order, scores = ranked[side]
        other = places[1 - side] if len(indexes) == 2 else None
        hits = [
            {
                "rank": rank,
                "score": f"{scores[row]:.4f}",
                "width": round(100 * min(1.0, max(0.0, float(scores[row]))), 1),
                "text": _shown(documents[row]),
                "other": int(other[row]) if other is not None else None,
                "alone": other is not None and int(other[row]) > asked.k,
            }
            for rank, row in enumerate(order[: asked.k].tolist(), start=1)
        ]
        columns.append({"name": index.name, "dimension": index.embedder.dimension, "ms": spent[side], "hits": hits})
    return columns


def _shown(text: str) -> str:
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"


def page(asked: Asked, indexes: Sequence[Index], documents: Sequence[str], *, about: str) -> str:
    """The whole page: the form, and below it the answer where something was asked.

    Args:
        asked: the query, empty for none.
        indexes: one model or two.
        documents: the texts, in the order of the vectors.
        about: what is searched, for the line below the heading.
    """
    from jinja2 import Environment, StrictUndefined

    columns: list[dict[str, Any]] = []
    mistake = asked.mistake
    if asked.query and not mistake:
        try:
            columns = answer(asked, indexes, documents)
        except UserError as error:
            mistake = str(error)
    shared = sum(not hit["alone"] for hit in columns[0]["hits"]) if len(columns) == 2 else None
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_PAGE).render(
        query=asked.query[:MAX_QUERY], k=asked.k, max_k=MAX_K, max_query=MAX_QUERY, mistake=mistake, columns=columns,
        shared=shared, names=[index.name for index in indexes], about=about, style=_STYLE,
    )  # fmt: skip


_STYLE = """
:root { color-scheme: light dark; --page: #f7f7f4; --surface: #fff; --ink: #1c2321; --faint: #5d6864; --line: #dfe3df;
  --strong: #0b7a5e; --second: #8a4fa3; --warn: #a34a1f; }
@media (prefers-color-scheme: dark) { :root { --page: #121615; --surface: #1a201e; --ink: #e6ebe8; --faint: #9ba7a2;
  --line: #303936; --strong: #35c79b; --second: #c79be0; --warn: #f0a171; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 30px 24px 64px; }
h1 { font-size: 20px; margin: 0 0 4px; }
h2 { font-size: 16px; margin: 0; overflow-wrap: anywhere; color: var(--strong); }
.note { color: var(--faint); font-size: 14px; margin: 0 0 18px; overflow-wrap: anywhere; }
form { display: flex; flex-wrap: wrap; gap: 10px; align-items: end; margin-bottom: 22px; }
label { display: block; font-size: 13.5px; color: var(--faint); margin-bottom: 4px; }
.wide { flex: 1 1 280px; min-width: 0; }
input, button { font: inherit; padding: 9px 12px; border: 1px solid var(--line); border-radius: 8px; width: 100%;
  background: var(--surface); color: var(--ink); }
.count { width: 92px; }
button { width: auto; background: var(--strong); color: var(--page); border: 0; font-weight: 600; }
input:focus-visible, button:focus-visible { outline: 2px solid var(--strong); outline-offset: 2px; }
.wrong { color: var(--warn); font-weight: 600; }
.sides { display: grid; gap: 22px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); }
section { min-width: 0; } section + section h2 { color: var(--second); }
ol { list-style: none; margin: 10px 0 0; padding: 0; }
li { background: var(--surface); border: 1px solid var(--line); border-radius: 10px;
  padding: 11px 15px; margin-bottom: 10px; }
.head { display: flex; gap: 10px; align-items: center; font-size: 13.5px; font-variant-numeric: tabular-nums; }
.head b { font-size: 15px; }
.bar { flex: 1; height: 5px; border-radius: 3px; background: var(--line); overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--strong); }
section + section .bar i { background: var(--second); }
.other { color: var(--faint); } .alone { color: var(--warn); font-weight: 600; }
.text { margin: 5px 0 0; overflow-wrap: anywhere; white-space: pre-line;
  display: -webkit-box; -webkit-line-clamp: 6; -webkit-box-orient: vertical; overflow: hidden; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ query ~ ", " if query }}rumpun search</title>
<style>{{ style|safe }}</style>
</head>
<body>
<main>
<h1>Nearest texts</h1>
<p class="note">{{ about }}; {{ names|join(" beside ") }}</p>
<form method="get" action="" role="search">
<div class="wide"><label for="q">Query</label>
<input id="q" name="q" value="{{ query }}" maxlength="{{ max_query }}" autocomplete="off" autofocus></div>
<div class="count"><label for="k">Texts</label>
<input id="k" name="k" type="number" min="1" max="{{ max_k }}" value="{{ k }}"></div>
<button type="submit">Search</button>
</form>
{% if mistake %}<p class="wrong" role="alert">{{ mistake }}</p>{% endif %}
{% if shared is not none %}<p class="note">Both models show {{ shared }} of the {{ columns[0].hits|length }} texts; \
<span class="alone">marked</span> ones are not among the other's.</p>{% endif %}
{% if columns %}
<div class="sides">
{% for column in columns %}
<section aria-label="{{ column.name }}">
<h2>{{ column.name }}</h2>
<p class="note" style="margin: 0">{{ column.dimension }} dimensions, {{ "%.0f"|format(column.ms) }} ms</p>
<ol>
{% for hit in column.hits %}
<li><div class="head"><b>{{ hit.rank }}</b><span class="score">{{ hit.score }}</span>\
<span class="bar" aria-hidden="true"><i style="width: {{ hit.width }}%"></i></span>\
{% if hit.other %}<span class="{{ "alone" if hit.alone else "other" }}">rank {{ hit.other }} there</span>{% endif %}\
</div>
<p class="text">{{ hit.text }}</p></li>
{% endfor %}
</ol>
</section>
{% endfor %}
</div>
{% endif %}
</main>
</body>
</html>
"""
