"""What the comparison of mining policies works on: documents, labelled pairs and evaluation sets."""

from __future__ import annotations

from pathlib import Path

from data_prep.corpus.decontaminate import DecontaminateConfig
from data_prep.corpus.keys import text_key
from data_prep.corpus.language import tag
from data_prep.files import content_id, expand, read_jsonl
from data_prep.pairs.files import PairsConfig, import_pairs
from data_prep.progress import Progress
from data_prep.shards import Shards, ShardWriter

PAIRS = (
    "news_title_article", "web_title_article", "legal_explanation_clause", "research_title_abstract", "qa_ms",
    "bcari_ms_en", "twitter_ms_en", "bcari_noisy_standard", "legal_ms_en",
)  # fmt: skip
SETS = (
    "news_title_article", "legal_explanation_clause", "bcari_ms_en", "twitter_ms_en", "research_title_abstract",
    "health_qa",
)  # fmt: skip
_SHORTEST = 40


def write_documents(data: Path, out: Path, *, per_file: int, pairs: Path | None) -> int:
    """The first texts of every corpus and every positive of the pairs, once each; returns how many."""
    seen: set[str] = set()
    with ShardWriter(out, "documents") as writer:
        for path in expand([str(data / "corpora" / "*.jsonl.gz")], what="--data"):
            kept = 0
            for _, row in read_jsonl(path, required=("text",)):
                key = text_key(row["text"])
                if kept == per_file or len(row["text"]) < _SHORTEST or key in seen:
                    continue
                seen.add(key)
                kept += 1
                writer.append(_document(row["text"], path.name.split(".")[0]))
        for row in Shards(pairs, "pairs") if pairs else ():
            for text in row["positives"]:
                if (key := text_key(text)) not in seen:
                    seen.add(key)
                    writer.append(_document(text, row["source"]))
        return writer.rows


def _document(text: str, source: str) -> dict[str, str | None]:
    return {"id": content_id(text), "text": text, "source": source, "language": tag(text), "document": None}


def write_pairs(data: Path, out: Path, *, per_file: int, sets: list[Path], quick: bool) -> None:
    """Labelled pairs, the queries' languages tagged; none of them is in an evaluation set."""
    files = (
        [str(data / "relevance" / "*.jsonl.gz")] if quick else [str(data / "pairs" / f"{n}.jsonl.gz") for n in PAIRS]
    )
    plain = out.with_name(out.name + "-plain")
    import_pairs(
        PairsConfig(files=files, max_pairs_per_file=per_file, decontaminate=DecontaminateConfig(on_overlap="remove")),
        evaluation_sets=sets,
        out=plain,
        progress=Progress(),
    )
    with ShardWriter(out, "pairs") as writer:
        for row in Shards(plain, "pairs"):
            writer.append({**row, "language": tag(row["query"])})


def demo(out: Path) -> Path:
    """A small generated corpus with its sets, for the quick form."""
    from data_prep.demo.generate import GenerateConfig, generate_demo

    if not (out / "eval_dev").exists():
        generate_demo(GenerateConfig(documents=600, evaluation_queries=30), out=out, seed=0, progress=Progress())
    return out
