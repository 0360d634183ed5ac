"""How many MB of text a core cleans in a second, rule by rule, and what the quick ways gain.

    python benchmarks/corpus_stage.py [--data DIR] [--quick] [--out benchmarks/results/corpus_stage.md]

Texts are samples of the corpora below `--data` (real Malaysian text: tweets, forum, news, bills), or of the corpus that
rumpun generates itself where there are none. Every rule gets the same texts, in turns; MB are of UTF-8, seconds are CPU
time of one thread, which a busy machine disturbs least; each figure is the median of the turns with the least and the
most. `--quick` takes little text, prints, and writes nothing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from _facts import REPO, RESULTS, machine_lines, table, versions

sys.path.insert(0, str(REPO))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAYON_NUM_THREADS", "1")

from data_prep.corpus import language
from data_prep.corpus.config import CorpusConfig
from data_prep.corpus.cut import plan_parts
from data_prep.corpus.decontaminate import Gate
from data_prep.corpus.language import LanguageTagger
from data_prep.corpus.lines import Trouble
from data_prep.corpus.near import find_duplicates
from data_prep.corpus.part import clean_part, keep_part
from data_prep.corpus.private import Scrubber
from data_prep.corpus.quality import QualityConfig, failed_rule
from data_prep.corpus.readers import read_piece
from data_prep.corpus.repair import text_cleaner
from data_prep.corpus.signatures import NearConfig, SignatureWriter
from data_prep.progress import Progress

GENRES = ("twitter", "forum_bcari", "news_ms", "legal_ms")
Work = Callable[[list[str]], object]


def generated(folder: Path) -> Path:
    """The demo corpus, for machines without real text."""
    from data_prep.demo.generate import GenerateConfig, generate_demo

    generate_demo(GenerateConfig(documents=4000), out=folder, seed=0, progress=Progress())
    return folder


def samples(data: Path, most_mb: float) -> dict[str, list[str]]:
    """Texts by genre, evenly spread over each file, at most `most_mb` of each."""
    paths = sorted((data / "corpora").glob("*.jsonl.gz"))
    named = [p for p in paths if p.name.split(".")[0] in GENRES] or paths
    found = {}
    for path in named:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            texts = [json.loads(line)["text"] for line in stream]
        step = max(1, round(sum(len(t.encode()) for t in texts) / (most_mb * 1e6)))
        found[path.name.split(".")[0]] = texts[::step]
    return found


def rules(folder: Path, sets: list[Path]) -> dict[str, Work]:
    """What is measured, by name; each takes all texts of a genre."""
    import ftfy
    from lingua import Language, LanguageDetectorBuilder

    clean, scrub, tagger, quality = text_cleaner(), Scrubber(), LanguageTagger(), QualityConfig()
    every_step = ftfy.TextFixerConfig(
        uncurl_quotes=False, fix_character_width=False, fix_latin_ligatures=False, explain=False
    )
    gate = Gate(sets)
    languages = (Language.MALAY, Language.INDONESIAN, Language.ENGLISH)
    lingua = LanguageDetectorBuilder.from_languages(*languages).with_preloaded_language_models().build()

    def written(texts: list[str]) -> None:
        path = folder / "read.jsonl.gz"
        if not path.exists():
            with gzip.open(path, "wt", encoding="utf-8") as stream:
                stream.writelines(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)

    def read(texts: list[str]) -> None:
        config = CorpusConfig(files=[str(folder / "read.jsonl.gz")])
        trouble = Trouble(config)
        for piece in (p for part in plan_parts(config) for p in part):
            for _ in read_piece(piece, config, trouble):
                pass

    def fresh_tags(texts: list[str]) -> None:
        language._judged.clear()
        for t in texts:
            tagger.tag(t)

    def signatures(texts: list[str]) -> None:
        with SignatureWriter(folder / "signatures", NearConfig()) as writer:
            for t in texts:
                writer.add(t)

    def copies(texts: list[str]) -> None:
        find_duplicates([folder / "signatures"], NearConfig(), folder, Progress())

    def whole(texts: list[str]) -> None:
        config = CorpusConfig(files=[str(folder / "read.jsonl.gz")])
        pieces = [p for part in plan_parts(config) for p in part]
        told = config.model_dump(mode="json")
        clean_part(pieces=pieces, config=told, sets=[str(s) for s in sets], folder=str(folder / "part"))

    def kept(texts: list[str]) -> None:
        find_duplicates([folder / "part" / "signatures"], NearConfig(), folder, Progress())
        told: dict[str, Any] = {
            "folder": str(folder / "part"),
            "out": str(folder / "kept"),
            "verdicts": "",
            "number": 0,
        }
        keep_part(**told, fraction=0.0, seed=0, capped=False)

    def each(function: Callable[[str], object]) -> Work:
        return lambda texts: [function(t) for t in texts]

    return {
        "(write)": written,
        "read JSON lines, gzip'd": read,
        "repair": each(clean),
        "— ftfy on every text": each(lambda t: ftfy.fix_text(t, every_step)),
        "personal data": each(scrub),
        "quality": each(lambda t: failed_rule(t, quality)),
        "language, words seen before": each(tagger.tag),
        "language, no word seen before": fresh_tags,
        "— lingua on whole texts": each(lingua.detect_language_of),
        "evaluation gate": each(gate.find),
        "keys and MinHash signatures": signatures,
        "copies among one part": copies,
        "whole first pass": whole,
        "copies and last pass": kept,
    }


def measure(texts: list[str], work: dict[str, Work], turns: int) -> dict[str, list[float]]:
    """MB/s of each rule, turn by turn; the first turn, in which models load, does not count."""
    size_mb = sum(len(t.encode()) for t in texts) / 1e6
    speeds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(turns + 1):
        for name, does in work.items():
            started = time.process_time()
            does(texts)
            if turn:
                speeds[name].append(size_mb / max(1e-9, time.process_time() - started))
    return speeds


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=REPO.parent / "shared" / "data")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "corpus_stage.md")
    given = parser.parse_args()
    load, turns, most_mb = os.getloadavg()[0], 1 if given.quick else 3, 0.05 if given.quick else 1.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        real = (given.data / "corpora").is_dir()
        data = given.data if real else generated(folder / "demo")
        sets = sorted(p.parent for p in (data / "eval_dev").glob("*/qrels.tsv"))
        texts = samples(data, most_mb)
        found = {}
        for genre, chosen in texts.items():
            place = folder / genre
            place.mkdir()
            found[genre] = measure(chosen, rules(place, sets[:4] if given.quick else sets), turns)
    lines = ["# What cleaning a corpus costs", ""]
    lines += machine_lines(
        threads=1,
        load_before=load,
        packages=versions(sys.executable, ["ftfy", "lingua-language-detector", "rensa", "numba", "pyarrow"]),
    )
    sizes = [f"{g}: {len(t):,} texts, {sum(len(x.encode()) for x in t) / 1e6:.1f} MB" for g, t in texts.items()]
    lines += [
        "",
        f"{'Real' if real else 'Generated'} text ({'; '.join(sizes)}); {len(sets)} evaluation sets at the gate.",
        "",
    ]
    names = [n for n in next(iter(found.values())) if n != "(write)"]
    lines += ["MB of text a second and core: median of the turns (least to most).", ""]
    rows = [[n, *(_cell(found[g][n]) for g in texts)] for n in names]
    lines.append(table(["rule", *texts], rows))
    lines += ["", "Gain of the quick way, formed inside each turn: median (least to most).", ""]
    pairs = {"repair": "— ftfy on every text", "language, words seen before": "— lingua on whole texts"}
    gains = [
        [
            f"{n} ÷ {other[2:]}",
            *(_cell([a / b for a, b in zip(found[g][n], found[g][other], strict=True)]) for g in texts),
        ]
        for n, other in pairs.items()
    ]
    lines.append(table(["ratio", *texts], gains))
    lines += [
        "",
        "Signatures, gate and copies are measured with their tables compiled and loaded. The first pass is",
        "reading, repair, personal data, quality, language (words seen before), gate, signatures and the writing of",
        "shards. Both passes run on any number of cores at once; the search for copies between them is one process.",
    ]
    page = "\n".join(lines) + "\n"
    print(page)
    if not given.quick:
        given.out.write_text(page)


def _cell(values: list[float]) -> str:
    return f"{median(values):.2g} ({min(values):.2g} to {max(values):.2g})" if median(values) < 10 else (
        f"{median(values):.0f} ({min(values):.0f} to {max(values):.0f})"
    )  # fmt: skip


if __name__ == "__main__":
    main()
