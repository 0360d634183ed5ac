"""`rumpun push MODEL ORG/NAME`: an exported model onto the Hugging Face Hub; a dry run without `--yes`.

Exit codes: 0 shown, or published; 2 something to mend, in one line; 130 ^C (the same command goes on).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_prep.errors import UserError

if TYPE_CHECKING:
    from train.hub.client import Hub
    from train.hub.files import Listing
    from train.hub.licences import Verdict
    from train.hub.push import Plan

_HEAD_LINES = 24
_STATES = {"add": "new", "replace": "replaces another", "same": "there already"}


@dataclass(frozen=True)
class Prepared:
    """What would be published. `needs` names what still stands in the way, a line each."""

    model: Path
    run: Path | None
    listing: Listing
    card: str
    verdict: Verdict
    parity: str
    needs: list[str]


def push_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="a run folder, or its export/model")],
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="repository on the hub; made if it is not there")],
    revision: Annotated[str | None, typer.Option("--revision", metavar="TAG", help="tag of the commit: v1.0")] = None,
    private: Annotated[bool, typer.Option("--private", help="make a new repository private")] = False,
    message: Annotated[str | None, typer.Option("--message", metavar="TEXT", help="message of the commit")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="publish; without it nothing leaves this machine")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace files that differ, and move a tag that exists")
    ] = False,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="run folder that the card tells of (else MODEL's own)")
    ] = None,
    licence: Annotated[str | None, typer.Option("--licence", metavar="ID", help="licence of this model: mit")] = None,
    accept_licence: Annotated[
        str | None, typer.Option("--accept-licence", metavar="ID", help="the base's licence, which you have read")
    ] = None,
    data_licence: Annotated[
        list[str] | None,
        typer.Option("--data-licence", metavar="SOURCE=ID", help="licence of a source, for the card; news_* works"),
    ] = None,
    card: Annotated[Path | None, typer.Option("--card", metavar="FILE", help="publish this card instead")] = None,
    write_card: Annotated[
        Path | None, typer.Option("--write-card", metavar="FILE", help="write the card there, to edit or to read")
    ] = None,
    unproven: Annotated[
        bool, typer.Option("--unproven", help="publish although nothing proves that it is the trained model")
    ] = False,
) -> None:
    """Publish an exported model on the Hugging Face Hub: shows files, card and licence first; --yes sends them."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from data_prep.files import write_atomically
    from train.hub.client import Hub, Patience, find_token
    from train.hub.push import check_names, push

    check_names(repo, revision)
    if write_card is not None and (write_card.is_dir() or not write_card.absolute().parent.is_dir()):
        raise UserError(f"--write-card {write_card}", "is no file in a folder that is there", "make its folder first")
    token = find_token()
    if yes and token is None:
        raise UserError(f"pushing to {repo}", "there is no token", "hf auth login, or set HF_TOKEN (with write)")
    # a dry run asks once and does not wait long: it must work without a network too
    patience = Patience() if yes else Patience(attempts=1, timeout_s=10)
    hub = Hub(token, patience=patience, note=typer.echo)
    ready = prepare(
        model, repo, run=run, licence=licence, accepted=accept_licence, sources=data_licence or [], card=card,
        unproven=unproven, token=token,
    )  # fmt: skip
    if write_card is not None:
        write_atomically(write_card, ready.card.encode())
    if not yes:
        _show(ready, hub, repo, revision, private=private, overwrite=overwrite, written=write_card)
        return
    for line in ready.verdict.warnings:
        typer.echo(f"warning: {line}", err=True)
    if ready.needs:
        raise UserError(f"pushing to {repo}", "not without your word", ready.needs[0])
    done = push(
        hub, repo, ready.listing.files, tag=revision, message=message or f"Upload {repo.split('/')[1]} with rumpun",
        private=private, overwrite=overwrite,
    )  # fmt: skip
    where = f"{hub.where}/{repo}"
    if not done.committed:
        typer.echo(f"{where} holds these files already, as {done.commit[:12]}; nothing was sent")
    else:
        typer.echo(f"published: {where} at {done.commit[:12]}, {len(done.sent)} files sent and read back")
    if done.tagged:
        typer.echo(f"tagged: {revision}")


def find_model(place: Path, run: Path | None) -> tuple[Path, Path | None]:
    """The exported folder and its run. Raises `UserError` where there is no such folder or no export in it."""
    if not place.is_dir():
        raise UserError(str(place), "no such folder", "give a run folder (runs/NAME) or runs/NAME/export/model")
    if run is not None and not any(run.glob("*/stage.json")):
        raise UserError(f"--run {run}", "is no run folder (no */stage.json)", "give runs/NAME")
    exported = place / "export" / "model"
    if exported.is_dir():
        return exported, run or place
    if (place / "model" / "modules.json").is_file() and not (place / "modules.json").exists():
        place = place / "model"  # what the export writes: the model, and its parity.json beside it
    if any(place.glob("*/stage.json")) and not (place / "config.json").is_file():
        raise UserError(str(place), "is a run without an exported model", "export it first: rumpun export RECIPE")
    above = place.resolve().parent.parent
    own = above if place.resolve().parent.name == "export" and (above / "recipe.toml").is_file() else None
    return place, run or own


def prepare(
    place: Path,
    repo: str,
    *,
    run: Path | None,
    licence: str | None,
    accepted: str | None,
    sources: list[str],
    card: Path | None,
    unproven: bool,
    token: str | None,
) -> Prepared:
    """Everything that goes up, made and judged without a network. Raises `UserError` for what no flag can mend."""
    from train.hub.card import make_card
    from train.hub.files import CARD, Listing, list_files, parity_trouble, read_file, read_parity, text_file
    from train.hub.licences import base_licence, judge

    licences = {}
    for entry in sources:
        source, equals, name = entry.partition("=")
        if not (source and equals and name):
            raise UserError(f"--data-licence {entry!r}", "must be SOURCE=LICENCE", "for example: news_*=cc-by-4.0")
        licences[source] = name
    model, run = find_model(place, run)
    base = base_licence(run)
    verdict = judge(base, repo=repo, own=licence, accepted=accepted)
    listing = list_files(model, secret=token)
    if card is not None:
        if not card.is_file():
            raise UserError(f"--card {card}", "no such file", "write one: --write-card FILE")
        try:
            text = card.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"--card {card}", "is not UTF-8", "save it as UTF-8") from error
    else:
        text = make_card(model, run, name=repo, licence=verdict.name, base=base, data_licences=licences)
    if token is not None and token in text:
        raise UserError("the card", "holds your access token", "take it out of the recipe or the card, and revoke it")
    names = {file.name for file in listing.files}
    extra = [text_file(CARD, text)]
    extra += [read_file(path, path.name) for path in base.texts if path.name not in names]
    terms = base.licence
    if terms is not None and terms.notice and "NOTICE" not in names | {file.name for file in extra}:
        extra.append(text_file("NOTICE", terms.notice + "\n"))
    files = sorted([*listing.files, *extra], key=lambda file: file.name)
    refused = [(name, why) for name, why in listing.refused if not (name == CARD and card == model / CARD)]
    needs = [verdict.needs] if verdict.needs else []
    trouble, proof = parity_trouble(model, listing.files), read_parity(model) or {}
    if trouble and not unproven:
        needs.append(f"--unproven: {trouble}")
    told = f"{proof.get('max_abs_difference')} over {proof.get('texts')} texts, allowed {proof.get('tolerance')}"
    return Prepared(model, run, Listing(files, refused), text, verdict, trouble or told, needs)


def _show(
    ready: Prepared,
    hub: Hub,
    repo: str,
    tag: str | None,
    *,
    private: bool,
    overwrite: bool,
    written: Path | None,
) -> None:
    """The dry run's page."""
    states, said = _ask(hub, ready, repo, tag, overwrite=overwrite)
    echo = typer.echo
    echo(f"model:   {ready.model}" + (f", of the run {ready.run}" if ready.run else ", of no run that is known"))
    echo(f"to:      {hub.where}/{repo}" + (f", tag {tag}" if tag else "") + (", private if new" if private else ""))
    echo(f"parity:  {ready.parity}")
    echo(f"licence: {ready.verdict.line}")
    echo(f"         the model's own: {ready.verdict.name or 'not stated'}")
    for line in ready.verdict.warnings:
        echo(f"warning: {line}")
    echo(f"files:   {len(ready.listing.files)}, {_size(ready.listing.size)}")
    width = max(len(file.name) for file in ready.listing.files)
    for file in ready.listing.files:
        line = f"  {file.name:{width}}  {_size(file.size):>9}  sha256 {file.sha256[:12]}  {states.get(file.name, '')}"
        echo(line.rstrip())
    for name, why in ready.listing.refused:
        echo(f"  stays here: {ascii(name)[1:-1]} ({why})")
    for line in said:
        echo(f"hub:     {line}")
    lines = ready.card.splitlines()
    place = f", whole in {written}" if written else "; --write-card FILE writes it all"
    echo(f"card:    README.md, {len(lines)} lines{place}")
    start = lines.index("---", 1) + 1 if lines[:1] == ["---"] and "---" in lines[1:] else 0
    for line in [line for line in lines[start:] if line.strip()][:_HEAD_LINES]:
        echo(f"  | {line}")
    for line in ready.needs:
        echo(f"needs:   {line}")
    echo("nothing was sent: this is a dry run; --yes publishes")


def _ask(hub: Hub, ready: Prepared, repo: str, tag: str | None, *, overwrite: bool) -> tuple[dict[str, str], list[str]]:
    """What is on the hub: the state of each file, and lines to say. Without a network it says so."""
    from train.hub.push import compare, look, objections, tag_plan

    try:
        with hub.open() as api:
            remote = look(hub, api, repo)
            plan = compare(ready.listing.files, remote.files)
            tagged = tag_plan(hub, api, repo, remote, ready.listing.files, tag)
    except UserError as error:
        return {}, [f"not compared: {error.rule}"]
    if not remote.exists:
        who = "" if hub.known else " (or is private: there is no token)"
        return {}, [f"{repo} is not there yet{who}"]
    states = {name: word for kind, word in _STATES.items() for name in getattr(plan, kind)}
    lines = [f"{repo} is at {(remote.head or 'no commit')[:12]}; {_summary(plan)}"]
    if tagged is not None and tagged.nothing:
        return states, [*lines, f"its tag {tag} holds these files already: nothing to do"]
    if not overwrite:
        lines += [f"{line}: needs --overwrite" for line in objections(plan, repo=repo, tag=tag, tag_plan=tagged)]
    return states, lines


def _summary(plan: Plan) -> str:
    return f"{len(plan.add)} new, {len(plan.replace)} differ, {len(plan.same)} there already, {len(plan.delete)} to go"


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"
