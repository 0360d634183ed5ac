"""What one job of a chain is doing, in a word, and why: from what it wrote last and what the scheduler says.

Invariant: what a job has written about its own end wins over accounting, which lags and may be switched off; a job that
neither tells of is lost, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from launch.slurm.telling.causes import cause_of, event_of
from launch.slurm.telling.plain import first_line, plain
from launch.slurm.telling.reasons import waiting

if TYPE_CHECKING:
    from launch.slurm.scheduler.job_state import JobState

_BAD = ("failed", "never started", "lost", "cancelled")
_GO_ON = "`rumpun submit` goes on from what is saved"


def standing(
    link: Sequence[Mapping[str, Any]],
    state: JobState | None,
    *,
    id: str,
    stop: str | None,
    after: Mapping[str, str],
    complete: bool,
) -> tuple[str, str]:
    """(state in a word, why) of a job.

    Args:
        link: the events of its newest start, empty where that has not written any.
        state: what the scheduler says, None where it was not asked.
        id: its own now. stop: why we asked it to end. after: the jobs that it needs, with their states in words.
        complete: whether all its stages are built.
    """
    end = event_of(link, "end")
    begun = bool(link)
    wrong = [name for name, word in after.items() if word in _BAD]
    if end.get("outcome") == "done":
        return "done", ""
    if state is not None and state.active:
        return _active(state, id, ended=bool(end), after=after, wrong=wrong)
    if end:
        return _ended(end, state, stop)
    if state is None:
        return ("running", "as its files tell; the scheduler was not asked") if begun else ("submitted", "")
    if state.state == "COMPLETED" and complete:
        return "done", ""
    if wrong and not begun:
        return "never started", f"{' and '.join(wrong)} did not end well"
    if state.state == "CANCELLED":
        return "cancelled", "cancelled" if stop == "cancelled" else f"cancelled outside rumpun; {_GO_ON}"
    if state.state == "GONE":
        return "lost", f"not known to SLURM any more; {_GO_ON}"
    return "failed", f"{cause_of(link if begun else (), state, stop=stop)}; {_GO_ON}"


def _active(
    state: JobState, id: str, *, ended: bool, after: Mapping[str, str], wrong: Sequence[str]
) -> tuple[str, str]:
    if state.waiting:
        if wrong and state.reason.strip("()") == "Dependency":
            return "waits", f"waits for {' and '.join(wrong)}, which did not end well"
        return "waits", waiting(state.reason, id=id, after=list(after), states=after)
    word = "ending" if ended or state.state == "COMPLETING" else "running"
    usual = state.state in ("RUNNING", "COMPLETING")
    return word, "" if usual else f"the scheduler says {plain(state.state.lower(), 40)}"


def _ended(end: Mapping[str, Any], state: JobState | None, stop: str | None) -> tuple[str, str]:
    """A link that wrote its own end, and nothing of the job is in the queue."""
    outcome, goes_on = end.get("outcome"), plain(end.get("next") or "none", 40)
    goes_on = {"requeue": "a requeue", "requeued": "a requeue", "array": "the next link of its array"}.get(
        goes_on, goes_on
    )
    reason = first_line(end.get("reason") or outcome or "")
    if outcome == "stopped" and stop is not None:
        return "cancelled", "cancelled; what was done is saved" if stop == "cancelled" else "stopped to be resized"
    if goes_on == "none":
        return ("stopped" if outcome == "stopped" else "failed"), first_line(end.get("why") or reason)
    if state is None:
        return "waits", f"it ended ({reason}) and goes on by {goes_on}"
    if state.state == "CANCELLED":
        return "cancelled", f"cancelled outside rumpun; {_GO_ON}"
    gone = "it is not known to SLURM any more" if state.state == "GONE" else f"SLURM says {plain(state.state, 40)}"
    return "lost", f"it was to go on by {goes_on}, but {gone}; {_GO_ON}"
