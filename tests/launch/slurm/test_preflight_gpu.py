"""GPUs as nvidia-smi tells of them: programs that answer as the real one does, in its own format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from launch.slurm.health import preflight_gpu
from launch.slurm.health.preflight_gpu import SmiError, gpu_facts, xids_of
from launch.slurm.health.preflight_judge import PreflightNeeds, Verdict, gpu_troubles, judge

HEALTHY = "0, GPU-aaaa, NVIDIA H100 80GB HBM3, 4, 81559, 31, 0, [N/A]"
SECOND = "1, GPU-bbbb, NVIDIA H100 80GB HBM3, 4, 81559, 33, 0, [N/A]"
IDLE = "0x0000000000000001"
FIELDS = "index,uuid,name,memory.used,memory.total,temperature.gpu,ecc.errors.uncorrected.volatile.total,retired_pages.pending"


class Smi:
    """Writes an nvidia-smi into a folder that stands first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "nvidia-smi"

    def answers(
        self,
        gpus: list[str],
        *,
        reasons: dict[str, str] | None = None,
        remapped: list[str] | None = None,
        apps: list[str] = [],  # noqa: B006
        old: bool = False,
    ) -> None:
        """`old`: a driver that knows neither the newer name of the reasons nor row remapping."""
        reasons = reasons or {"GPU-aaaa": IDLE, "GPU-bbbb": IDLE}
        name = "clocks_throttle_reasons.active" if old else "clocks_event_reasons.active"
        replies = {
            f"--query-gpu={FIELDS}": gpus,
            f"--query-gpu=uuid,{name}": [f"{uuid}, {mask}" for uuid, mask in reasons.items()],
            "--query-compute-apps=gpu_uuid,pid,process_name": apps,
        }
        if not old:
            ask = "--query-remapped-rows=gpu_uuid,remapped_rows.pending,remapped_rows.failure"
            replies[ask] = remapped if remapped is not None else ["GPU-aaaa, 0, 0", "GPU-bbbb, 0, 0"]
        cases = "".join(f"'{ask}') cat <<'END'\n{chr(10).join(lines)}\nEND\n;;\n" for ask, lines in replies.items())
        unknown = """*) echo "Field \\"${1##*,}\\" is not a valid field to query."; exit 2;;"""
        self.says(f'[ "$2" = --format=csv,noheader,nounits ] || exit 9\ncase "$1" in\n{cases}{unknown}\nesac\n')

    def says(self, script: str) -> None:
        self.file.write_text(f"#!/bin/sh\n{script}")
        self.file.chmod(0o755)


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return Smi(tmp_path)


def _troubles() -> list[list[tuple[str, str]]]:
    return [gpu_troubles(gpu) for gpu in gpu_facts() or []]


def test_no_nvidia_smi_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_facts() is None


@pytest.mark.parametrize("old", [False, True])
def test_healthy(smi: Smi, old: bool) -> None:
    smi.answers([HEALTHY, SECOND], old=old)
    found = gpu_facts()
    assert found and [gpu["name"] for gpu in found] == ["NVIDIA H100 80GB HBM3"] * 2
    assert [gpu["reasons"] for gpu in found] == [1, 1] and found[1]["celsius"] == 33
    assert _troubles() == [[], []]


@pytest.mark.parametrize(
    ("mask", "kind", "words"),
    [
        ("0x0000000000000004", None, ""),  # the power limit: as every GPU under load
        ("0x0000000000000008", None, ""),  # may be a change of the power state
        ("0x0000000000000020", "notes", "lowers the clocks"),
        ("0x0000000000000048", "sick", "held down by heat at 31 °C"),
        ("0x0000000000000088", "sick", "held down by the power brake"),
        ("[N/A]", None, ""),
    ],
)
def test_low_clocks(smi: Smi, mask: str, kind: str | None, words: str) -> None:
    smi.answers([HEALTHY], reasons={"GPU-aaaa": mask})
    (found,) = _troubles()
    assert [each[0] for each in found] == ([kind] if kind else [])
    assert not kind or words in found[0][1]


def test_memory_errors(smi: Smi) -> None:
    smi.answers([HEALTHY.replace(" 0, [N/A]", " 3, No"), SECOND], remapped=["GPU-aaaa, 0, 1", "GPU-bbbb, 1, 0"])
    first, second = _troubles()
    assert [why for _, why in first] == [
        "3 uncorrected memory errors since its driver was loaded",
        "row remapping failed: it wants a reset",
    ]
    assert second == [("sick", "row remapping pending: it wants a reset")]


def test_retired_pages_of_older_gpus(smi: Smi) -> None:
    smi.answers([HEALTHY.replace("[N/A]", "Yes")], old=True)
    assert _troubles() == [[("sick", "row remapping pending: it wants a reset")]]


def test_occupied(smi: Smi) -> None:
    smi.answers([HEALTHY.replace(" 4,", " 40000,"), SECOND.replace(" 4,", " 30000,")], apps=["GPU-bbbb, 4242, /opt/py/bin/python3"])  # fmt: skip
    hidden, seen = _troubles()
    assert hidden == [("sick", "40000 of 81559 MB are used, by a program that is not shown")]
    assert seen == [("sick", "others run on it: python3 (pid 4242)")]


def test_only_the_jobs_own_gpus_count(smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    smi.answers([HEALTHY, SECOND], apps=["GPU-aaaa, 7, x"])
    for given, expected in (("1", ["1"]), ("GPU-aaaa", ["0"]), ("0,1", ["0", "1"]), ("", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert [gpu["index"] for gpu in gpu_facts() or []] == expected


def test_a_driver_that_fails_says_why(smi: Smi) -> None:
    smi.says("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18\n")
    with pytest.raises(SmiError, match="version mismatch"):
        gpu_facts()


def test_a_driver_that_hangs_is_not_waited_for(smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_gpu, "SMI_S", 0.3)
    smi.says("exec sleep 600\n")
    with pytest.raises(SmiError, match="no answer"):
        gpu_facts()


def test_xids_of_the_hardware_within_a_day() -> None:
    day_s = 24 * 3600
    lines = [
        "4,1042,1000000,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=12, GPU has fallen off the bus.",
        f"4,1043,{(day_s + 100) * 1000000},-;NVRM: Xid (PCI:0000:3b:00): 48, pid='<unknown>', DBE",
        f"4,1044,{(day_s + 100) * 1000000},-;NVRM: Xid (PCI:0000:3b:00): 31, pid=5, a program's own fault",
        "6,1045,1,-;usb 1-1: new device",
        " SUBSYSTEM=pci",
    ]
    assert xids_of(lines, now_s=200) == [48, 79]
    assert xids_of(lines, now_s=day_s + 200) == [48]


def test_fewer_than_asked_and_xids_make_a_node_sick() -> None:
    facts: dict[str, Any] = {"gpus": [], "visible_gpus": 1, "xids": [79]}
    verdict = Verdict()
    reference = {"versions": {}, "code": "", "files": {}, "who": "n1"}
    judge({"n1": {"facts": facts, "errors": {}}}, PreflightNeeds(gpus=2), reference=reference, verdict=verdict)
    assert verdict.sick["n1"] == [
        "torch sees 1 GPUs, 2 were asked for",
        "the kernel's log of the last day holds Xid 79",
    ]
