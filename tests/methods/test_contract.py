"""What holds for every method, before its author writes a test. For several ranks: tests/engine/test_distributed.py."""

from typing import Any

import pytest
import torch

from tests.small import IGNORE, Network, averages, batch, beside, build, progress
from u2pl.engine.optimisers import assert_all_optimised
from u2pl.experiments.schema import Recipe
from u2pl.experiments.settings import SETTINGS
from u2pl.methods import METHODS

torch.set_num_threads(1)
ESTIMATE = {"supervised_step": 1, "semi_supervised_step": 1, "validation": 1, "weights_mb": 1}
RECIPE = Recipe.model_validate(
    {"network": {"encoder": "resnet18"}, "lr": 0.1, "weight_decay": 0.0, "epochs": 4, "batch": 2, "crop": 33}
    | {"estimate": ESTIMATE}
)
CASES = {name: (name, {}) for name in METHODS} | {
    "oracle": ("cutmix", {"oracle": True}),
    "suponly average": ("suponly", {"suponly_evaluated": "average"}),
    "released": ("u2pl", {"teacher_view": "released", "negative_label_mask": "released"}),
    "cps second batch": ("cps", {"cps_partner": "second_batch", "cps_labelled": True}),
    "cps separate": ("cps", {"streams_forward": "separate"}),
    "cps without mixing": ("cps", {"cps_mixing": "none"}),
    "gct shared": ("gct", {"gct_prepass": "shared", "gct_rampup": 0.0, "evaluated": "mean"}),
    "gct separate": ("gct", {"streams_forward": "separate", "gct_rampup_unit": "training", "gct_rampup": 0.5}),
    "gct released": ("gct", {"gct_low_maps": "shifted", "gct_negative_flaws": "cleared", "gct_threshold": 0.1}),
    "ael released": (
        "ael",
        {
            "ael_labelled_consistency": True,
            "ael_absent_class": "zero",
            "ael_confidence_groups": "share",
            "ael_weight_normaliser": "share",
            "ael_copy_paste_classes": "released",
            "ael_threshold": 0.3,
            "streams_forward": "separate",
        },
    ),
    "ael batch": ("ael", {"ael_partner": "batch", "ael_keep_by": "teacher", "ael_confidence": "student"}),
    "ael without its parts": (
        "ael",
        {"ael_reweighting": False, "ael_sampling": False, "ael_cutmix": False, "ael_copy_paste": False},
    ),
    "ael eval": ("ael", {"ael_teacher_mode": "eval"}),
    "u2pl_ael reliable": ("u2pl_ael", {"unsupervised_term": "reliable"}),
    "u2pl_ael released": (
        "u2pl_ael",
        {
            "unsupervised_term": "equalised",
            "confident_drop": "released",
            "dpa": False,
            "teacher_view": "released",
            "ael_teacher_mode": "eval",
            "ael_labelled_consistency": True,
            "streams_forward": "separate",
        },
    ),
    "pseudoseg train": (
        "pseudoseg",
        {"pseudoseg_cam_mode": "train", "pseudoseg_grid": "os8", "streams_forward": "separate"},
    ),
    "pseudoseg pixel": (
        "pseudoseg",
        {"pseudoseg_norm": "pixel", "pseudoseg_normaliser": "root_sum_square"},
    ),
    "pc2seg represent": ("pc2seg", {"pc2seg_projection": "represent", "pc2seg_sampling": "uniform"}),
    "pc2seg separate": ("pc2seg", {"streams_forward": "separate", "pc2seg_sampling": "debiased"}),
    "cps mean": ("cps", {"evaluated": "mean", "cps_masks": "half_box", "cps_label_mode": "eval"}),
    "cct heads": ("cct", {"cct_decoder": "head", "streams_forward": "separate"}),
    "cct crops": ("cct", {"cct_resolution": "crop", "cct_rampup": 1.0, "cct_object": 0}),
    "cct without background": ("cct", {"cct_background": "none"}),
}
every = pytest.mark.parametrize("case", CASES)


def made(case: str) -> Any:
    name, changes = CASES[case]
    return build(name, lambda: Network(auxiliary=True, dropout=True), **changes).train()


def given(case: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch of what the method's streams ask for."""
    name, changes = CASES[case]
    streams = SETTINGS[name](**changes).streams
    found = batch(seed) | beside(streams, seed)
    return found if "unlabelled" in streams else {key: found[key] for key in ("image_l", "mask_l")}


def step(method: Any, case: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """One whole step, dropout included, from equal generators."""
    torch.manual_seed(seed)
    now = progress(seed=seed)
    optimisers = method.optimisers(RECIPE)
    losses = method(given(case, seed), now)
    losses["loss"].backward()
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    method.after_step(now)
    return losses


def test_every_method_has_settings() -> None:
    assert METHODS.keys() == SETTINGS.keys()


@every
def test_losses_are_finite_scalars(case: str) -> None:
    for value in step(made(case), case).values():
        assert value.shape == () and torch.isfinite(value)


@every
def test_gradients_reach_exactly_what_is_trained(case: str) -> None:
    method = made(case)
    method(given(case), progress())["loss"].backward()
    followers = {id(parameter) for parameter in averages(method)}
    contrasts = hasattr(method, "contrast") or getattr(method.settings, "pc2seg_projection", "") == "represent"
    for name, parameter in method.named_parameters():
        assert parameter.requires_grad == (id(parameter) not in followers), name
        # The representation is for methods with a contrast; the others leave its head alone.
        if id(parameter) in followers or ("representation" in name and not contrasts):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@every
def test_every_trainable_parameter_is_optimised(case: str) -> None:
    method = made(case)
    assert_all_optimised(method, method.optimisers(RECIPE))


@every
def test_trained_and_averaged_networks_are_as_many_as_the_settings_say(case: str) -> None:
    method = made(case)
    networks = [module for module in method.modules() if isinstance(module, Network)]
    trained = [network for network in networks if next(network.parameters()).requires_grad]
    assert (len(trained), len(networks) - len(trained)) == (method.settings.trained, method.settings.averaged)


@every
def test_equal_generators_give_equal_losses_and_weights(case: str) -> None:
    first, other = made(case), made(case)
    one, two = step(first, case, 3), step(other, case, 3)
    assert all(torch.equal(one[name], two[name]) for name in one)
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.state_dict().items())


@every
def test_a_state_resumes_to_the_bit(case: str) -> None:
    method, other = made(case), made(case)
    step(method, case)
    other.load_state_dict(method.state_dict())
    one, two = step(method, case, 1), step(other, case, 1)
    assert all(torch.equal(one[name], two[name]) for name in one)
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())


@every
def test_a_batch_without_labels_is_finite(case: str) -> None:
    method, data = made(case), given(case)
    data |= {name: torch.full_like(data[name], IGNORE) for name in data if name.startswith("mask")}
    losses = method(data, progress())
    losses["loss"].backward()
    assert all(torch.isfinite(value) for value in losses.values()) and losses["supervised"] == 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in method.parameters())


@every
def test_what_is_taught_is_left_with_its_truth_and_keeps_no_graph(case: str) -> None:
    method, data = made(case), given(case)
    assert method.taught is None
    method(data, progress())
    if method.taught is None:
        assert case.startswith("suponly")
        return
    labels, truth, reliable, _ = method.taught
    masks = {name: values[:, 0].to(torch.uint8) for name, values in data.items() if name.startswith("image")}
    mixed = truth({name.replace("image", "truth"): values for name, values in masks.items()})
    assert mixed.shape == masks["image_u"].shape and not labels.requires_grad
    assert labels.dtype == torch.int64 if labels.ndim == 3 else labels.shape[1] == 5
    assert reliable is None or (reliable.shape == labels.shape and reliable.dtype == torch.bool)


@every
def test_what_is_evaluated_fits_a_new_network(case: str) -> None:
    method = made(case)
    step(method, case)
    new = type(method).new_evaluated(method.settings, lambda: Network(auxiliary=True, dropout=True))
    new.load_state_dict(method.evaluated.state_dict())
    images = given(case)["image_l"]
    with torch.no_grad():
        assert torch.equal(new.eval()(images)["logits"], method.evaluated.eval()(images)["logits"])
