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
    threads: lambda wildcards: recipe.threads if (recipe := predicts(wildcards)) else 1
    resources:
        gpu=lambda wildcards: int(bool((recipe := predicts(wildcards)) and recipe.gpus)),
        mem_mb=lambda wildcards: recipe.mem_mb if (recipe := predicts(wildcards)) else 2000,
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
