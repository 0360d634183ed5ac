"""One cell of the comparison in its own process: `python _mining_policies_cell.py JOB.json`.

Finetunes the model of the job on its pairs, scores it on the evaluation sets and writes `out`: recall@10 by query.
Without `pairs` the model is scored as it is. A job that was killed trains again from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(path: str) -> None:
    """Do the job of a file."""
    job = json.loads(Path(path).read_text())
    from minilm_finetune import recalls

    from data_prep.evaluation_sets import load_set
    from data_prep.files import write_json

    folder, model = Path(job["folder"]), Path(job["model"])
    started = time.perf_counter()
    if job["pairs"]:
        from _peer_ours import start_one_rank

        from train.encoder import EncoderConfig
        from train.finetune import finetune
        from train.finetune_config import FinetuneConfig

        start_one_rank()
        finetune(
            FinetuneConfig(**job["finetune"]),
            EncoderConfig(max_tokens=job["max_tokens"]),
            sources={"mine": Path(job["pairs"])},
            model=model,
            out=folder,
            seed=job["seed"],
        )
        model = folder / "model"
    trained = time.perf_counter()
    found = recalls(model, [load_set(Path(name)) for name in job["sets"]], max_tokens=job["max_tokens"])
    write_json(
        Path(job["out"]),
        {
            "recalls": {name: values.tolist() for name, values in found.items()},
            "train_s": trained - started,
            "score_s": time.perf_counter() - trained,
        },
    )
    shutil.rmtree(folder, ignore_errors=True)  # the weights are not needed again
    sys.stdout.flush()
    os._exit(0)  # DeepSpeed's threads need no farewell


if __name__ == "__main__":
    main(sys.argv[1])
