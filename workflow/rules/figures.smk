"""Finished runs -> the figures, and the page to open first."""


rule figure:
    input:
        job_of("figure"),
    output:
        f"{RESULTS}/figures/{{figure}}.pdf",
        report(
            f"{RESULTS}/figures/{{figure}}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        f"{RESULTS}/made/figure/{{figure}}.json",
    log:
        f"logs/{suite.scale}/figures/{{figure}}.log",
    wildcard_constraints:
        figure=any_name_of(name for name in suite.figures if name not in PREDICTED),
    params:
        scale=suite.scale,
        device="auto",
        caption=lambda wildcards: suite.figures[wildcards.figure].caption,
    shell:
        "u2pl figure {wildcards.figure:q} --scale {params.scale:q} --device {params.device:q} > {log:q} 2>&1"


# A rule of its own: on a cluster it takes a GPU, in the partition that has them.
use rule figure as predicted_figure with:
    wildcard_constraints:
        figure=any_name_of(PREDICTED),
    threads: lambda wildcards: recipe_of_figure(wildcards).threads
    resources:
        gpu=lambda wildcards: min(recipe_of_figure(wildcards).gpus, 1),
        mem_mb=lambda wildcards: recipe_of_figure(wildcards).mem_mb,
    params:
        device=config["device"],


rule figures:
    input:
        expand(f"{RESULTS}/figures/{{figure}}.pdf", figure=suite.figures),
    localrule: True


rule page:
    input:
        jobs("page", "all").spec,
        jobs("page", "all").inputs,
    output:
        report(f"{RESULTS}/index.html", caption="../report/page.rst", category="Tables", labels={"table": "all"}),
        f"{RESULTS}/made/page.json",
    log:
        f"logs/{suite.scale}/page.log",
    params:
        scale=suite.scale,
    shell:
        "u2pl page --scale {params.scale:q} > {log:q} 2>&1"
