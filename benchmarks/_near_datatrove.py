"""The peer's side of near_dedup.py: datatrove's MinHash pipeline in its own interpreter, without rumpun.

`PYTHON _near_datatrove.py TEXTS OUT BANDS ROWS SHINGLE_WORDS`: reads `TEXTS/*.jsonl`, writes `OUT/removed.npy` (int64
[removed, 2]: file, row) and prints what it cost. Words are cut at spaces (`str.split`): the texts are plain words, and
datatrove's own tokenisers (spaCy) would make it slower.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature, minhash
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.utils.logging import logger


class _Spaces:
    """Words are what stands between spaces."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


def peak_gb() -> float:
    """VmHWM of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9


def main() -> None:
    """Run the three stages that find what to remove."""
    texts, out = Path(sys.argv[1]), Path(sys.argv[2])
    bands, rows, shingle_words = map(int, sys.argv[3:6])
    logger.remove()
    minhash.load_word_tokenizer = lambda language: _Spaces()
    config = MinhashConfig(n_grams=shingle_words, num_buckets=bands, hashes_per_bucket=rows)
    files = sorted(texts.glob("*.jsonl"))
    stages: list[tuple[str, list[Any], int]] = [
        (
            "signatures",
            [JsonlReader(str(texts), glob_pattern="*.jsonl"), MinhashDedupSignature(str(out / "sigs"), config)],
            len(files),
        ),
        ("buckets", [MinhashDedupBuckets(str(out / "sigs"), str(out / "buckets"), config=config)], bands),
        ("clusters", [MinhashDedupCluster(str(out / "buckets"), str(out / "remove"), config=config)], 1),
    ]
    told: dict[str, Any] = {}
    for name, pipeline, tasks in stages:
        wall, cpu = time.perf_counter(), time.process_time()
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(out / f"log-{name}")).run()
        told[name] = [time.perf_counter() - wall, time.process_time() - cpu]
    removed = [
        (file, row)
        for file in range(len(files))
        if (path := out / "remove" / f"{file:06d}.remove").exists()
        for row in np.fromfile(path, "<u4").tolist()
    ]
    np.save(out / "removed.npy", np.array(removed, np.int64).reshape(-1, 2))
    print(json.dumps({"stages": told, "peak_gb": peak_gb()}))


if __name__ == "__main__":
    main()
