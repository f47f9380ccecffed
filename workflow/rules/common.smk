"""What the rules share."""

from u2pl.experiments import figure_cells
from u2pl.experiments.cost import growth, minutes

# What the specification of a job is called with, by the names of the rule's wildcards.
JOBS = {
    "fetch": ["dataset", "archive"],
    "weights": ["file"],
    "list": ["source", "path"],
    "split": ["protocol", "source", "n"],
    "train": ["run"],
    "table": ["table"],
    "figure": ["figure"],
}


def job_of(kind):
    """Input function: the specification of the job that the wildcards name, and the small files it depends on."""

    def files(wildcards):
        try:
            job = jobs(kind, *(wildcards[name] for name in JOBS[kind]))
        except UserError as error:
            raise WorkflowError(str(error))
        return [job.spec, *job.inputs]

    return files


def run_of(wildcards):
    """The settings of the run."""
    return suite.runs[wildcards.run]


def evaluations(cells):
    """The evaluations of the cells' runs."""
    return sorted({f"{RESULTS}/runs/{run}/evaluation.json" for cell in cells for run in cell.runs})


def any_name_of(names):
    """A wildcard constraint: one of the names, or nothing if there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


# Figures that need the networks' predictions.
PREDICTED = [name for name, figure in suite.figures.items() if figure.table is None]


def recipe_of_figure(wildcards):
    """The recipe of the network whose predictions the figure shows."""
    cell, *_ = figure_cells(suite, wildcards.figure).values()
    return suite.runs[cell.runs[0]].recipe
