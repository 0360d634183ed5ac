"""The last look before training: whatever slipped through is found again, named on both sides, and ends the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.corpus.config import CorpusConfig
from data_prep.errors import UserError
from data_prep.fanout import Serial
from data_prep.files import content_id
from data_prep.gate import prove
from data_prep.pairs.row import pair_row
from data_prep.progress import Progress
from data_prep.shards import ShardWriter

QUERY = "Berapakah bantuan banjir yang dibayar kepada setiap keluarga di Kelantan tahun ini?"
DOCUMENT = (
    "Kerajaan negeri meluluskan bantuan seribu ringgit bagi setiap keluarga yang terjejas oleh banjir besar di Kelantan, "
    "dan bayaran dibuat melalui pejabat daerah sebelum hujung bulan depan."
)
INNOCENT = [
    "Nasi lemak dan teh tarik ialah sarapan kegemaran ramai orang di bandar mahupun di kampung sejak dahulu.",
    "The committee will meet on Tuesday to discuss the new timetable of the commuter train to Seremban.",
]


@pytest.fixture
def sets(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "eval" / "bantuan"
    folder.mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(json.dumps({"_id": "d7", "title": "", "text": DOCUMENT}) + "\n")
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q3", "text": QUERY}) + "\n")
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq3\td7\t1\n")
    return [folder]


def check(tmp_path: Path, sets: list[Path], documents: list[str], negatives: list[str]) -> dict[str, int | float]:
    with ShardWriter(tmp_path / "corpus", "documents", rows_per_file=2) as writer:
        for text in documents:
            writer.append({"id": content_id(text), "text": text, "source": "forum", "language": "ms"})
    with ShardWriter(tmp_path / "mine", "pairs", rows_per_file=2) as writer:
        for text in negatives:
            writer.append(pair_row("sarapan apa yang sedap", [INNOCENT[0]], [text], "mined", "ms"))
    (tmp_path / "out").mkdir(exist_ok=True)
    return prove(
        CorpusConfig(files=["x"]), folders={"corpus": tmp_path / "corpus", "mine": tmp_path / "mine"},
        evaluation_sets=sets, out=tmp_path / "out", progress=Progress(), fanout=Serial(), scratch=tmp_path / "scratch",
    )  # fmt: skip


def edited(text: str) -> str:
    """One word in five replaced."""
    words = text.split()
    return " ".join("lain" if i % 5 == 4 else word for i, word in enumerate(words))


PLANTED = {
    "exact": DOCUMENT,
    "re-cased": DOCUMENT.upper(),
    "re-spaced": DOCUMENT.replace(" ", "  \n", 7),
    "near": edited(DOCUMENT),
    "query": QUERY.lower().removesuffix("?"),
    "inside": f"Berita hari ini. {DOCUMENT} Sekian, terima kasih.",
}


@pytest.mark.parametrize("how", PLANTED)
def test_what_slipped_through_ends_the_run_and_is_named(how: str, tmp_path: Path, sets: list[Path]) -> None:
    evaluation = "query q3 of bantuan" if how == "query" else "document d7 of bantuan"
    with pytest.raises(UserError, match=rf"corpus row 2 \(source forum\) repeats {evaluation}"):
        check(tmp_path, sets, [*INNOCENT, PLANTED[how]], INNOCENT)
    with pytest.raises(UserError, match=rf"mine row 1 \(source mined\), negative 0 repeats {evaluation}"):
        check(tmp_path, sets, INNOCENT, [INNOCENT[1], PLANTED[how]])
    assert not (tmp_path / "out" / "proof.json").exists()


def test_the_proof_says_what_was_compared(tmp_path: Path, sets: list[Path]) -> None:
    assert check(tmp_path, sets, INNOCENT, INNOCENT) == {
        "sets": 1, "evaluation_texts": 2, "checked": 8, "overlapping": 0,
    }  # fmt: skip
    proof = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert proof["checked"] == {"corpus": 2, "mine": 6} and proof["overlapping"] == 0
    assert proof["evaluation_sets"] == ["bantuan"] and set(proof["training_data"]) == {"corpus", "mine"}


def test_other_bytes_are_checked_again(tmp_path: Path, sets: list[Path]) -> None:
    check(tmp_path, sets, INNOCENT, INNOCENT)
    with pytest.raises(UserError, match="corpus row 0"):  # the finished parts of before do not count
        check(tmp_path, sets, [DOCUMENT, INNOCENT[1]], INNOCENT)
