"""One job a run: training, then the evaluation of the weights file."""


rule train:
    input:
        tokens=tokens,
        weights=lambda wildcards: spec(wildcards).weights or [],
    output:
        f"{RESULTS}/runs/{{run}}/run.json",
        f"{RESULTS}/runs/{{run}}/history.csv",
        f"{RESULTS}/runs/{{run}}/weights.pt",
        f"{RESULTS}/runs/{{run}}/evaluation.json",
    log:
        f"logs/{suite.scale}/train/{{run}}.log",
    threads: lambda wildcards: spec(wildcards).recipe.threads
    resources:
        gpu=lambda wildcards: spec(wildcards).recipe.gpus,
        # More with each attempt; a profile's set-resources has the last word.
        mem_mb=lambda wildcards, attempt: grown(attempt) * spec(wildcards).recipe.mem_mb,
        runtime=lambda wildcards, attempt: minutes(suite, spec(wildcards), attempt),
    params:
        scale=suite.scale,
        # A changed setting reruns exactly the runs that it changes.
        science=lambda wildcards: str(spec(wildcards).science()),
    shell:
        "u2pl train {wildcards.run} --scale {params.scale} > {log} 2>&1"
