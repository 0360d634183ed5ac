"""Parts of a stage: a part that has ended is never computed again; failures keep their words."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.fanout import Serial
from data_prep.progress import Progress


def work(number: int, log: str, fail: str = "") -> dict[str, int]:
    with Path(log).open("a") as stream:
        stream.write(f"{number}\n")
    if fail == "mistake":
        raise UserError("value 3", "must be 2", "write 2")
    if fail:
        raise KeyError(fail)
    return {"square": number * number}


def run(tmp_path: Path, parts: list[dict]) -> list[dict]:
    log = str(tmp_path / "log")
    asked = [{"log": log, **part} for part in parts]
    return Serial().map("fanout_work:work", asked, scratch=tmp_path / "s", label="squares", progress=Progress())


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests are imported under names of their own; a part's function needs one that can be imported."""
    import sys

    monkeypatch.setitem(sys.modules, "fanout_work", sys.modules[__name__])


def test_results_come_in_order_and_once(tmp_path: Path) -> None:
    parts = [{"number": n} for n in (3, 1, 2)]
    assert [r["square"] for r in run(tmp_path, parts)] == [9, 1, 4]
    assert [r["square"] for r in run(tmp_path, [*parts, {"number": 5}])] == [9, 1, 4, 25]
    assert (tmp_path / "log").read_text().split() == ["3", "1", "2", "5"]


def test_a_mistake_is_told_and_tried_again(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match="value 3: must be 2"):
            run(tmp_path, [{"number": 1}, {"number": 3, "fail": "mistake"}])
    assert (tmp_path / "log").read_text().split() == ["1", "3", "3"]


def test_a_defect_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'broken'"):
        run(tmp_path, [{"number": 3, "fail": "broken"}])
