"""One trainer in its own process: `python _peer_sides.py JOB.json` (see _turns.py for who talks to it).

Every side trains the same weights on the same batches in the same order with the same loss, learning rate, clipping and
AdamW without decay. A job holds `side`, `folder` (from _peer_texts.py), `batches` (JSON lines, one list of
[query, passage] a step), `steps`, `batch`, `temperature`, `rate`, `clip`, `device`, `seed`, and what the side adds.
"""

from __future__ import annotations

import json
import os
import random
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _peer_job import memory
from _peer_ours import pretraining, rumpun
from _peer_theirs import flag_embedding, sentence_transformers, tevatron
from _turns import Gate, Job

SIDES: dict[str, Callable[[Job, Gate], None]] = {
    "rumpun": rumpun,
    "pretraining": pretraining,
    "sentence-transformers": sentence_transformers,
    "FlagEmbedding": flag_embedding,
    "tevatron": tevatron,
}


def main(path: str) -> None:
    """Run the side of a job file; what it cannot do is told to the parent, with the traceback in the log."""
    job = json.loads(Path(path).read_text())
    random.seed(job["seed"])
    gate = Gate()
    gate.tell = lambda: memory(job["device"])
    if job["device"] == "cuda":
        import torch

        gate.synchronise = torch.cuda.synchronize
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        SIDES[job["side"]](job, gate)
    except Exception as error:
        traceback.print_exc()
        gate.fail(f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}")


if __name__ == "__main__":
    main(sys.argv[1])
