"""Evaluations -> the long table of cells, paired differences between rows -> one wide table per file."""


rule cells:
    input:
        jobs("cells", "all").spec,
        jobs("cells", "all").inputs,
    output:
        report(f"{RESULTS}/cells.csv", caption="../report/cells.rst", category="Tables", labels={"table": "all cells"}),
        f"{RESULTS}/comparisons.csv",
        f"{RESULTS}/gains.csv",
        f"{RESULTS}/claims.csv",
        f"{RESULTS}/classes.csv",
        f"{RESULTS}/metrics.json",
        f"{RESULTS}/curves.csv",
        f"{RESULTS}/made/cells.json",
    log:
        f"logs/{suite.scale}/cells.log",
    params:
        scale=suite.scale,
    shell:
        "u2pl cells --scale {params.scale:q} > {log:q} 2>&1"


rule table:
    input:
        job_of("table"),
    output:
        f"{RESULTS}/cells/{{table}}.csv",
        f"{RESULTS}/comparisons/{{table}}.csv",
        report(
            f"{RESULTS}/tables/{{table}}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
        f"{RESULTS}/tables/{{table}}.md",
        f"{RESULTS}/tables/{{table}}.tex",
        f"{RESULTS}/made/table/{{table}}.json",
    log:
        f"logs/{suite.scale}/tables/{{table}}.log",
    params:
        scale=suite.scale,
        caption=lambda wildcards: suite.tables[wildcards.table].caption,
    shell:
        "u2pl table {wildcards.table:q} --scale {params.scale:q} > {log:q} 2>&1"


# `snakemake table5` for one table.
for table in suite.tables:

    rule:
        name:
            table
        input:
            f"{RESULTS}/tables/{table}.tex",
        localrule: True


# The runs that `u2pl check` compares with results/baselines.
rule baseline_runs:
    input:
        [f"{RESULTS}/runs/{run}/evaluation.json" for run in suite.baseline_runs],
    localrule: True
