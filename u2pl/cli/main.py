"""`u2pl <verb>`: what the workflow's rules call, one verb a rule."""

import io
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from u2pl.cli.data import Scale, data, restored, splits
from u2pl.cli.fidelity import fidelity
from u2pl.errors import UserError
from u2pl.experiments import RunSpec, Suite, load_suite
from u2pl.experiments.read import pick
from u2pl.experiments.specs import Jobs, recorded, write_specs
from u2pl.folders import baseline_of, data_of, first_steps_of, results_of, warm_of

# Heavy imports stand inside the verbs: listing runs must not wait for torch.

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(data, name="data")
app.add_typer(splits, name="splits")
app.add_typer(fidelity, name="fidelity")

Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def _find(suite: Suite, run: str) -> RunSpec:
    return pick(suite.runs, run, f"run at scale {suite.scale!r}")


def _folders(spec: RunSpec) -> tuple[Path, Path, Path, Path]:
    """The folders of a run's prepared data, split lists, results and state."""
    data, results = data_of(spec.scale), results_of(spec.scale)
    prepared, split = data.prepared(spec.dataset_name), data.split(spec.split)
    return prepared.folder, split.folder, results.run(spec.id).folder, results.state(spec.id)


@app.command()
def train(
    run: str,
    scale: Scale = "demo",
    device: Device = "auto",
    restart: Annotated[bool, typer.Option(help="Forget the state that an interrupted training left.")] = False,
) -> None:
    """Train one run; a stopped one resumes from its last state. A recipe with several GPUs starts one rank per GPU.

    SIGTERM, SIGUSR1 and SIGHUP end the present step and exit with 75; the same command resumes there.
    """
    from u2pl.data.sources.fetch import fetched_sha256
    from u2pl.data.splits.draw import check
    from u2pl.ranks.launch import launch, run_rank
    from u2pl.ranks.layers import is_rank

    suite = load_suite(scale)
    spec = _find(suite, run)
    prepared, lists, out, state = _folders(spec)
    weights = Path(spec.weights) if spec.weights else None

    def check_inputs() -> None:
        restored(suite, spec.dataset_name, spec.recipe.threads)
        check(lists, prepared)  # the lists may have been edited since they were drawn
        if weights is not None:
            fetched_sha256(weights, suite.weights.get(weights.name))

    def begin() -> None:
        from u2pl.engine.train import train as start

        check_inputs()
        start(
            spec,
            prepared=prepared,
            split=lists,
            weights=weights,
            out=out,
            state=state,
            device=device,
            restart=restart,
        )

    if is_rank():
        run_rank(begin)
    elif spec.recipe.gpus > 1:
        check_inputs()  # here as well, so that no rank has to restore files while the others wait
        again = ["--restart"] if restart else []
        with recorded(suite, "train", run):
            launch(spec.recipe.gpus, "-m", "u2pl", "train", run, "--scale", scale, "--device", device, *again)
    else:
        with recorded(suite, "train", run):
            begin()


@app.command()
def evaluate(runs: list[str], scale: Scale = "demo", device: Device = "auto") -> None:
    """Evaluate the weights of finished runs again, last and best, on the validation list."""
    from u2pl.data.splits.draw import check
    from u2pl.engine.evaluate import evaluate_run
    from u2pl.engine.run_lock import lock_path, locked_run

    suite = load_suite(scale)
    for spec in [_find(suite, run) for run in runs]:
        prepared, lists, out, state = _folders(spec)
        restored(suite, spec.dataset_name, spec.recipe.threads)
        check(lists, prepared)
        with locked_run(lock_path(state)):
            evaluate_run(spec, prepared=prepared, split=lists, run_dir=out, device=device)


@app.command()
def cells(scale: Scale = "demo") -> None:
    """Gather every cell of every table, its classes, differences between rows, gains and claims.

    metrics.json and curves.csv are for DVC.
    """
    from u2pl.report.cells import write_cells, write_comparisons, write_gains
    from u2pl.report.claims import write_claims
    from u2pl.report.classes import write_classes
    from u2pl.report.dvc import write_curves, write_metrics

    suite, results = load_suite(scale), results_of(scale)
    with recorded(suite, "cells", "all"):
        write_cells(suite, results.folder, results.cells())
        write_comparisons(suite, results.folder, results.comparisons())
        write_gains(suite, results.folder, results.gains)
        write_claims(suite, results.folder, results.claims)
        write_classes(suite, results.folder, results.classes)
        write_metrics(results.cells(), results.metrics)
        write_curves(suite, results.folder, results.curves)


@app.command()
def specs(scale: Scale = "demo") -> None:
    """Write the specification of every run, table, figure and data set to results/<scale>/specs, where it changed."""
    write_specs(Jobs(load_suite(scale)))


@app.command()
def table(name: str, scale: Scale = "demo") -> None:
    """Write one table as CSV, Markdown and LaTeX, its own cells, and the differences between its rows."""
    from u2pl.report.cells import suite_of_table, write_cells, write_comparisons
    from u2pl.report.tables import write_table

    suite = load_suite(scale)
    shown = pick(suite.tables, name, f"table at scale {scale!r}")
    results, part = results_of(scale), suite_of_table(suite, name)
    with recorded(suite, "table", name):
        write_cells(part, results.folder, results.cells(name))
        write_comparisons(part, results.folder, results.comparisons(name))
        sources = results.cells(name), results.comparisons(name)
        write_table(*sources, shown, name, suite.params, results.table(name))


@app.command()
def figure(name: str, scale: Scale = "demo", device: Device = "auto") -> None:
    """Draw one figure of finished runs as PDF and PNG."""
    from u2pl.cli.figure import draw

    draw(load_suite(scale), name, device)


@app.command()
def page(scale: Scale = "demo") -> None:
    """Write results/<scale>/index.html, the page to open first."""
    from u2pl.report.page import write_page

    suite, results = load_suite(scale), results_of(scale)
    with recorded(suite, "page", "all"):
        write_page(suite, results.folder, results.cells(), results.classes, results.page)


@app.command()
def show(
    what: Annotated[list[str], typer.Argument(help="A table; a table, a row and a column; or a run id.")],
    scale: Scale = "demo",
    as_json: Annotated[bool, typer.Option("--json", help="The same for machines, and whole.")] = False,
) -> None:
    """Print a table that has been made, or where one of its numbers, or a run, comes from."""
    from rich.console import Console
    from rich.markdown import Markdown

    from u2pl.report.show import describe_cell, describe_run, find_cell, render

    suite, results, console = load_suite(scale), results_of(scale).folder, Console()
    if len(what) not in (1, 3):
        raise UserError("show", f"{len(what)} arguments", "a table; a table, a row and a column; or a run id")
    if len(what) == 1 and what[0] in suite.tables:
        path = results_of(scale).table(what[0]).with_suffix(".md")
        if as_json:
            raise UserError(
                "--json", f"the table {what[0]}", f"a cell or a run; numbers are in {path.with_suffix('.csv')}"
            )
        try:
            console.print(Markdown(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(path, error, f"a table made by `snakemake {what[0]}`") from error
        return
    if len(what) == 1:
        description = describe_run(suite, results, what[0])
    else:
        description = describe_cell(suite, results, find_cell(suite, *what))
    if as_json:
        print(json.dumps(description, indent=1, sort_keys=True))
    else:
        render(description, console)


@app.command()
def verify(scale: Scale = "demo") -> None:
    """Verify data, splits, runs and tables against their recorded checksums; exit code 1 if a file differs."""
    from rich.console import Console

    from u2pl.report.verify import render
    from u2pl.report.verify import verify as run

    checks = run(load_suite(scale), data_of(scale).folder, results_of(scale).folder)
    render(checks, Console())
    if any(check.state == "differs" for check in checks):
        raise typer.Exit(1)


@app.command()
def check(
    scale: Scale = "demo",
    against: Annotated[Path | None, typer.Option(help="results/baselines/<scale>.csv unless given.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write the outcome as JUnit XML to this file.")] = None,
    steps: Annotated[
        bool, typer.Option("--steps", help="Only the first steps, which need no run and no data.")
    ] = False,
) -> None:
    """Compare the finished runs, and the first steps of methods, with a baseline; exit code 1 if a number moved."""
    from u2pl.engine.first_steps import first_steps, load
    from u2pl.report import baseline as module
    from u2pl.report import first_steps as of_steps

    suite, results, path = load_suite(scale), results_of(scale).folder, against or baseline_of(scale)
    if steps and against is not None:
        raise UserError("--against", f"{against} with --steps", "one of the two: it is a baseline of runs")
    taken = list[of_steps.StepOutcome]()
    if steps or suite.params.first_steps:
        specs, warm = _of_first_steps(suite), warm_of(scale)
        taken = of_steps.compare_first_steps(first_steps(specs, load(warm), warm), first_steps_of(scale))
    outcomes = [] if steps else module.compare(suite, results, path)
    if junit is not None:
        module.write_junit([*outcomes, *taken], scale, junit)
    if taken:
        of_steps.render_first_steps(taken, first_steps_of(scale))
    if not steps:
        module.render(outcomes, path)
    if any(outcome.moved for outcome in (*outcomes, *taken)):
        raise typer.Exit(1)


def _of_first_steps(suite: Suite) -> list[RunSpec]:
    """The runs whose first steps are compared. Raises UserError if the scale names none."""
    if not suite.params.first_steps:
        raise UserError(f"params/scales/{suite.scale}.yaml: first_steps", "none", "runs, as with --scale check")
    return [suite.runs[run] for run in suite.params.first_steps]


@app.command()
def baseline(
    scale: Scale = "demo",
    steps: Annotated[
        bool, typer.Option("--steps", help="Only the first steps, and the state they start from.")
    ] = False,
) -> None:
    """Make today's runs and first steps the baseline of `u2pl check`; on purpose only, after reading what moved."""
    from u2pl.report.baseline import write_baseline

    suite = load_suite(scale)
    if not steps:
        write_baseline(suite, results_of(scale).folder, baseline_of(scale))
    if steps or suite.params.first_steps:
        _write_first_steps(suite)


def _write_first_steps(suite: Suite) -> None:
    """Train the warm state of a scale, and take the first steps from it. Raises UserError if data are missing."""
    from u2pl.data.splits.draw import check
    from u2pl.engine.first_steps import first_steps, save, warm_up
    from u2pl.report.first_steps import write_first_steps

    specs, path = _of_first_steps(suite), warm_of(suite.scale)
    prepared, lists, _, _ = _folders(specs[0])
    restored(suite, specs[0].dataset_name)
    check(lists, prepared)
    warm = warm_up(specs[0], prepared, lists)
    rows = first_steps(specs, warm, path)
    write_first_steps(rows, first_steps_of(suite.scale))  # refuses what is not finite
    save(warm, path)


@app.command()
def runs(scale: Scale = "demo") -> None:
    """List the runs of a scale, one id a line."""
    for run in load_suite(scale).runs:
        print(run)


@app.command()
def plan(
    tables: Annotated[list[str] | None, typer.Argument(help="Only these tables.")] = None, scale: Scale = "demo"
) -> None:
    """What the tables of a scale take, before anything is submitted: trainings, hours, disk; and what is done."""
    from rich.console import Console

    from u2pl.experiments import plan as module

    found = module.plan(load_suite(scale), tables or [], data_of(scale).folder, results_of(scale).folder)
    for part in module.tables(found):
        Console().print(part)


class _Output(io.FileIO):
    """Standard output. Its reader may be gone, as in `u2pl runs | head -1`, or its disk full."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            # What is still in buffers must not fail once more when Python ends.
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())
            if isinstance(error, BrokenPipeError):
                raise SystemExit(128 + signal.SIGPIPE) from error  # as the shell reports other tools
            raise UserError("standard output", error.strerror, "room for what is printed") from error


def _open_output() -> None:
    """Let standard output take any character and fail in one line; closed streams take everything, and drop it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
    own = sys.__stdout__
    if own is not None and own is sys.stdout and own.fileno() == 1:
        stream = io.BufferedWriter(_Output(1, "wb", closefd=False))
        sys.stdout = io.TextIOWrapper(stream, own.encoding, errors="replace", line_buffering=own.line_buffering)


def main() -> None:
    """Run the command line; what a user can cause ends in one line and exit code 2."""
    _open_output()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here: what fails when Python ends is a traceback
    except UserError as error:
        with suppress(OSError):
            print(f"u2pl: {error}", file=sys.stderr)
        sys.exit(2)
