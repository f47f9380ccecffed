"""What the rules share."""


def spec(wildcards):
    return suite.runs[wildcards.run]


def tokens(wildcards):
    """The small manifests a run depends on: its data and its split lists."""
    run = spec(wildcards)
    return [
        f"{DATA}/{run.dataset_name}/manifest.json",
        f"{DATA}/splits/{run.protocol}/{run.labelled}/manifest.json",
    ]


def evaluations(cells):
    return sorted({f"{RESULTS}/runs/{run}/evaluation.json" for cell in cells for run in cell.runs})
