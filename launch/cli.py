"""The `rumpun` command.

    rumpun demo                    everything, small, on this machine, from nothing
    rumpun run RECIPE              all stages here; skips what is done
    rumpun recipe show RECIPE      the recipe resolved, with the reason of every default
    rumpun submit RECIPE           the same as a chain of SLURM jobs; cancel, drill, preflight beside it
    rumpun status|watch|logs RUN   where a run is, live too, and what its jobs say
    rumpun history RUN             where its time went, and why each link ended
    rumpun compare RUN RUN         runs side by side on one page
    rumpun robust|mteb MODEL       what breaks a model; mteb's own evaluation
    rumpun ablate RECIPE           a recipe with one thing changed at a time
    rumpun search MODEL TEXTS      try a model by hand
    rumpun push MODEL ORG/NAME     publish an exported model; export-checkpoint makes one of any checkpoint
    rumpun inspect SHARDS          what is in a folder of shards
    rumpun ledger verify RUN       every sample exactly once, proven

Exit codes: 0 done; 2 a mistake that the user can mend (one line, `error: …`); 1 a defect or a dead rank; 75 stopped on
request, the same command goes on; 76 training hung; 77 training diverged; 78 a newer start has taken over; 130 ^C; 143
SIGTERM (train/exit_codes.py).

While ranks train, SIGTERM, SIGUSR1, SIGUSR2 and a first ^C let them save: the command ends with 75. A second ^C ends
everything at once. Where no rank runs there is nothing to save: what is being built is dropped, what is done is kept.

Heavy imports stay inside the commands: `rumpun --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from data_prep.errors import UserError
from launch.ablate_command import ablate_command
from launch.export_command import export_checkpoint_command
from launch.inspect_command import inspect_command
from launch.ledger_command import ledger_app
from launch.mteb_command import mteb_command
from launch.options import Cluster, Data, Overrides, RecipeName, RunName, Runs
from launch.push_command import push_command
from launch.report_command import compare_command
from launch.robust_command import robust_command
from launch.search.search_command import search_command
from launch.slurm.clusters.cluster_command import cluster_app
from launch.slurm.drill.drill_command import drill_command
from launch.slurm.health.preflight_command import preflight_command
from launch.slurm.submitting.submit_command import cancel_command, submit_command
from launch.slurm.telling.history_command import history_command
from launch.slurm.telling.status_command import logs_command, status_command, watch_command
from launch.testbench import testbench_app
from train.exit_codes import DIVERGED, INTERRUPTED, MISTAKE, STOPPED, SUPERSEDED

app = typer.Typer(
    name="rumpun",
    help="Turn an open LLM into a text-embedding model for Malaysian text.",
    epilog="Exit codes: 0 done, 1 defect, 2 a mistake to mend, 75 saved, 76 hung, 77 diverged, 78 overtaken",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipe_app = typer.Typer(help="Look at recipes.", no_args_is_help=True)

Nproc = Annotated[int | None, typer.Option("--nproc", metavar="N", help="processes of a training phase (launch.nproc)")]
Force = Annotated[bool, typer.Option("--force", help="rebuild even what is up to date")]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="start training over where it was interrupted; the former history is kept aside")
]


def quiet_libraries() -> None:
    """Quiet, offline-safe libraries: their progress bars and notices would break the one-line display."""
    # waiting threads sleep instead of spinning: beside other busy processes spinning costs most of both cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    if not Path("/proc/driver/nvidia").exists() and not Path("/dev/kfd").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns of it whenever transformers imports it
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _run(
    name: str,
    overrides: list[str] | None,
    data: Path | None,
    runs: Path,
    run_name: str | None,
    nproc: int | None,
    *,
    fresh: bool = False,
    **choice: Any,
) -> Path:
    """Load a recipe, walk its graph, print what came out, and return the run folder."""
    quiet_libraries()
    from data_prep.progress import format_seconds
    from launch.display import TerminalProgress
    from launch.recipe import load_recipe
    from launch.runner import Choice, check_run_name, walk

    overrides = [*(overrides or []), *([f"launch.nproc={nproc}"] if nproc is not None else [])]
    recipe, source = load_recipe(name, overrides)
    run = runs / check_run_name(run_name or recipe.name)
    progress = TerminalProgress()
    progress.note(f"rumpun: recipe {source.name}, run folder {run}")
    outcome = walk(recipe, source, run=run, data=data, choice=Choice(**choice), progress=progress, fresh=fresh)
    if not outcome.built:
        progress.note(
            f"nothing to do: all {len(outcome.kept)} stages are up to date ({format_seconds(outcome.wall_s)})"
        )
    else:
        overhead = 100 * (1 - outcome.work_s / outcome.wall_s)
        progress.note(
            f"built {len(outcome.built)} stages in {format_seconds(outcome.wall_s)}, "
            f"{len(outcome.kept)} were up to date; "
            f"{overhead:.1f} % of it was the pipeline's own overhead"
        )
    _print_end(run)
    return run


def _print_end(run: Path) -> None:
    """The results table, and where the report and the model are."""
    from data_prep.files import read_json

    if (run / "eval" / "results.json").exists():
        from rich.console import Console

        from eval.table import print_results

        print_results(read_json(run / "eval" / "results.json"), Console())
    if (run / "report" / "report.html").exists():
        typer.echo(f"report: {run / 'report' / 'report.html'}")
    if (run / "export" / "model").exists():
        typer.echo(f"model:  {run / 'export' / 'model'}   (SentenceTransformer folder)")


@app.command()
def demo(
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    nproc: Nproc = None,
    force: Force = False,
    fresh: Fresh = False,
) -> None:
    """Everything, small, on this machine, from nothing: a table at the end."""
    _run("demo", overrides, None, runs, None, nproc, force=force, fresh=fresh)


@app.command()
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    data: Data = None,
    runs: Runs = Path("runs"),
    run_name: RunName = None,
    nproc: Nproc = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="STAGE", help="this stage alone; its inputs must be there")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="rebuild this stage and all that depends on it")
    ] = None,
    force: Force = False,
    fresh: Fresh = False,
) -> None:
    """All stages here; skips what is done, rebuilds what changed, goes on where training was interrupted."""
    _run(recipe, overrides, data, runs, run_name, nproc, only=only, start=start, force=force, fresh=fresh)


def _after(stage: str, run: Path) -> list[str]:
    """What a command for one stage shows beside the counts: the corpus' rules."""
    from data_prep.files import read_json

    if stage == "prep" and (run / "corpus" / "report.json").exists():
        from data_prep.corpus.report import report_lines

        return report_lines(read_json(run / "corpus" / "report.json"))
    return []


def _add_stage_command(name: str, until: tuple[str, ...], text: str) -> None:
    def command(
        recipe: RecipeName,
        overrides: Overrides = None,
        data: Data = None,
        runs: Runs = Path("runs"),
        run_name: RunName = None,
        nproc: Nproc = None,
        fresh: Fresh = False,
    ) -> None:
        place = _run(recipe, overrides, data, runs, run_name, nproc, until=until, fresh=fresh)
        for line in _after(name, place):
            typer.echo(line)

    app.command(name, help=text)(command)


for _name, _until, _text in (
    ("prep", ("tokens",), "Clean the corpus, train or fetch the tokenizer, pack tokens."),
    ("mine", ("mine",), "Mine hard pairs from the corpus."),
    ("synth", ("synth",), "Synthesise question-passage pairs from the corpus."),
    ("truncate", ("truncate",), "Cut the base to some of its layers."),
    ("pretrain", ("pretrain",), "Continued pretraining, and what it needs."),
    ("finetune", ("finetune",), "Contrastive finetuning, and what it needs."),
    ("eval", ("eval",), "Evaluate, and what that needs."),
    ("export", ("export",), "Write and check the sentence-transformers folder, and what that needs."),
    ("report", ("report",), "Write the HTML report, and what it needs."),
):
    _add_stage_command(_name, _until, _text)

app.command("compare")(compare_command)
app.command("robust")(robust_command)
app.command("ablate")(ablate_command)
app.command("mteb")(mteb_command)
app.command("search")(search_command)
app.command("export-checkpoint")(export_checkpoint_command)
app.command("push")(push_command)


@app.command()
def probe(
    recipe: RecipeName,
    overrides: Overrides = None,
    data: Data = None,
    runs: Runs = Path("runs"),
    run_name: RunName = None,
    nproc: Nproc = None,
) -> None:
    """What a cut costs, before it is paid for: retrieval with the base's states after every layer."""
    from data_prep.files import read_json
    from launch.recipe import load_recipe
    from train.probe import probe_lines

    loaded, _ = load_recipe(recipe, overrides or ())
    if loaded.truncate.probe is None:
        overrides = [*(overrides or []), "truncate.probe={}"]
    run = _run(recipe, overrides, data, runs, run_name, nproc, until=("probe",))
    typer.echo("\n".join(probe_lines(read_json(run / "probe" / "probe.json"), kept=loaded.truncate.layers)))


@recipe_app.command("show")
def recipe_show(recipe: RecipeName, overrides: Overrides = []) -> None:
    """The recipe resolved: every value, with its one-line reason; the output is itself a recipe."""
    from launch.recipe import load_recipe, show

    loaded, source = load_recipe(recipe, overrides or ())
    typer.echo(f"# {source.name}, resolved\n" + "\n".join(show(loaded)))


@recipe_app.command("check")
def recipe_check(recipe: RecipeName, overrides: Overrides = None, data: Data = None) -> None:
    """Validate a recipe and say what it needs: data, base model, disk, GPUs."""
    from launch.needs import needs_of
    from launch.recipe import load_recipe

    loaded, source = load_recipe(recipe, overrides or ())
    typer.echo(f"recipe {source.name} is valid")
    for line in needs_of(loaded, data=data):
        typer.echo(line)


@recipe_app.command("list")
def recipe_list() -> None:
    """The recipes that come with rumpun."""
    from launch.recipe import RECIPES, load_recipe

    for path in sorted(RECIPES.glob("*.toml")):
        typer.echo(f"{path.stem:20} {load_recipe(str(path))[0].about}")


@app.command(hidden=True)
def job(
    name: Annotated[str, typer.Argument(metavar="JOB", help="prepare, pairs, pretrain, finetune, eval or export")],
    recipe: RecipeName,
    overrides: Overrides = None,
    data: Data = None,
    runs: Runs = Path("runs"),
    run_name: RunName = None,
    cluster: Cluster = None,
    fresh: Fresh = False,
) -> None:
    """What a job script starts: one link of a job, on the nodes that the scheduler gave it."""
    quiet_libraries()
    from launch.slurm.inside.job import job_command

    code = job_command(
        name, recipe, overrides or (), data=data, runs=runs, run_name=run_name, cluster=cluster, fresh=fresh
    )  # fmt: skip
    raise typer.Exit(code)


@app.command()
def doctor(runs: Runs = Path("runs")) -> None:
    """Check this machine: OK, WARN or MISS for each part, each with a one-line fix."""
    from launch.doctor import print_doctor

    raise typer.Exit(print_doctor(runs))


app.command("submit")(submit_command)
app.command("status")(status_command)
app.command("watch")(watch_command)
app.command("logs")(logs_command)
app.command("history")(history_command)
app.command("cancel")(cancel_command)
app.command("drill")(drill_command)
app.command("preflight")(preflight_command)
app.command("inspect")(inspect_command)
app.add_typer(recipe_app, name="recipe")
app.add_typer(ledger_app, name="ledger")
app.add_typer(cluster_app, name="cluster")
app.add_typer(testbench_app, name="testbench")


def _version(wanted: bool) -> None:
    if wanted:
        from launch import VERSION

        typer.echo(f"rumpun {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


def _terminated(number: int, _: object) -> None:
    """Unwind, so that half-built folders are removed. A request to save finds everything saved: the stages are."""
    raise SystemExit(128 + number if number == signal.SIGTERM else STOPPED)


def _told(error: Exception) -> tuple[str, int] | None:
    """The line and the exit code of an error of training that says all by itself."""
    from launch.failure import RankFailure
    from train.guard import Diverged
    from train.history.fence import Superseded
    from train.survival import Stopped

    if isinstance(error, Superseded):
        return str(error), SUPERSEDED
    if isinstance(error, Stopped):
        return str(error), STOPPED
    if isinstance(error, Diverged):
        return f"error: {error}", DIVERGED
    return (f"error: {error}", error.exit_code) if isinstance(error, RankFailure) else None


def main(argv: list[str] | None = None) -> None:
    """Entry point: runs a command and turns what goes wrong into one line and an exit code."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, _terminated)
    command, told = typer.main.get_command(app), None
    try:
        code = command.main(args=argv, prog_name="rumpun", standalone_mode=False)
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        code = MISTAKE
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit as ended:  # a signal, where no rank runs
        code = ended.code
    except Exception as error:
        if show := getattr(error, "show", None):  # a usage error of typer, whose exception classes are private
            show()
            code = MISTAKE
        elif told := _told(error):
            line, code = told
            typer.echo(line, err=True)
        else:
            raise
    if code in (INTERRUPTED, STOPPED) and not told:  # typer turns ^C into the first by itself
        typer.echo(
            "\nstopped: finished stages are kept, nothing half-written is left; the same command goes on", err=True
        )
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
