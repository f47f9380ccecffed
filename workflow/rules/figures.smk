"""Finished runs -> the figures, and the page to open first."""


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
    wildcard_constraints:
        figure=one_of(name for name in suite.figures if name not in PREDICTED),
    params:
        scale=suite.scale,
        device="auto",
        figure=lambda wildcards: suite.figures[wildcards.figure].model_dump_json(),
        table=drawn_table,
        caption=lambda wildcards: suite.figures[wildcards.figure].caption,
    shell:
        "u2pl figure {wildcards.figure:q} --scale {params.scale:q} --device {params.device:q} > {log:q} 2>&1"


# A rule of its own: on a cluster it takes a GPU, in the partition that has them.
use rule figure as predicted_figure with:
    wildcard_constraints:
        figure=one_of(PREDICTED),
    threads: lambda wildcards: asked(wildcards).threads
    resources:
        gpu=lambda wildcards: min(asked(wildcards).gpus, 1),
        mem_mb=lambda wildcards: asked(wildcards).mem_mb,
    params:
        device=config["device"],


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
        tables=str([table.model_dump_json() for table in suite.tables.values()]),
        data=DATA_SHOWN,
    shell:
        "u2pl page --scale {params.scale:q} > {log:q} 2>&1"
