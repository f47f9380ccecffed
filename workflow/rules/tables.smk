"""Evaluations -> the long table of cells -> one wide table a file."""


rule cells:
    input:
        evaluations(suite.cells),
        expand(f"{RESULTS}/runs/{{run}}/history.csv", run=suite.runs),
    output:
        f"{RESULTS}/cells.csv",
        f"{RESULTS}/metrics.json",
        f"{RESULTS}/curves.csv",
    log:
        f"logs/{suite.scale}/cells.log",
    params:
        scale=suite.scale,
        cells=str([cell.model_dump(mode="json") for cell in suite.cells]),
    shell:
        "u2pl cells --scale {params.scale} > {log} 2>&1"


rule table:
    input:
        lambda wildcards: evaluations(cell for cell in suite.cells if cell.table == wildcards.table),
    output:
        f"{RESULTS}/cells/{{table}}.csv",
        f"{RESULTS}/tables/{{table}}.csv",
        f"{RESULTS}/tables/{{table}}.md",
        f"{RESULTS}/tables/{{table}}.tex",
    log:
        f"logs/{suite.scale}/tables/{{table}}.log",
    params:
        scale=suite.scale,
        table=lambda wildcards: suite.tables[wildcards.table].model_dump_json(),
    shell:
        "u2pl table {wildcards.table} --scale {params.scale} > {log} 2>&1"


# `snakemake table5` for one table.
for table in suite.tables:

    rule:
        name:
            table
        input:
            f"{RESULTS}/tables/{table}.tex",
        localrule: True
