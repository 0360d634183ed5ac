"""An srun for tests: starts the command once for each node of --nodelist, here, and carries stdin to all of them.

A JSON file named by FAKE_SRUN says what is special: {"env": {node: {…}}, "cwd": {node: folder}, "silent": [nodes],
"dead": [nodes], "dead_s": seconds, "broken": [nodes], "refused": text, "seen": file}. A silent node never starts Python; a dead one cannot be started, and ends the
step for all after `dead_s`, in srun's words. The options and the environment are written to the file `seen`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path


def main() -> int:
    special = json.loads(Path(os.environ["FAKE_SRUN"]).read_text())
    options = [word for word in sys.argv[1:] if word.startswith("--")]
    command = sys.argv[1:][next(i for i, word in enumerate(sys.argv[1:]) if not word.startswith("--")) :]
    nodes = next(word for word in options if word.startswith("--nodelist=")).partition("=")[2].split(",")
    if "seen" in special:
        with open(special["seen"], "w") as stream:
            json.dump(
                {"options": options, "env": {k: v for k, v in os.environ.items() if k.startswith("SLURM")}}, stream
            )
    if "refused" in special:
        print(special["refused"], file=sys.stderr, flush=True)
        return 1
    children = []
    for node in nodes:
        if node in special.get("dead", []):
            continue
        if node in special.get("broken", []):
            print(f"slurmstepd-{node}: error: execve(): python: No such file or directory", file=sys.stderr)
            print(f"srun: error: {node}: task 1: Exited with exit code 2", file=sys.stderr, flush=True)
            continue
        what = ["sleep", "600"] if node in special.get("silent", []) else command
        environment = {
            **os.environ,
            "SLURMD_NODENAME": node,
            "SLURM_STEP_ID": "3",
            **special.get("env", {}).get(node, {}),
        }
        children.append(
            subprocess.Popen(what, env=environment, cwd=special.get("cwd", {}).get(node), stdin=subprocess.PIPE)
        )

    def end(*_: object) -> None:
        for child in children:
            child.kill()
        os._exit(143)

    signal.signal(signal.SIGTERM, end)
    if special.get("dead"):
        time.sleep(special.get("dead_s", 0.2))
        print(
            f"srun: error: Task launch for StepId=1.0 failed on node {special['dead'][0]}: Communication connection failure",
            file=sys.stderr,
        )
        print("srun: error: Application launch failed: Communication connection failure", file=sys.stderr, flush=True)
        end()

    def carry() -> None:
        while data := os.read(0, 65536):
            for child in children:
                try:
                    child.stdin.write(data)
                    child.stdin.flush()
                except OSError:
                    pass
        for child in children:
            child.stdin.close()

    threading.Thread(target=carry, daemon=True).start()
    return max(child.wait() for child in children)


if __name__ == "__main__":
    sys.exit(main())
