"""Training steps against the bare passes through the networks, and evaluation against its plain forms."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.benchmarks.methods import batch_of, normalise
from tests.benchmarks.methods import spec_of as run_of
from tests.benchmarks.step import data
from u2pl.components.outputs import two_streams
from u2pl.engine.evaluate import confusion_matrix, network_of, sliding_logits, window_starts
from u2pl.engine.trainer import Trainer
from u2pl.experiments.suite import RunSpec
from u2pl.methods import METHODS, Progress, Setup, build_method

CLASSES, CROP, BATCH = 21, 129, 4
SIZES: dict[str, Any] = {"unlabelled": 100, "batch": BATCH, "normalise": normalise}


def spec_of(method: str) -> RunSpec:
    """A small network that still takes most of a step, as the paper's does: losses cost alike at any width."""
    spec = run_of(method, "demo", "pascal")
    network = spec.recipe.network.model_copy(update={"width": 64, "channels": 128, "representation": 128})
    return spec.model_copy(update={"recipe": spec.recipe.model_copy(update={"network": network})})


def passes(name: str, method: Any, batch: dict[str, Tensor]) -> Tensor:
    """The passes of a step through the networks, one after the other, and a trivial loss of what is trained."""
    labelled, unlabelled = batch["image_l"], batch["image_u"]
    both = torch.cat([labelled, unlabelled])
    used = ["logits"] + ["representation"] * hasattr(method, "contrast")

    def trained(network: nn.Module, images: Tensor) -> Tensor:
        output = network(images)
        return torch.stack([output[key].square().mean() for key in used]).sum()

    @torch.no_grad()
    def look(network: nn.Module, images: Tensor, training: bool = True) -> Tensor:
        return network.train(training)(images)["logits"]

    match name:
        case "suponly":
            return trained(method.student, labelled)
        case "mean_teacher" | "cutmix" | "u2pl":
            look(method.teacher.network, both if name == "u2pl" else unlabelled, training=False)
            look(method.teacher.network, both)
            return trained(method.student, both)
        case "cps":  # labels of both unmixed batches, then what learns them
            for network, images in itertools.product((method.first, method.second), (unlabelled, batch["image_u2"])):
                look(network, images)
            outputs = [
                output["logits"].square().mean()
                for network in (method.first, method.second)
                for output in two_streams(network, labelled, unlabelled, method.settings.streams_forward)
            ]
            return torch.stack(outputs).sum()
        case "cct":
            output = method.student(both)
            decoded = output["decoded"][len(labelled) :]
            heads = [decoder(decoded).square().mean() for decoder in method.auxiliary]
            return torch.stack([output["logits"].square().mean(), *heads]).sum()
        case "ael" | "u2pl_ael":  # the partners are images beside the batch
            look(method.teacher.network, torch.cat([both, batch["image_p"]]))
            return trained(method.student, both)
        case "gct":
            flaws = []
            for network in (method.first, method.second):
                before = F.interpolate(look(network, both), CROP).softmax(dim=1)
                probs = F.interpolate(network(both)["logits"], CROP).softmax(dim=1)
                flaws += [method.detector(both, before), method.detector.frozen(both, probs)]
            return torch.stack([values.square().mean() for values in flaws]).sum()
        case "pseudoseg" | "pc2seg":  # the weak view labels, the strong one learns
            look(method.student, unlabelled)
            if name == "pseudoseg":
                with torch.no_grad():
                    method.student.encoder.eval()(unlabelled)
            return trained(method.student.train(), both)
    raise AssertionError(f"no passes of {name}: write them here")


@pytest.mark.benchmark(group="training step")
@pytest.mark.parametrize("name", METHODS)
def test_training_step(name: str, compare_time: Any) -> None:
    """What a method adds to its networks: the ratio is 1 if losses, bank, mixing and moving average cost nothing."""
    spec = spec_of(name)
    torch.manual_seed(0)
    setup = Setup(lambda: network_of(spec), CLASSES, 255, **SIZES)
    method = build_method(name, spec.settings, setup).train()
    optimisers = method.optimisers(spec.recipe)
    batch = batch_of(BATCH, CROP, CLASSES, SIZES["unlabelled"])
    progress = Progress(epoch=1, epochs=4, step=10, steps=40, generator=torch.Generator())
    found: list[dict[str, Tensor]] = []

    def step(loss: Tensor) -> None:
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()

    def suite() -> None:
        parts = method(batch, progress)
        step(parts["loss"])
        method.after_step(progress)
        found.append({key: torch.as_tensor(value).detach() for key, value in parts.items()})

    def straight_line() -> None:
        step(passes(name, method, batch))

    suite()
    straight_line()
    compare_time(suite, straight_line, rounds=5, limit=1.1)
    assert all(torch.isfinite(value) for parts in found for value in parts.values())
    assert ("contrastive" in found[0]) == hasattr(method, "contrast")


@pytest.mark.benchmark(group="training step")
def test_chosen_images_are_read_beside_the_step(compare_time: Any, tmp_path: Path) -> None:
    """AEL's partners from a slow disk, 5 ms an image, against partners that are there already."""
    spec = data(spec_of("ael"), tmp_path)
    trainer = Trainer(spec, tmp_path / "prepared", tmp_path / "split", None, torch.device("cpu"))
    trainer.method.train()
    chosen, batch = trainer.batches.chosen, next(iter(trainer.batches.epoch(0)))
    batch = {name: value for name, value in batch.items() if not name.startswith("truth")}
    assert chosen is not None
    read, number, there = chosen.image, itertools.count(), batch["image_u"]

    def slow(place: int) -> Any:
        time.sleep(0.005)
        return read(place)

    chosen.image = slow

    def suite() -> None:
        trainer._step(batch, next(number))

    def straight_line() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chosen, "coming", lambda *_: True)
            patch.setattr(chosen, "take", lambda *_: there)
            trainer._step(batch, next(number))

    trainer.steps = 10**6
    suite()
    compare_time(suite, straight_line, rounds=7, limit=1.1)


@pytest.mark.benchmark(group="training step")
@pytest.mark.parametrize("name", ["u2pl", "u2pl_ael"])
def test_diagnosis(name: str, compare_time: Any, tmp_path: Path) -> None:
    """What an observed step counts, against the whole step: below 2 % if every step were observed."""
    spec = data(spec_of(name), tmp_path)
    spec = spec.model_copy(update={"recipe": spec.recipe.model_copy(update={"crop": CROP, "batch": BATCH})})
    trainer = Trainer(spec, tmp_path / "prepared", tmp_path / "split", None, torch.device("cpu"))
    trainer.method.train()
    batch = next(iter(trainer.batches.epoch(0)))
    trainer.epoch, trainer.steps = spec.recipe.epochs - 1, 10**6
    first = trainer.epoch * len(trainer.batches)
    observe, seen = trainer.diagnosis.observe, []

    def noted(*given: Any) -> None:
        seen[:] = [given]
        observe(*given)

    trainer.diagnosis.observe = noted  # type: ignore[method-assign]
    trainer._step(batch, first)
    unobserved = {key: value for key, value in batch.items() if not key.startswith("truth")}

    def step() -> None:
        trainer.method.taught = None
        trainer._step(unobserved, first)

    compare_time(lambda: observe(*seen[0]), step, rounds=4, limit=0.02)
    assert {"pseudo_miou", "reliable_accuracy", "key_purity"} <= trainer.diagnosis.row().keys()


def windows() -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Logits of a whole image: eight windows a forward, and one a forward; both without gradients."""
    torch.manual_seed(0)
    network = network_of(spec_of("u2pl")).eval()
    image, stride = torch.randn(1, 3, 257, 513), 86

    @torch.inference_mode()
    def suite() -> Tensor:
        return sliding_logits(network, image, CROP, stride, 8)

    @torch.inference_mode()
    def straight_line() -> Tensor:
        total, count = torch.zeros(1, CLASSES, 257, 513), torch.zeros(257, 513)
        for y in window_starts(257, CROP, stride):
            for x in window_starts(513, CROP, stride):
                part = (..., slice(y, y + CROP), slice(x, x + CROP))
                logits = network(image[part])["logits"]
                total[part] += F.interpolate(logits, (CROP, CROP), mode="bilinear", align_corners=True)
                count[part] += 1
        return total / count

    torch.testing.assert_close(suite(), straight_line(), rtol=1e-3, atol=1e-4)
    return suite, straight_line


@pytest.mark.benchmark(group="evaluation")
def test_sliding_windows(compare_time: Any) -> None:
    compare_time(*windows(), rounds=5)


@pytest.mark.benchmark(group="memory")
def test_sliding_windows_memory(compare_memory: Any) -> None:
    compare_memory(*windows())


@pytest.mark.benchmark(group="evaluation")
def test_confusion_matrix(compare_time: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(CLASSES, (4, 513, 513), generator=generator)
    pred = torch.where(torch.rand(target.shape, generator=generator) < 0.8, target, target.flip(2))
    target[:, :20] = 255

    def straight_line() -> np.ndarray:
        truth, guess = target.numpy().ravel(), pred.numpy().ravel()
        kept = truth != 255
        edges = np.arange(CLASSES + 1)
        return np.histogram2d(truth[kept], guess[kept], bins=(edges, edges))[0]

    def suite() -> Tensor:
        return confusion_matrix(pred, target, CLASSES, 255)

    np.testing.assert_array_equal(np.asarray(suite()), straight_line())
    compare_time(suite, straight_line, rounds=5, limit=0.2)
