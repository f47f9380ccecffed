"""`u2pl fidelity measure`: its rows follow from the presets, and its counts are those of a plain loop."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from u2pl.components import contrast
from u2pl.experiments.readings import reading
from u2pl.experiments.settings import U2PL
from u2pl.report import fidelity, half_trained
from u2pl.report.half_trained import IGNORE, C, batch

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
PAPER, RELEASED = reading("paper", ROOT), reading("released", ROOT)
CASES = list(fidelity.cases(PAPER, RELEASED))
SMALL = batch(8, 65)


def chosen(preset: str, setting: str = "") -> fidelity.Case:
    (case,) = [case for case in CASES if (case.preset, case.setting) == (preset, setting)]
    return case


def test_every_factor_has_a_row_in_either_direction() -> None:
    differing = {name for name in U2PL.model_fields if getattr(PAPER, name) != getattr(RELEASED, name)}
    for preset, other, readings in (("paper", RELEASED, fidelity.OPEN), ("released", PAPER, {})):
        rows = [case for case in CASES if case.preset == preset]
        base = rows[0].settings
        for case in rows[1:]:
            changed = {n for n in U2PL.model_fields if getattr(case.settings, n) != getattr(base, n)}
            assert changed == {case.setting}
        flipped = [
            case for case in rows[1:] if case.settings.model_dump()[case.setting] == getattr(other, case.setting)
        ]
        assert {case.setting for case in flipped} | fidelity.LEFT_OUT.keys() == differing
        assert {case.setting for case in rows[1:]} == (differing - fidelity.LEFT_OUT.keys()) | readings.keys()


@pytest.mark.parametrize("name", [("paper", ""), ("released", ""), ("paper", "label_stacking")])
def test_counts_are_those_of_a_loop(name: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = chosen(*name).settings
    terms: list[Any] = []
    original = fidelity.CountingContrast.term

    def recording(self: Any, *values: Any) -> torch.Tensor:
        terms.append(values[1:-1])
        return original(self, *values)

    monkeypatch.setattr(fidelity.CountingContrast, "term", recording)
    numbers, _ = fidelity.step(settings, 1.0, SMALL)
    ((view, labels, trusted, candidates),) = terms
    probs, vectors = view.probs.numpy(), view.representation.numpy()
    labels, trusted, candidates = labels.numpy(), trusted.numpy(), candidates.numpy()
    n, (height, width) = len(labels) // 2, labels.shape[1:]

    def classes_at(i: int, y: int, x: int) -> set[int]:
        if settings.label_stacking == "paper":
            return {int(labels[i, y, x])} - {IGNORE}
        if i % 4 or labels[i, y, x] == IGNORE:
            return set()
        return {0 if labels[j, y, x] == IGNORE else int(labels[j, y, x]) for j in range(i, i + 4)}

    size = settings.group_size if settings.contrastive_groups == "share" else n
    anchors: list[set[int]] = [set() for _ in range(n // size)]
    present: list[set[int]] = [set() for _ in range(n // size)]
    keys: list[tuple[int, int]] = []
    for i, y, x in np.ndindex(2 * n, height, width):
        own, truth = classes_at(i, y, x), int(vectors[i, :C, y, x].argmax())
        if trusted[i, y, x]:
            present[i % n // size] |= own
            anchors[i % n // size] |= {c for c in own if probs[i, c, y, x] > settings.delta_p}
        if not candidates[i, y, x]:
            continue
        order = np.argsort(-probs[i, :, y, x], kind="stable")
        for rank, c in enumerate(order.tolist()):
            taken = rank < 3 and c not in own if i < n else 3 <= rank < 20
            if taken and (settings.negative_label_mask == "paper" or c in own):
                keys.append((c, truth))
    banks = {c for c, _ in keys}
    meets = [
        dict(enumerate(sorted(group))) if settings.anchor_class_indexing == "released" else {c: c for c in range(C)}
        for group in present
    ]
    contributing = [len({c for c in a if m.get(c) in banks}) for a, m in zip(anchors, meets, strict=True)]
    assert numbers.keys == len(keys) > 0
    assert numbers.false_negatives == pytest.approx(100 * np.mean([c == truth for c, truth in keys]))
    assert numbers.classes == np.mean(contributing) > 0


@pytest.mark.slow
def test_contributing_classes_are_those_that_the_method_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    valid: list[torch.Tensor] = []
    original = contrast.sample

    def recording(*values: Any, **options: Any) -> contrast.Samples:
        found = original(*values, **options)
        valid.append(found.valid)
        return found

    monkeypatch.setattr(contrast, "sample", recording)
    for case in CASES:
        _, counted = fidelity.step(case.settings, 1.0, SMALL)
        assert torch.equal(counted.contributing, valid[-1]), case.title


def test_two_measurements_are_equal_and_written(tmp_path: Path) -> None:
    some = [chosen("paper"), chosen("released"), chosen("released", "label_stacking")]
    for name in ("a", "b"):
        fidelity.write_csv(tmp_path / name, fidelity.measure(some, batch(8, 65)))
    text = (tmp_path / "a").read_text()
    assert text == (tmp_path / "b").read_text() and len(text.splitlines()) == 1 + 2 * len(some)


def test_the_command_refuses_a_folder_that_does_not_exist() -> None:
    command = [sys.executable, "-m", "u2pl", "fidelity", "measure", "--csv", "nowhere/numbers.csv"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "u2pl: --csv: found no folder nowhere, expected a file in a folder that exists\n"


@pytest.mark.slow
def test_the_command_writes_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small batch: the published one takes a minute."""
    from u2pl.cli.fidelity import measure

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(half_trained, "batch", lambda seed: batch(4, 33, seed))
    texts = []
    for seed in (0, 1):
        measure(tmp_path / "numbers.csv", seed)
        texts.append((tmp_path / "numbers.csv").read_text())
        assert len(texts[-1].splitlines()) == 1 + 2 * len(CASES)
    assert texts[0] != texts[1]
