"""One training and one evaluation a run."""


rule train:
    input:
        tokens=tokens,
        weights=lambda wildcards: spec(wildcards).weights or [],
    output:
        f"{RESULTS}/runs/{{run}}/run.json",
        f"{RESULTS}/runs/{{run}}/history.csv",
        f"{RESULTS}/runs/{{run}}/weights.pt",
    log:
        f"logs/{suite.scale}/train/{{run}}.log",
    threads: lambda wildcards: spec(wildcards).recipe.threads
    resources:
        gpu=lambda wildcards: spec(wildcards).recipe.gpus,
        mem_mb=lambda wildcards: spec(wildcards).recipe.mem_mb,
        runtime=lambda wildcards: spec(wildcards).recipe.runtime,
    params:
        scale=suite.scale,
        # A changed setting reruns exactly the runs that it changes.
        science=lambda wildcards: str(spec(wildcards).science()),
    shell:
        "u2pl train {wildcards.run} --scale {params.scale} > {log} 2>&1"


rule evaluate:
    input:
        tokens,
        f"{RESULTS}/runs/{{run}}/run.json",
    output:
        f"{RESULTS}/runs/{{run}}/evaluation.json",
    log:
        f"logs/{suite.scale}/evaluate/{{run}}.log",
    threads: lambda wildcards: spec(wildcards).recipe.threads
    resources:
        gpu=lambda wildcards: spec(wildcards).recipe.gpus,
        mem_mb=lambda wildcards: spec(wildcards).recipe.mem_mb,
        runtime=lambda wildcards: spec(wildcards).recipe.runtime,
    params:
        scale=suite.scale,
    shell:
        "u2pl evaluate {wildcards.run} --scale {params.scale} > {log} 2>&1"
