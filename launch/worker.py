"""One rank of a training phase: `python -m launch.worker JOB.json`, started by torch.distributed.run.

The job names the phase, the recipe's tables and the folders. A mistake that a user can mend is left in `failure.json`
for the launcher to print; any other exception keeps its traceback in the rank's log.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from launch.agent import die_with_parent

FAILURE = "failure.json"


def main(job_file: Path) -> int:
    """Run the job on this rank. Ends the process with 0 when all ranks are done; returns 2 after a `UserError`."""
    job = read_json(job_file)
    out = Path(job["out"])
    try:
        from train.engine import start_ranks, stop_ranks

        start_ranks()
        if job["phase"] == "pretrain":
            from train.pretrain import PretrainConfig, pretrain

            pretrain(
                PretrainConfig(**job["config"]),
                tokens=Path(job["tokens"]),
                model=Path(job["model"]),
                out=out,
                seed=job["seed"],
            )
        else:
            from train.encoder import EncoderConfig
            from train.finetune import FinetuneConfig, finetune

            finetune(
                FinetuneConfig(**job["config"]),
                EncoderConfig(**job["encoder"]),
                sources={name: Path(folder) for name, folder in job["sources"].items()},
                model=Path(job["model"]),
                out=out,
                seed=job["seed"],
            )
        stop_ranks()
    except UserError as error:
        write_json(out / FAILURE, {"value": error.value, "rule": error.rule, "fix": error.fix})
        return 2


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main(Path(sys.argv[1])))
