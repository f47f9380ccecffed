"""Finished runs -> the figures, and the page to open first."""

from u2pl.experiments import figure_cells


def drawn_from(wildcards):
    """The small files that tell when a figure's runs, and so their weights, are others."""
    figure = suite.figures[wildcards.figure]
    if figure.kind == "comparison":
        return f"{RESULTS}/cells/{figure.table}.csv"
    runs = [cell.runs for cell in figure_cells(suite, wildcards.figure).values()]
    if figure.kind != "curves":
        return expand(f"{RESULTS}/runs/{{run}}/evaluation.json", run=sorted({seeds[0] for seeds in runs}))
    return expand(f"{RESULTS}/runs/{{run}}/history.csv", run=sorted({run for seeds in runs for run in seeds}))


rule figure:
    input:
        drawn_from,
    output:
        f"{RESULTS}/figures/{{figure}}.pdf",
        report(
            f"{RESULTS}/figures/{{figure}}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        f"logs/{suite.scale}/figures/{{figure}}.log",
    resources:
        mem_mb=4000,
    params:
        scale=suite.scale,
        figure=lambda wildcards: suite.figures[wildcards.figure].model_dump_json(),
        caption=lambda wildcards: suite.figures[wildcards.figure].caption,
    shell:
        "u2pl figure {wildcards.figure} --scale {params.scale} > {log} 2>&1"


rule figures:
    input:
        expand(f"{RESULTS}/figures/{{figure}}.pdf", figure=suite.figures),
    localrule: True


rule page:
    input:
        f"{RESULTS}/cells.csv",
        expand(f"{RESULTS}/runs/{{run}}/{{file}}", run=suite.runs, file=["run.json", "history.csv", "evaluation.json"]),
    output:
        report(f"{RESULTS}/index.html", caption="../report/page.rst", category="Tables", labels={"table": "all"}),
    log:
        f"logs/{suite.scale}/page.log",
    params:
        scale=suite.scale,
    shell:
        "u2pl page --scale {params.scale} > {log} 2>&1"
