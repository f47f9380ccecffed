"""From upstream archives to every table of the paper; `snakemake --profile demo` or `--profile slurm`."""

import os
import shlex
import sys
from pathlib import Path

from snakemake.utils import min_version

from u2pl.cli import client, server
from u2pl.errors import UserError
from u2pl.experiments import load_suite
from u2pl.experiments.read import validate
from u2pl.experiments.schema import Config
from u2pl.experiments.settle import prepare_scale
from u2pl.experiments.specs import PLANNED, Jobs

min_version("9.0")

try:
    config |= validate(Config, config, "--config").model_dump()
    suite = load_suite(config["scale"])
    # A job on a cluster loads this file too; only the process that plans may write specifications and set dates.
    jobs = prepare_scale(suite) if workflow.is_main_process else Jobs(suite)
except UserError as error:
    raise WorkflowError(str(error))

DATA = f"data/{suite.scale}"
RESULTS = f"results/{suite.scale}"
# The `u2pl` beside the interpreter that runs Snakemake: no environment has to be activated. Snakemake formats the prefix
# like a command.
BIN = shlex.quote(str(Path(sys.executable).parent)).replace("{", "{{").replace("}", "}}")
shell.prefix(f"set -euo pipefail; export PATH={BIN}:$PATH {PLANNED}=1; ")


onstart:
    if config["jobs"] == "forks" and (socket := server.start()):
        os.environ[client.SERVER] = socket


report: "workflow/report/workflow.rst"


wildcard_constraints:
    protocol="|".join(suite.protocols),
    run="|".join(map(re.escape, suite.runs)),
    table="|".join(suite.tables),
    figure="|".join(suite.figures),
    n=r"\d+",


localrules:
    all,


rule all:
    input:
        f"{RESULTS}/cells.csv",
        expand(f"{RESULTS}/tables/{{table}}.tex", table=suite.tables),
        expand(f"{RESULTS}/figures/{{figure}}.pdf", figure=suite.figures),
        f"{RESULTS}/index.html",


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/figures.smk"
