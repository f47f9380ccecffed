"""Evaluations -> the long table of cells -> one wide table a file."""


rule cells:
    input:
        evaluations(suite.cells),
    output:
        report(f"{RESULTS}/cells.csv", caption="../report/cells.rst", category="Tables", labels={"table": "all cells"}),
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
        caption=lambda wildcards: suite.tables[wildcards.table].caption,
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
