"""What the scheduler tells of the cluster as a whole: partitions, nodes, configuration, the user's accounts.

Every command is asked once in the life of an object: a mistake of the user is explained from several of these facts.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.errors import UserError
from launch.slurm.scheduler import refusals
from launch.slurm.scheduler.call import Calls, user_name
from launch.slurm.scheduler.facts import NodeFacts, Partition, config_in, node_in, partition_in, records_in


class ClusterFacts(Calls):
    """The cluster, as `scontrol` and `sacctmgr` show it. Arguments: those of `Calls`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._facts: dict[str, str] = {}

    def fact(self, *command: str) -> str:
        """What a command prints that shows the cluster, asked once: `fact("scontrol", "show", "config")`.

        Raises:
            UserError: it failed.
        """
        key = " ".join(command)
        if key not in self._facts:
            answer = self._run(list(command))
            if answer.code != 0:
                raise UserError(f"`{key}`", f"failed: {refusals.words_of(answer.text)}", "run it by hand to see why")
            self._facts[key] = answer.out
        return self._facts[key]

    def partitions(self) -> list[Partition]:
        """All partitions that the user may see."""
        return [partition_in(r) for r in records_in(self.fact("scontrol", "-o", "show", "partition")) if _is(r, "Part")]

    def node_facts(self) -> list[NodeFacts]:
        """All nodes, as they were when this was first asked."""
        return [node_in(r) for r in records_in(self.fact("scontrol", "-o", "show", "node")) if _is(r, "Node")]

    def config(self) -> dict[str, str]:
        """The configuration of the cluster: `scontrol show config`."""
        return config_in(self.fact("scontrol", "show", "config"))

    def accounts(self) -> list[str]:
        """Accounts that the user may charge, the default one first; empty where accounting is off."""
        user = user_name()
        default = self._association(["show", "user", user, "format=defaultaccount"])
        return list(dict.fromkeys([*default, *self._association(["show", "assoc", f"user={user}", "format=account"])]))

    def qos(self) -> list[str]:
        """Levels of service that the user may ask for, the default one first; empty where accounting is off."""
        query = ["show", "assoc", f"user={user_name()}"]
        listed = [*self._association([*query, "format=defaultqos"]), *self._association([*query, "format=qos"])]
        return list(dict.fromkeys(name for line in listed for name in line.split(",") if name))

    def _association(self, query: Sequence[str]) -> list[str]:
        if shutil.which("sacctmgr") is None:
            return []
        answer = self._once(["sacctmgr", "--noheader", "--parsable2", *query], self._timeout_s)
        return [line.strip() for line in answer.out.splitlines() if line.strip()] if answer.code == 0 else []


def _is(record: Mapping[str, str], kind: str) -> bool:
    return any(key.startswith(kind) and key.endswith("Name") for key in record)
