"""After the walk of a link: what follows is decided, recorded and set in motion."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import typer

from data_prep.errors import UserError
from launch.slurm.inside.afterwards import Ending, Next, decide
from launch.slurm.inside.routes import RUNS, alone, give_up_array, requeue, succeed
from launch.slurm.submitting.jobs import route_of
from train.exit_codes import DEFECT, DONE, STOPPED

if TYPE_CHECKING:
    from launch.display import TerminalProgress
    from launch.slurm.config import Route
    from launch.slurm.inside.job import Link


def follow(link: Link, ending: Ending, progress: TerminalProgress) -> int:
    """Record how the link ended, and let the job go on where it can. Returns the exit code of this process."""
    # from here on nothing is left to save; a second warning must not end what is being set in motion
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    route = _route(link)
    following = decide(
        ending, events=_events(link), settings=link.recipe.slurm, route=route,
        last_of_array=link.place.last_of_array, stopped=stopped_why(link),
    )  # fmt: skip
    _remember(link, ending)
    if following.route != "none":
        following = _taken(link, following)
    if following.route in ("requeue", "already requeued"):
        _tell(link, ending, following)
        return _requeued(link, ending, following)
    if following.route == "successor":
        following = _succeeded(link, ending)
    _tell(link, ending, following)
    if following.route == "none" and ending.outcome not in ("done", "superseded"):
        give_up_array(link.slurm, link.place)
    return following.exit


def stopped_why(link: Link) -> str | None:
    """Why this job shall not go on by itself; a link of an array is meant where the array is."""
    place, chain = link.place, link.chain
    return chain.stopped(place.job_id) or (chain.stopped(place.array[0]) if place.array else None)


def _events(link: Link) -> list[dict[str, Any]]:
    """What this job went through since it was submitted: whoever submits it anew gives it a new budget."""
    told, name, job_id = link.chain.jobs(), link.kind.name, link.place.job_id
    entry = told.get("jobs", {}).get(name, {})
    ids = {str(entry.get("id")), *entry.get("former", [])}
    submitted = job_id in ids or (link.place.array is not None and link.place.array[0] in ids)
    events = link.chain.events(name)
    if submitted:
        return [event for event in events if event["time"] >= told["submitted_at"]]
    return [event for event in events if event["job"] == job_id]


def _route(link: Link) -> Route:
    """As submitted: an array is an array, whatever the recipe says by now."""
    if link.place.array is not None:
        return "array"
    told = link.chain.jobs().get("jobs", {}).get(link.kind.name, {})
    if told.get("id") == link.place.job_id and told.get("route") in ("requeue", "successor"):
        route: Route = told["route"]
        return route
    return route_of(link.recipe, link.profile)


def _taken(link: Link, following: Next) -> Next:
    """What the scheduler has decided already: the job was cancelled, requeued by somebody else, or may not be."""
    told = link.slurm.show(link.place.job_id)
    if int(told.get("Restarts", 0)) > link.place.restart:
        return Next("already requeued", "the scheduler has requeued it", following.exit)
    state = told.get("JobState", "").split(" ")[0]
    if state not in RUNS:
        return Next("none", f"the job was cancelled (the scheduler says {state})", following.exit)
    if following.route == "requeue" and told.get("Requeue") == "0":  # a site that forbids it
        typer.echo("this job may not be requeued (Requeue=0): a new one goes on instead", err=True)
        return Next("successor", "", following.exit)
    return following


def _requeued(link: Link, ending: Ending, following: Next) -> int:
    if following.route == "already requeued":
        return STOPPED  # an exit code means nothing any more
    try:
        return requeue(link.slurm, link.place, without=ending.hosts if ending.leave_out else ())
    except UserError as refused:  # for whatever other reason: the next best route
        typer.echo(f"not requeued ({refused.rule}); a new job goes on instead", err=True)
        following = _succeeded(link, ending)
        _tell(link, ending, following)
        return following.exit


def _succeeded(link: Link, ending: Ending) -> Next:
    without = ending.hosts if ending.leave_out else ()
    if not link.chain.script(link.kind.name).is_file():
        return Next("none", "it was submitted by hand: submit it again in the same way", ending.exit or DEFECT)
    try:
        with alone(link.chain):
            new = (
                None
                if stopped_why(link)
                else succeed(link.slurm, link.place, link.chain, link.kind.name, without=without)
            )
            if why := stopped_why(link):  # `rumpun cancel` may have looked before it was there
                link.slurm.cancel([new] if new else [])
                return Next("none", f"{why} by `rumpun`", ending.exit)
    except UserError as refused:
        return Next("none", f"no successor could be submitted: {refused}", ending.exit or DEFECT)
    return Next(f"successor {new}", "", DONE)


def _remember(link: Link, ending: Ending) -> None:
    """Failures are remembered by node; what the preflight found is in the memory already."""
    if ending.outcome not in ("failed", "hung") or not ending.hosts or ending.cause == "preflight":
        return
    from launch.slurm.inside.look import remember_all

    kind = "failed" if ending.leave_out else "rank_killed"
    kind = {"hung": "hung", "roll call": "roll_call_missing"}.get(
        "hung" if ending.outcome == "hung" else ending.cause, kind
    )
    remember_all(link, dict.fromkeys(ending.hosts, (kind, ending.reason)))


def _tell(link: Link, ending: Ending, following: Next) -> None:
    """The record's last line of this link, and the user's."""
    link.log.write(
        "end",
        **ending.facts(),
        exit=following.exit,
        why=following.why,
        next="requeue" if following.route == "already requeued" else following.route,
    )
    if ending.outcome == "done":
        return
    said = {"requeue": "the job is requeued and goes on", "array": following.why}
    line = said.get(following.route) or following.why or f"job {following.route.removeprefix('successor ')} goes on"
    typer.echo(line if following.route != "none" else f"not going on by itself: {line}", err=True)
