"""Evaluations -> the long table of cells, paired differences between rows -> one wide table a file."""


rule cells:
    input:
        evaluations(suite.cells),
        expand(f"{RESULTS}/runs/{{run}}/history.csv", run=suite.runs),
    output:
        report(f"{RESULTS}/cells.csv", caption="../report/cells.rst", category="Tables", labels={"table": "all cells"}),
        f"{RESULTS}/comparisons.csv",
        f"{RESULTS}/metrics.json",
        f"{RESULTS}/curves.csv",
    log:
        f"logs/{suite.scale}/cells.log",
    params:
        scale=suite.scale,
        cells=str([cell.model_dump(mode="json") for cell in suite.cells]),
        margin=suite.params.equivalence_margin,
        data=DATA_SHOWN,
    shell:
        "u2pl cells --scale {params.scale:q} > {log:q} 2>&1"


rule table:
    input:
        lambda wildcards: evaluations(cell for cell in suite.cells if cell.table == wildcards.table),
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
    log:
        f"logs/{suite.scale}/tables/{{table}}.log",
    params:
        scale=suite.scale,
        table=lambda wildcards: suite.tables[wildcards.table].model_dump_json(),
        margin=suite.params.equivalence_margin,
        data=DATA_SHOWN,
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
