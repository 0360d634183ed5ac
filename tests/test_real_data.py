"""The real-data recipe, cut down: every stage on real Malaysian text with the pretrained MiniLM as teacher and baseline."""

from __future__ import annotations

import gzip
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from data_prep.files import read_json


@pytest.mark.slow
def test_the_real_recipe_runs_on_real_text(shared_data: Path, tmp_path: Path) -> None:
    # the audit embeds every row of its file
    audited = tmp_path / "audited.jsonl"
    with gzip.open(shared_data / "pairs" / "news_title_article.jsonl.gz", "rt", encoding="utf-8") as rows:
        audited.write_text("".join(islice(rows, 60)), encoding="utf-8")
    smaller = {
        "corpus.max_documents_per_file": "60",
        "pairs.max_pairs_per_file": "40",
        "tokens.validation_fraction": "0.1",
        "tokenizer.vocab_size": "1000",
        "mine.max_documents": "200",
        "mine.max_queries": "100",
        "mine.audit_pairs": f'["{audited}"]',
        "mine.policy.positive_min_score": "0.3",
        "base.random.hidden": "48",
        "base.random.layers": "2",
        "truncate.layers": "1",
        "pretrain.max_steps": "2",
        "pretrain.batch_rows": "4",
        "finetune.max_steps": "3",
        "finetune.batch_pairs": "16",
        "encoder.max_tokens": "32",
        "eval.sets": f'["{shared_data}/eval_dev/health_qa", "{shared_data}/eval_dev/twitter_noisy_standard"]',
        "eval.max_length": "32",
    }
    overrides = [word for key, value in smaller.items() for word in ("--set", f"{key}={value}")]
    command = ["run", "malay-real-small", "--data", str(shared_data), "--runs", str(tmp_path), *overrides]
    done = subprocess.run([sys.executable, "-m", "launch.cli", *command], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    run = tmp_path / "malay-real-small"
    results = read_json(run / "eval" / "results.json")
    assert [s["name"] for s in results["systems"]] == [
        "bm25",
        "all-minilm-l6-v2",
        "untrained",
        "pretrained",
        "finetuned",
    ]
    rows = {(r["system"], r["set"], r["subset"]): r for r in results["rows"]}
    assert rows["bm25", "health_qa", "hard"]["queries"] == 77
    # the set's own table: BM25 recall@10 of .779 over all its queries
    assert rows["bm25", "health_qa", "all"]["metrics"]["recall@10"]["mean"] == pytest.approx(0.779, abs=0.01)
    assert read_json(run / "mine" / "stage.json")["counts"]["pairs"] > 0
    assert read_json(run / "pairs" / "stage.json")["counts"]["kept"] > 100
