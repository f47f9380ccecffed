"""CCT against its closed forms and a straight-line oracle of its loss."""

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from tests.small import IGNORE, SIDE, C, batch, build, progress
from u2pl.components.feature_perturbations import Perturbations, cut_boxes, find_objects
from u2pl.experiments.schema import Network as NetworkSettings
from u2pl.experiments.settings import CCT
from u2pl.methods import Setup, build_method
from u2pl.models import build_network

torch.set_num_threads(1)
KINDS = ["vat", "drop", "cut", "context", "object", "feature_drop", "noise"]


def only(**counts: int) -> dict[str, Any]:
    """The counts of decoders: 0 for perturbations that are not named."""
    return {f"cct_{kind}": counts.get(kind, 0) for kind in KINDS}


def outputs(method: Any, data: dict[str, Tensor], joint: bool = True) -> dict[str, Tensor]:
    """The student's output on the unlabelled images."""
    network = copy.deepcopy(method.student)
    if not joint:
        return network(data["image_u"])
    found = network(torch.cat([data["image_l"], data["image_u"]]))
    return {name: value[2:] for name, value in found.items()}


def classified(decoder: Any, features: np.ndarray) -> np.ndarray:
    """Probabilities of a classifier, in NumPy."""
    weight, bias = decoder.weight.detach().numpy()[:, :, 0, 0], decoder.bias.detach().numpy()
    logits = np.einsum("kc,bcyx->bkyx", weight, features) + bias[:, None, None]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_without_perturbation_copies_of_the_classifier_agree_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Perturbations, "view", lambda self, kind: self.features)
    method = build("cct", **only(drop=2, cut=1, context=1, noise=1))
    for decoder in method.auxiliary:  # the stand-in multiplies its logits by 4
        decoder.weight.data, decoder.bias.data = 4 * method.student.head.weight.data, 4 * method.student.head.bias.data
    found = method(batch(), progress())
    assert found["consistency"] < 1e-12
    assert float(found["loss"].detach()) == pytest.approx(float(found["supervised"]))
    method.auxiliary[0].bias.data[0] += 1
    assert method(batch(), progress())["consistency"] > 1e-4


@pytest.mark.parametrize("decoder", ["classifier", "head"])
def test_the_consistency_reaches_the_encoder_and_not_the_main_classifier(decoder: str) -> None:
    method, data = build("cct", cct_decoder=decoder), batch()
    data["mask_l"] = torch.full_like(data["mask_l"], IGNORE)
    method(data, progress())["loss"].backward()
    assert not any(parameter.grad.any() for parameter in method.student.head.parameters())
    assert all(parameter.grad.any() for parameter in method.student.encoder.parameters())
    assert all(parameter.grad.any() for parameter in method.auxiliary.parameters())


def test_without_weight_it_is_suponly_on_the_labelled_stream() -> None:
    data = batch()
    found = {}
    for name in ("cct", "suponly"):
        method = build(name, cct_weight=0.0, streams_forward="separate")
        loss = method(data, progress())["loss"]
        loss.backward()
        found[name] = [loss, *(p.grad for p in method.student.parameters() if p.grad is not None)]
    assert len(found["cct"]) == len(found["suponly"]) > 3
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("step", [0, 2, 5])
def test_the_weight_rises_over_a_share_of_the_steps(step: int) -> None:
    method = build("cct", cct_rampup=0.5, cct_weight=7.0)
    found = method(batch(), progress(step))
    ramp = math.exp(-5 * (1 - min(step / 4, 1)) ** 2)
    assert float(found["unsupervised"]) == pytest.approx(7 * ramp * float(found["consistency"]))
    assert float(found["loss"].detach()) == pytest.approx(float(found["supervised"] + found["unsupervised"]))
    assert found["consistency"] > 0


@pytest.mark.parametrize("forward", ["joint", "separate"])
def test_the_loss_is_that_of_a_straight_line_oracle(forward: str) -> None:
    counts = only(drop=2, cut=1, context=1, object=1, feature_drop=2, noise=1)
    method, data = build("cct", streams_forward=forward, **counts), batch()
    output = outputs(method, data, forward == "joint")
    z = output["decoded"].detach().numpy()
    prediction = output["logits"].detach().softmax(1).numpy()
    foreground = prediction.argmax(1) != 0
    generator, views = progress().generator, []
    for _ in range(2):
        dropped = torch.rand(2, 8, generator=generator).numpy() < 0.5
        views.append(2 * z * dropped[:, :, None, None])
    objects = find_objects(torch.from_numpy(foreground), 50 * 9 / SIDE)
    assert objects.shape[1] > 0
    cut = cut_boxes(objects, torch.rand(2, 64, 2, generator=generator), 9, 9)
    assert cut.any()
    views.append(z * ~cut[:, None].numpy())
    views += [z * foreground[:, None], z * ~foreground[:, None]]
    for _ in range(2):
        gamma, attention = 0.7 + 0.2 * torch.rand((), generator=generator).item(), z.mean(1, keepdims=True)
        views.append(z * (attention < gamma * attention.max((2, 3), keepdims=True)))
    views.append(z * (0.7 + 0.6 * torch.rand(8, 9, 9, generator=generator).numpy()))
    errors = [((classified(d, v) - prediction) ** 2).mean() for d, v in zip(method.auxiliary, views, strict=True)]
    found = method(data, progress())
    assert float(found["consistency"]) == pytest.approx(np.mean(errors), rel=1e-5)
    assert float(found["unsupervised"]) == pytest.approx(30 * np.mean(errors), rel=1e-5)


def test_at_the_size_of_the_crop_logits_are_upsampled_before_the_softmax() -> None:
    method, data = build("cct", cct_resolution="crop", **only(context=1, object=1)), batch()
    output = outputs(method, data)

    def full(logits: Tensor) -> Tensor:
        return F.interpolate(logits, size=(SIDE, SIDE), mode="bilinear", align_corners=True).softmax(1)

    prediction = full(output["logits"])
    foreground = F.interpolate((prediction.argmax(1) != 0)[:, None].float(), size=(9, 9), mode="nearest")
    views = [output["decoded"] * foreground, output["decoded"] * (1 - foreground)]
    errors = [F.mse_loss(full(d(v)), prediction) for d, v in zip(method.auxiliary, views, strict=True)]
    torch.testing.assert_close(method(data, progress())["consistency"], torch.stack(errors).mean().detach())


def test_without_a_background_the_masks_have_no_decoders_and_the_whole_image_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert CCT().perturbations == [kind for kind in KINDS for _ in range(2)]
    kept = [kind for kind in KINDS if kind not in ("context", "object")]
    assert CCT(cct_background="none").perturbations == [kind for kind in kept for _ in range(2)]
    seen = []
    objects = Perturbations.objects.func
    monkeypatch.setattr(Perturbations, "objects", property(lambda self: seen.append(objects(self)) or seen[-1]))
    build("cct", cct_background="none")(batch(), progress())
    assert [boxes.tolist() for boxes in seen] == [[[[0, 0, 8, 8]]] * 2] * 2


def test_some_decoder_is_needed() -> None:
    with pytest.raises(ValidationError, match="cct_drop"):
        CCT(**only())
    with pytest.raises(ValidationError, match="cct_drop"):
        CCT(**(only(context=1, object=2) | {"cct_background": "none"}))
    assert CCT(**only(context=1)).perturbations == ["context"]


def test_heads_have_the_structure_and_the_rate_of_the_networks_own() -> None:
    network = NetworkSettings.model_validate({"encoder": "resnet18", "width": 8, "channels": 16, "dropout": 0.3})
    method = build_method("cct", CCT(cct_decoder="head"), Setup(lambda: build_network(network, C), C, IGNORE))
    recipe: Any = SimpleNamespace(lr=0.1, momentum=0.9, weight_decay=0.0, fused_sgd=False)
    _, fast = method.optimisers(recipe)[0].param_groups
    assert {id(p) for p in method.auxiliary.parameters()} <= {id(p) for p in fast["params"]} and fast["lr"] == 1.0
    own = method.student.segment.state_dict()
    first, other = method.auxiliary[0], method.auxiliary[1]
    assert {key: value.shape for key, value in first.state_dict().items()} == {k: v.shape for k, v in own.items()}
    assert [m.p for m in first.modules() if isinstance(m, torch.nn.Dropout2d)] == [0.3, 0.3]
    assert not torch.equal(first[2].weight, other[2].weight) and not torch.equal(first[2].weight, own["2.weight"])


def test_half_precision_gives_about_the_same_loss() -> None:
    found = []
    for half in (False, True):
        method = build("cct")
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses = method(batch(), progress())
        losses["loss"].backward()
        assert losses["loss"].dtype == torch.float32
        found.append(float(losses["consistency"]))
    assert found[0] == pytest.approx(found[1], rel=0.1)
