"""`u2pl fidelity <verb>`: what the divergences between the paper and the released code do."""

from pathlib import Path
from typing import Annotated

import typer

from u2pl.errors import UserError
from u2pl.experiments import load_suite
from u2pl.experiments.readings import reading

fidelity = typer.Typer(no_args_is_help=True, help="What the divergences of docs/fidelity.md do.")


@fidelity.command()
def measure(
    csv: Annotated[Path | None, typer.Option(help="Also write the numbers to this CSV file.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the batch; docs/fidelity.md shows that of 0.")] = 0,
) -> None:
    """One step of U2PL on a fixed synthetic batch, per preset and for each factor alone: keys, classes, losses."""
    from rich.console import Console

    if csv is not None and not csv.parent.is_dir():
        raise UserError("--csv", f"no folder {csv.parent}", "a file in a folder that exists")
    load_suite("demo")  # refuses params that do not fit
    paper, released = reading("paper"), reading("released")

    from u2pl.report import fidelity as module
    from u2pl.report.half_trained import batch

    measured = module.measure(list(module.cases(paper, released)), batch(seed=seed))
    if csv is not None:
        module.write_csv(csv, measured)
    for part in module.tables(measured):
        Console().print(part)
