"""One job per run: training, then the evaluation of the weights file. `u2pl train` starts torchrun for several GPUs."""


rule train:
    input:
        job_of("train"),
    output:
        report(
            f"{RESULTS}/runs/{{run}}/run.json",
            caption="../report/run.rst",
            category="Runs",
            subcategory="{run}",
            labels={"file": "provenance"},
        ),
        report(
            f"{RESULTS}/runs/{{run}}/history.csv",
            caption="../report/history.rst",
            category="Runs",
            subcategory="{run}",
            labels={"file": "history"},
        ),
        f"{RESULTS}/runs/{{run}}/weights.pt",
        f"{RESULTS}/runs/{{run}}/evaluation.json",
        f"{RESULTS}/runs/{{run}}/images.npz",
        f"{RESULTS}/runs/{{run}}/made.json",
    log:
        f"logs/{suite.scale}/train/{{run}}.log",
    threads: lambda wildcards: run_of(wildcards).recipe.threads
    resources:
        gpu=lambda wildcards: run_of(wildcards).recipe.gpus,
        # More with each attempt; a profile's set-resources has the last word.
        mem_mb=lambda wildcards, attempt: growth(attempt) * run_of(wildcards).recipe.mem_mb,
        runtime=lambda wildcards, attempt: minutes(suite, run_of(wildcards), attempt),
    params:
        scale=suite.scale,
        device=config["device"],
    # exec: a scheduler signals the shell too, which must not end before the training has written its state.
    shell:
        "exec u2pl train {wildcards.run:q} --scale {params.scale:q} --device {params.device:q} > {log:q} 2>&1"


# `snakemake runs` trains without making tables.
rule runs:
    input:
        evaluations(suite.cells),
    localrule: True
