"""What is counted of pseudo-labels and new keys, against NumPy; and that counting changes nothing."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from tests.small import IGNORE, SIDE, C, batch, beside, build, progress
from u2pl.components.taught import NewKeys, Taught, unmixed
from u2pl.engine import trainer as engine
from u2pl.engine.diagnosis import Diagnosis
from u2pl.engine.trainer import Trainer
from u2pl.experiments.settings import SETTINGS
from u2pl.experiments.suite import RunSpec
from u2pl.methods import METHODS
from u2pl.ranks.collectives import rank, world_size

torch.set_num_threads(1)
Spec = Callable[..., RunSpec]
CPU = torch.device("cpu")
COLUMNS = {"pseudo_miou", "pseudo_accuracy"}
RELIABLE = {"reliable_share", "reliable_accuracy"}
KEYS = {"key_purity", "unlabelled_key_purity", "new_keys", "new_key_classes"}
ALL = COLUMNS | RELIABLE | KEYS


@pytest.fixture(autouse=True)
def every_other_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "observe_every", lambda _: 2)


@pytest.fixture
def trainer(make_spec: Spec, prepared: Path, split: Path) -> Callable[..., Trainer]:
    def build(method: str = "u2pl", where: Path = prepared, **changes: Any) -> Trainer:
        return Trainer(make_spec(method, **changes), where, split, None, CPU)

    return build


@pytest.fixture(scope="session")
def without_truth(prepared: Path, split: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images, and masks of the labelled and validation ones alone."""
    folder = tmp_path_factory.mktemp("without")
    for path in prepared.iterdir():
        if path.name != "masks":
            (folder / path.name).symlink_to(path)
    (folder / "masks").mkdir()
    unlabelled = (split / "unlabeled.txt").read_text().split()
    for path in (prepared / "masks").iterdir():
        if path.stem not in unlabelled:
            (folder / "masks" / path.name).symlink_to(path)
    return folder


# --- an oracle of loops and NumPy


def percent(part: int, whole: int) -> float:
    return 100 * part / whole


def oracle(observed: list[tuple[Taught, np.ndarray]], n_classes: int, ignore: int) -> dict[str, float]:
    """The columns, from what steps taught and the mixed truth (B, H, W) of each."""
    pairs, kept, new, places = [], [], [], []
    for taught, truth in observed:
        labels = taught.labels.numpy()
        if labels.ndim == 4:
            labels = labels.argmax(axis=1)
        rows, columns = (np.arange(n) * t // n for n, t in zip(labels.shape[1:], truth.shape[1:], strict=True))
        small = truth[:, rows[:, None], columns]
        chosen = np.ones(labels.shape, bool) if taught.reliable is None else taught.reliable.numpy()
        for t, p, r in zip(small.ravel().tolist(), labels.ravel().tolist(), chosen.ravel().tolist(), strict=True):
            if t != ignore:
                pairs.append((t, p))
                kept.append(r)
        if taught.keys is not None:
            keys, (h, w) = taught.keys, taught.keys.size
            masks = np.concatenate([keys.masks.numpy(), truth])
            rows, columns = (np.arange(n) * t // n for n, t in zip((h, w), masks.shape[1:], strict=True))
            flat = masks[:, rows[:, None], columns].ravel()
            new.append(keys.kept.numpy().sum(axis=1))
            for c, position in zip(*keys.kept.numpy().nonzero(), strict=True):
                pixel = int(keys.places[position])
                if flat[pixel] != ignore:
                    places.append((pixel >= len(flat) // 2, flat[pixel] == c))
    ious = []
    for c in range(n_classes):
        both = sum(t == p == c for t, p in pairs)
        either = sum(t == c or p == c for t, p in pairs)
        ious += [percent(both, either)] if either else []
    row = {"pseudo_miou": float(np.mean(ious)), "pseudo_accuracy": percent(sum(t == p for t, p in pairs), len(pairs))}
    if any(taught.reliable is not None for taught, _ in observed):
        row["reliable_share"] = percent(sum(kept), len(pairs))
        right = sum(t == p for (t, p), r in zip(pairs, kept, strict=True) if r)
        row |= {"reliable_accuracy": percent(right, sum(kept))} if sum(kept) else {}
    if new:
        row["new_keys"] = float(np.mean(new))
        row["new_key_classes"] = float(np.mean([(numbers > 0).sum() for numbers in new]))
        for name, own in (("key_purity", places), ("unlabelled_key_purity", [p for p in places if p[0]])):
            row |= {name: percent(sum(not same for _, same in own), len(own))} if own else {}
    return row


def noted(made: Trainer) -> list[list[tuple[Taught, np.ndarray]]]:
    """What each epoch's observed steps taught, with their truth as the method mixes it."""
    epochs: list[list[tuple[Taught, np.ndarray]]] = [[]]
    observe, row = made.diagnosis.observe, made.diagnosis.row

    def observed(taught: Taught, given: Any) -> None:
        epochs[-1].append((taught, taught.truth(given).numpy().astype(int)))
        observe(taught, given)

    def ended() -> dict[str, float]:
        epochs.append([])
        return row()

    made.diagnosis.observe, made.diagnosis.row = observed, ended  # type: ignore[method-assign]
    return epochs


@pytest.mark.parametrize("method", METHODS)
def test_columns_are_those_of_an_oracle_and_empty_before_pseudo_labels(
    method: str, trainer: Callable[..., Trainer]
) -> None:
    made = trainer(method)
    epochs = noted(made)
    for number in range(3):
        made.run_epoch()
        found = {name: value for name, value in made.history[-1].items() if name in ALL}
        taught = epochs[number]
        expected = oracle(taught, 3, 255) if taught else {}
        assert found == pytest.approx(expected, rel=1e-12)
        warming_up = number < getattr(made.spec.settings, "warmup_epochs", 0)
        assert bool(taught) == (method != "suponly" and not warming_up)
        if taught:
            assert len(taught) == -(-len(made.batches) // 2)
    if method in ("u2pl", "u2pl_ael"):
        assert found.keys() == ALL and "contrastive" in made.history[-1]
    if method in ("mean_teacher", "cutmix", "cps", "cct"):
        assert found.keys() == COLUMNS


def test_truth_is_mixed_as_the_images_are(trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images that show their own masks the mixed truth is that of the mixed image."""
    for method in ("cutmix", "u2pl", "cps", "ael", "u2pl_ael"):
        streams = SETTINGS[method]().streams
        data = batch() | beside(streams)
        generator = torch.Generator().manual_seed(5)
        truth: dict[str, torch.Tensor] = {}
        seen: list[torch.Tensor] = []
        for end in ("u", "u2", "p"):
            if f"image_{end}" in data:
                truth[f"truth_{end}"] = torch.randint(256, (2, SIDE, SIDE), generator=generator, dtype=torch.uint8)
                data[f"image_{end}"] = truth[f"truth_{end}"][:, None].expand(-1, 3, -1, -1).float()
        made = build(method, cutmix_probability=1.0).train()
        student = made.first if method == "cps" else made.student
        student.register_forward_pre_hook(lambda _, images, seen=seen: seen.append(images[0].detach()))
        made(data, progress())
        mixed = made.taught.truth(truth)
        assert mixed.dtype == torch.uint8 and not torch.equal(mixed, truth["truth_u"])
        assert torch.equal(mixed.float(), seen[-1][-2:, 0])


def test_keys_are_those_that_the_bank_took_and_still_holds() -> None:
    """Every key is the vector at its place; of more than a ring holds, the last ones."""
    made = build("u2pl", bank_size=4, bank_size_background=4).train()
    seen: list[torch.Tensor] = []
    push = made.contrast.bank.push

    def pushed(features: torch.Tensor, *others: Any) -> None:
        seen.append(features)
        push(features, *others)

    made.contrast.bank.push = pushed
    made(batch(), progress())
    kept, places = made.taught.keys.kept, made.taught.keys.places
    assert (kept.sum(1) == 4).any()
    for c in range(C):
        expected = torch.nn.functional.normalize(seen[0][places[kept[c].nonzero()[:, 0]]], dim=1)
        assert torch.equal(made.contrast.bank.held(c), expected)


def test_by_hand() -> None:
    labels, truth = torch.tensor([[[0, 1], [1, 1]]]), torch.tensor([[[0, 1], [0, 255]]], dtype=torch.uint8)
    kept = torch.zeros(2, 8, dtype=torch.bool)
    kept[0, [0, 4, 5]] = kept[1, [5, 6, 7]] = True  # class 0 has two keys of its own, class 1 one; one is unknown
    masks = torch.zeros(1, 2, 2, dtype=torch.int64)
    keys = NewKeys(kept, torch.arange(8), masks, (2, 2))
    made = Diagnosis(2, 255)
    made.observe(Taught(labels, unmixed, torch.tensor([[[True, False], [True, True]]]), keys), {"truth_u": truth})
    assert made.row() == {
        "pseudo_miou": 50.0,
        "pseudo_accuracy": pytest.approx(200 / 3),
        "reliable_share": pytest.approx(200 / 3),
        "reliable_accuracy": 50.0,
        "new_keys": 3.0,
        "new_key_classes": 2.0,
        "key_purity": 40.0,
        "unlabelled_key_purity": 50.0,
    }
    assert made.row() == {}, "an epoch starts anew"


# --- nothing else changes


def bits(made: Trainer) -> dict[str, Any]:
    state = {f"method {name}": value for name, value in made.method.state_dict().items()}
    for number, optimiser in enumerate(made.optimisers):
        for index, values in optimiser.state_dict()["state"].items():
            state |= {f"{number} {index} {name}": torch.as_tensor(value) for name, value in values.items()}
    return state | {"own": made.generator.get_state(), "global": torch.get_rng_state()}


def plain(made: Trainer) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k not in ALL | {"images_per_s"}} for row in made.history]


@pytest.mark.parametrize("method", METHODS)
def test_truth_changes_no_bit(
    method: str, trainer: Callable[..., Trainer], without_truth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With truth, with other truth, without any mask, and without observing."""
    runs = [trainer(method)]
    other = trainer(method)
    steps = other.batches._steps

    def wrong(index: int, size: tuple[int, int]) -> tv_tensors.Mask:
        return tv_tensors.Mask(torch.zeros(size, dtype=torch.uint8))

    steps.unlabelled.truth = wrong  # type: ignore[method-assign]
    monkeypatch.setattr(engine, "observe_every", lambda _: 0)
    runs += [other, trainer(method, where=without_truth), trainer(method)]
    monkeypatch.setattr(engine, "observe_every", lambda _: 1)
    runs += [trainer(method, where=without_truth), trainer(method)]
    found = []
    for made in runs:
        torch.manual_seed(0)
        for _ in range(3):
            made.run_epoch()
        found.append((bits(made), plain(made)))
    for state, history in found[1:]:
        assert history == found[0][1]
        assert all(torch.equal(value, state[name]) for name, value in found[0][0].items())


def test_methods_never_get_the_truth(trainer: Callable[..., Trainer]) -> None:
    made = trainer("u2pl_ael")
    seen: set[str] = set()
    made.method.register_forward_pre_hook(lambda _, given: seen.update(given[0]))
    for _ in range(2):
        made.run_epoch()
    assert {"image_u", "image_p"} <= seen and not [name for name in seen if "truth" in name]


def test_without_masks_only_keys_of_labelled_images_are_judged(
    trainer: Callable[..., Trainer], without_truth: Path
) -> None:
    made = trainer("u2pl", where=without_truth)
    for _ in range(2):
        made.run_epoch()
    assert not made.history[0].keys() & ALL
    assert made.history[1].keys() & ALL == {"new_keys", "new_key_classes", "key_purity"}


# --- resumed, and on several ranks


@pytest.mark.parametrize("method", ["u2pl", "u2pl_ael", "cps"])
def test_a_resumed_epoch_has_the_same_columns(method: str, trainer: Callable[..., Trainer]) -> None:
    whole = trainer(method)
    for _ in range(2):
        whole.run_epoch()
    first = trainer(method)  # now: a trainer seeds the global generator, which dropout draws from

    def stop() -> None:
        if (first.epoch, first.index) == (1, 2):
            raise KeyboardInterrupt

    first.run_epoch()
    with pytest.raises(KeyboardInterrupt):
        first.run_epoch(stop)
    kept = copy.deepcopy(first.state())
    second = trainer(method)
    second.restore(kept)
    second.run_epoch()
    ours, theirs = ({k: v for k, v in made.history[1].items() if k in ALL} for made in (whole, second))
    assert ours == theirs and ours.keys() >= COLUMNS


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("groups", ["batch", "share"])
def test_ranks_count_the_global_batch(world: int, groups: str, on_ranks: Any) -> None:
    """Of a step of two, or of four, images per stream; keys of groups that lie one after the other in the bank."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(C, (4, 9, 9), generator=generator)
    truth = torch.randint(C, (4, 9, 9), generator=generator, dtype=torch.uint8)
    truth[:, 0] = IGNORE
    masks = torch.randint(C, (4, 9, 9), generator=generator)
    reliable = torch.rand(4, 9, 9, generator=generator) < 0.5
    kept = torch.rand(C, 2 * 4 * 9, generator=generator) < 0.3
    order = torch.arange(8) if groups == "batch" else torch.tensor([0, 1, 4, 5, 2, 3, 6, 7])
    places = (order[:, None] * 9 + torch.arange(9)).flatten()
    keys = NewKeys(kept, places, masks, (3, 3))
    expected = oracle([(Taught(labels, unmixed, reliable, keys), truth.numpy().astype(int))] * 2, C, IGNORE)

    def work() -> dict[str, torch.Tensor]:
        size = 4 // world_size()
        own = slice(rank() * size, (rank() + 1) * size)
        taught = Taught(labels[own], unmixed, reliable[own], keys._replace(masks=masks[own]))
        made = Diagnosis(C, IGNORE)
        for _ in range(2):
            made.observe(taught, {"truth_u": truth[own]})
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in made.row().items()}

    for found in on_ranks(world, work):
        assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["u2pl", "u2pl_ael"])
def test_a_training_on_two_ranks_has_the_columns_of_one(
    method: str, trainer: Callable[..., Trainer], on_ranks: Any
) -> None:
    """Rounding may move a pixel's label; each rank alone would be far off."""

    def work() -> dict[str, torch.Tensor]:
        made = trainer(method)
        for _ in range(2):
            made.run_epoch()
        columns = {name: value for name, value in made.history[-1].items() if name in ALL}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in columns.items()}

    expected = work()
    first, second = on_ranks(2, work)
    assert first == second and first.keys() == expected.keys() == ALL
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, rtol=0.005, atol=0)
