"""What the rules share."""

from u2pl.data.published import archive as list_archive
from u2pl.experiments import published_list
from u2pl.experiments.plan import grown, minutes


def spec(wildcards):
    return suite.runs[wildcards.run]


def tokens(wildcards):
    """The small manifests a run depends on: its data and its split lists."""
    run = spec(wildcards)
    return [
        f"{DATA}/{run.dataset_name}/manifest.json",
        f"{DATA}/splits/{run.split}/manifest.json",
    ]


def evaluations(cells):
    return sorted({f"{RESULTS}/runs/{run}/evaluation.json" for cell in cells for run in cell.runs})


def published_files(wildcards):
    """The fetched lists behind a split; none if it is drawn."""
    files = published_list(suite, wildcards.source, wildcards.protocol, int(wildcards.n))
    paths = [files.labelled, files.unlabelled] if files else []
    return [f"{DATA}/lists/{wildcards.source}/{path}" for path in paths if path]


def origin(wildcards):
    """What a published split is checked against and named after; nothing if it is drawn."""
    if wildcards.source == "drawn":
        return ""
    published = suite.published[wildcards.source]
    return f"{published.repository}@{published.commit}"
