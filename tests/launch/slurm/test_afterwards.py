"""What follows a link: it goes on where that could help, and stops with a reason where it could not."""

from __future__ import annotations

from typing import Any

import pytest

from launch.slurm.config import SlurmConfig
from launch.slurm.inside.afterwards import WITHOUT_GAIN, Ending, decide

SETTINGS = SlurmConfig(requeues=4)
STOPPED = Ending("stopped", "SIGUSR1", 75, step=20, gained=20)
FAILED = Ending(
    "failed", "rank 2 (node3) was killed by SIGKILL", 1, cause="SIGKILL", hosts=("node3",), step=20, gained=10
)


def link(**end: Any) -> list[dict[str, Any]]:
    """The events of one link that ended so."""
    common = {"outcome": "stopped", "cause": "", "step": 0, "gained": 0}
    return [{"event": "begin"}, {"event": "stage"}, {"event": "end", **common, **end}]


def next_of(ending: Ending, *former: list[dict[str, Any]], **more: Any) -> tuple[str, str, int]:
    events = [event for one in former for event in one] + [{"event": "begin"}]
    found = decide(ending, events=events, **{"settings": SETTINGS, "route": "requeue", **more})
    return found.route, found.why, found.exit


@pytest.mark.parametrize("route", ["requeue", "successor"])
def test_a_stopped_link_goes_on(route: str) -> None:
    assert next_of(STOPPED, route=route) == (route, "", 75)


def test_a_link_of_an_array_ends_well_so_that_the_next_may_begin_and_the_last_does_not() -> None:
    assert next_of(STOPPED, route="array")[::2] == ("array", 0)
    route, why, code = next_of(STOPPED, route="array", last_of_array=True)
    assert (route, code) == ("none", 75) and "last link" in why


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        (Ending("done"), 0),
        (Ending("superseded", "a newer start", 78), 78),
        (Ending("mistake", "x = 3: is wrong. Fix: mend it", 2), 2),
        (Ending("diverged", "training diverged", 77), 77),
    ],
)
def test_what_a_start_could_not_mend_is_not_started_again(ending: Ending, code: int) -> None:
    assert next_of(ending)[::2] == ("none", code)


@pytest.mark.parametrize("ending", [STOPPED, FAILED])
def test_a_cancelled_job_never_goes_on(ending: Ending) -> None:
    route, why, code = next_of(ending, stopped="cancelled")
    assert route == "none" and "cancelled" in why and code == ending.exit


def test_a_failure_is_tried_again_once_but_not_when_it_is_the_same_at_the_same_step() -> None:
    assert next_of(FAILED)[0] == "requeue"
    other = link(outcome="failed", cause="SIGKILL", step=12, gained=10)
    assert next_of(FAILED, other)[0] == "requeue"
    same = link(outcome="failed", cause="SIGKILL", step=20, gained=10)
    route, why, code = next_of(FAILED, same)
    assert (route, code) == ("none", 1) and "step 20" in why
    # a stop at that step in between does not make it another failure
    assert next_of(FAILED, same, link(step=30, gained=30))[0] == "none"


def test_a_failure_that_repeated_itself_within_the_link_ends_the_chain() -> None:
    assert next_of(Ending("failed", "x", 1, cause="x", repeated=True, step=3, gained=3))[0] == "none"


def test_the_budget_counts_links() -> None:
    former = [link(gained=n) for n in range(SETTINGS.requeues)]
    assert next_of(STOPPED, *former[:-1])[0] == "requeue"
    route, why, _ = next_of(STOPPED, *former)
    assert route == "none" and "slurm.requeues = 4" in why


def test_links_that_gain_nothing_end_the_chain() -> None:
    idle = [link(gained=20) for _ in range(WITHOUT_GAIN - 1)]
    assert next_of(STOPPED, *idle[1:])[0] == "requeue"
    route, why, _ = next_of(STOPPED, *idle)
    assert route == "none" and "nothing new" in why
    assert next_of(STOPPED, link(gained=19), *idle[1:])[0] == "requeue"


def test_a_link_that_said_its_end_twice_is_one_link() -> None:
    twice = link(gained=20) + link(gained=20)[-1:]
    assert next_of(STOPPED, twice)[0] == "requeue"
    assert next_of(STOPPED, twice, link(gained=20))[0] == "none"


def test_a_hang_is_a_failure() -> None:
    hung = Ending("hung", "rank 1 is behind", 76, cause="rank # is behind", hosts=("node2",), leave_out=True, gained=5)
    assert next_of(hung)[::2] == ("requeue", 75)
    assert next_of(hung, link(outcome="hung", cause="rank # is behind", gained=5))[::2] == ("none", 76)
