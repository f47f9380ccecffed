"""What the rules share."""

from u2pl.data.published import archive as list_archive
from u2pl.experiments import figure_cells, published_list
from u2pl.experiments.cost import grown, minutes


def spec(wildcards):
    return suite.runs[wildcards.run]


def tokens(wildcards):
    """The small manifests a run depends on: its data and its split lists."""
    run = spec(wildcards)
    return [
        f"{DATA}/{run.dataset_name}/manifest.json",
        f"{DATA}/splits/{run.split}/manifest.json",
    ]


def encoder_weights(wildcards):
    """The manifest of the fetched encoder weights; none for random ones."""
    weights = spec(wildcards).weights
    return f"{weights}.json" if weights else []


def evaluations(cells):
    return sorted({f"{RESULTS}/runs/{run}/evaluation.json" for cell in cells for run in cell.runs})


def published_files(wildcards):
    """The manifests of the fetched lists behind a split; none if it is drawn."""
    files = published_list(suite, wildcards.source, wildcards.protocol, int(wildcards.n))
    paths = [files.labelled, files.unlabelled] if files else []
    return [f"{DATA}/lists/{wildcards.source}/{path}.json" for path in paths if path]


def origin(wildcards):
    """What a published split is checked against and named after; nothing if it is drawn."""
    if wildcards.source == "drawn":
        return ""
    published = suite.published[wildcards.source]
    return f"{published.repository}@{published.commit}"


def drawn_from(wildcards):
    """The small files that tell when a figure's runs, and so their weights, are others."""
    figure = suite.figures[wildcards.figure]
    if figure.kind == "comparison":
        return f"{RESULTS}/cells/{figure.table}.csv"
    runs = [cell.runs for cell in figure_cells(suite, wildcards.figure).values()]
    if figure.kind != "curves":
        return expand(f"{RESULTS}/runs/{{run}}/evaluation.json", run=sorted({seeds[0] for seeds in runs}))
    return expand(f"{RESULTS}/runs/{{run}}/history.csv", run=sorted({run for seeds in runs for run in seeds}))


def one_of(names):
    """A constraint that lets a wildcard be one of the names; none of them may be there."""
    return "|".join(map(re.escape, names)) or "(?!)"


# The figures that ask networks, and do not only draw numbers.
PREDICTED = [name for name, figure in suite.figures.items() if figure.table is None]
# What captions and verdicts say of the data.
DATA_SHOWN = f"{suite.params.title}, synthetic: {suite.params.synthetic}"


def drawn_table(wildcards):
    """What a figure of numbers writes beside them: titles of rows and columns."""
    table = suite.figures[wildcards.figure].table
    return suite.tables[table].model_dump_json() if table else ""


def asked(wildcards):
    """The recipe of the network that a figure asks, one image at a time."""
    cell, *_ = figure_cells(suite, wildcards.figure).values()
    return suite.runs[cell.runs[0]].recipe
