"""Training steps against the bare passes through the networks, and evaluation against its plain forms."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from u2pl.components.teacher import Teacher
from u2pl.engine.evaluate import confusion_matrix, network_of, sliding_logits, window_starts
from u2pl.experiments import load_suite
from u2pl.experiments.suite import RunSpec
from u2pl.methods import METHODS, Progress, Setup, build_method
from u2pl.models import DeepLab

CLASSES, CROP, BATCH = 21, 129, 4


def spec_of(method: str) -> RunSpec:
    """A small network that still takes most of a step, as the paper's does."""
    spec = load_suite("demo").runs[f"pascal_blender-6-{method}-seed0"]
    network = spec.recipe.network.model_copy(update={"width": 32, "channels": 64, "representation": 64})
    return spec.model_copy(update={"recipe": spec.recipe.model_copy(update={"network": network})})


@pytest.mark.benchmark(group="training step")
@pytest.mark.parametrize("name", METHODS)
def test_training_step(name: str, compare_time: Any) -> None:
    """What a method adds to its networks: the ratio is 1 if losses, bank, mixing and moving average cost nothing."""
    spec = spec_of(name)
    torch.manual_seed(0)
    method = build_method(name, spec.settings, Setup(lambda: network_of(spec), CLASSES, 255)).train()
    (optimiser,) = method.optimisers(spec.recipe)
    parts_of = dict(method.named_children())
    trained = [network for network in parts_of.values() if isinstance(network, DeepLab)]
    teacher = parts_of.get("teacher")
    labelled, unlabelled = torch.randn(2, BATCH, 3, CROP, CROP)
    masks = F.interpolate(torch.randint(CLASSES, (BATCH, 1, 5, 5)).float(), CROP)[:, 0].long()
    batch = {"image_l": labelled, "mask_l": masks, "image_u": unlabelled}
    progress = Progress(epoch=1, epochs=4, step=10, steps=40, generator=torch.Generator())
    both = torch.cat([labelled, unlabelled])
    found: list[dict[str, Tensor]] = []

    def step(loss: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    def suite() -> None:
        parts = method(batch, progress)
        step(parts["loss"])
        method.after_step(progress)
        found.append({key: torch.as_tensor(value).detach() for key, value in parts.items()})

    def straight_line() -> None:
        with torch.no_grad():
            if isinstance(teacher, Teacher):
                teacher.network.eval()(both if name == "u2pl" else unlabelled)
                teacher.network.train()(both)
            if name == "cps":  # labels of the unmixed images
                for network in trained:
                    network(unlabelled)
        outputs = [network(labelled if name == "suponly" else both) for network in trained]
        losses = [output["logits"].square().mean() for output in outputs]
        if name == "u2pl":  # the only one that trains the representation head
            losses.append(outputs[0]["representation"].square().mean())
        step(torch.stack(losses).sum())

    suite()
    straight_line()
    compare_time(suite, straight_line, rounds=5)
    assert all(torch.isfinite(value) for parts in found for value in parts.values())
    assert ("contrastive" in found[0]) == (name == "u2pl")


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
