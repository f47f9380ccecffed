"""Archives, prepared data and split lists: one rule per data set, since their files differ.

What is fetched is known by the manifest beside it, `<file>.json`. Snakemake deletes the outputs of a rule before it
runs and when it fails; a file that the user has put there, or gigabytes that have already arrived, must not be among
them.
"""

for name, dataset in suite.datasets.items():
    files = [archive.file for archive in dataset.archives.values()]

    if dataset.synthetic:

        rule:
            name:
                f"synthesize_{name}"
            input:
                jobs("synthesize", name).spec,
            output:
                jobs("synthesize", name).outputs,
                jobs("synthesize", name).receipt,
            log:
                f"logs/{suite.scale}/synthesize_{name}.log",
            params:
                scale=suite.scale,
                dataset=name,
            shell:
                "u2pl data synthesize {params.dataset:q} --scale {params.scale:q} > {log:q} 2>&1"

    for key, archive in dataset.archives.items():

        rule:
            name:
                f"fetch_{name}_{key}"
            input:
                jobs("fetch", name, key).spec,
                jobs("fetch", name, key).inputs,
                # Its receipt decides; the archive itself only has to be here.
                ancient([f"{DATA}/upstream/{archive.file}"] if dataset.synthetic else []),
            output:
                f"{DATA}/archives/{archive.file}.json",
                jobs("fetch", name, key).receipt,
            log:
                f"logs/{suite.scale}/fetch_{name}_{key}.log",
            localrule: True
            params:
                scale=suite.scale,
                dataset=name,
                archive=key,
            shell:
                "u2pl data fetch {params.dataset:q} {params.archive:q} --scale {params.scale:q} > {log:q} 2>&1"

    # What the DVC stage fetch@<data set> asks for.
    rule:
        name:
            f"archives_{name}"
        input:
            expand(f"{DATA}/archives/{{file}}.json", file=files),
        localrule: True

    rule:
        name:
            f"prepare_{name}"
        input:
            jobs("prepare", name).spec,
            jobs("prepare", name).inputs,
        output:
            f"{DATA}/{name}/manifest.json",
            jobs("prepare", name).receipt,
        log:
            f"logs/{suite.scale}/prepare_{name}.log",
        threads: 2 if dataset.synthetic else 8
        resources:
            mem_mb=4000,
        params:
            scale=suite.scale,
            dataset=name,
        shell:
            "u2pl data prepare {params.dataset:q} --scale {params.scale:q} --workers {threads:q} > {log:q} 2>&1"


rule fetch_weights:
    input:
        job_of("weights"),
    output:
        "weights/{file}.json",
        "weights/{file}.made.json",
    log:
        "logs/fetch_weights_{file}.log",
    wildcard_constraints:
        file=any_name_of(suite.weights),
    localrule: True
    params:
        scale=suite.scale,
    shell:
        "u2pl data fetch weights {wildcards.file:q} --scale {params.scale:q} > {log:q} 2>&1"


# Published split lists; the lists of synthetic data are drawn from what has been prepared.
mirrored = {}

for source, published in suite.published.items():
    for name in published.lists:
        dataset = suite.protocols[name].dataset
        if not suite.datasets[dataset].synthetic:
            continue
        drawn = {path: f"{DATA}/upstream/lists/{source}/{path}" for path in published.paths(name)}
        mirrored |= {(source, path): file for path, file in drawn.items()}

        rule:
            name:
                f"synthesize_lists_{source}_{name}"
            input:
                jobs("mirror", source, name).spec,
                jobs("mirror", source, name).inputs,
            output:
                list(drawn.values()),
                jobs("mirror", source, name).receipt,
            log:
                f"logs/{suite.scale}/synthesize_lists_{source}_{name}.log",
            params:
                scale=suite.scale,
                source=source,
                protocol=name,
            shell:
                "u2pl data synthesize-lists {params.source:q} {params.protocol:q} --scale {params.scale:q} > {log:q} 2>&1"


rule fetch_list:
    input:
        job_of("list"),
        ancient(lambda wildcards: mirrored.get((wildcards.source, wildcards.path), [])),
    output:
        f"{DATA}/lists/{{source}}/{{path}}.json",
        f"{DATA}/made/list/{{source}}/{{path}}.json",
    log:
        f"logs/{suite.scale}/fetch_list/{{source}}/{{path}}.log",
    wildcard_constraints:
        source="|".join(suite.published),
        path=r".+\.txt",
    localrule: True
    params:
        scale=suite.scale,
    shell:
        "u2pl data fetch-list {wildcards.source:q} {wildcards.path:q} --scale {params.scale:q} > {log:q} 2>&1"


# Drawn lists are of a seed: <n>/seed<k>.
rule split:
    input:
        job_of("split"),
    output:
        f"{DATA}/splits/{{protocol}}/{{source}}/{{n}}/manifest.json",
        f"{DATA}/splits/{{protocol}}/{{source}}/{{n}}/labeled.txt",
        f"{DATA}/splits/{{protocol}}/{{source}}/{{n}}/unlabeled.txt",
        f"{DATA}/splits/{{protocol}}/{{source}}/{{n}}/val.txt",
        f"{DATA}/splits/{{protocol}}/{{source}}/{{n}}/made.json",
    log:
        f"logs/{suite.scale}/split/{{protocol}}_{{source}}_{{n}}.log",
    wildcard_constraints:
        source="|".join(["drawn", *suite.published]),
        n=r"\d+(/seed\d+)?",
    params:
        scale=suite.scale,
        n=lambda wildcards: re.sub(r"\D+", " --seed ", wildcards.n),
    shell:
        "u2pl data split {wildcards.protocol:q} {params.n} --source {wildcards.source:q} --scale {params.scale:q}"
        " > {log:q} 2>&1"


# What the DVC stages of these names ask for.
rule weights:
    input:
        sorted({f"{run.weights}.json" for run in suite.runs.values() if run.weights}),
    localrule: True


rule splits:
    input:
        sorted({f"{DATA}/splits/{run.split}/manifest.json" for run in suite.runs.values()}),
    localrule: True
