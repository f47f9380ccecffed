"""One, two and four gloo ranks compute the same as one process on the whole batch, in float64."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing import SignalException

from tests.small import SMALL, Network, averages, settings_for, wake
from u2pl.components import contrast, supervised
from u2pl.components.mixing import cutmix
from u2pl.components.ohem import ohem_loss
from u2pl.data.batches import TrainBatches
from u2pl.engine.evaluate import evaluate, evaluate_images
from u2pl.errors import UserError
from u2pl.experiments.settings import Stream
from u2pl.experiments.suite import RunSpec
from u2pl.methods import Progress, Setup, build_method
from u2pl.models import build_network
from u2pl.ranks import launch as launching
from u2pl.ranks.collectives import all_gather, all_reduce_max, all_reduce_sum, fetch, locate, rank, share, world_size
from u2pl.ranks.launch import run_rank
from u2pl.ranks.layers import SharedDropout2d, SyncBatchNorm2d, data_parallel, is_rank, process_group, span_ranks

pytestmark = pytest.mark.slow

OnRanks = Callable[[int, Callable[[], Any]], list[Any]]
C, IGNORE, SIDE, BATCH, CPU = 5, 255, 17, 8, torch.device("cpu")
RELEASED = {
    "teacher_view": "released",
    "anchor_class_indexing": "released",
    "unlabelled_anchor_entropy": "released",
    "positive_filter": "released",
    "contrastive_normaliser": "released",
}
SHARES = {f"{name}_groups": "share" for name in ("loss", "ohem", "threshold", "weight", "contrastive")}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "suponly": ("suponly", {}),
    "ohem": ("suponly", {"cityscapes_loss": "ohem_auxiliary"}),
    "ohem_shares": (
        "suponly",
        {"cityscapes_loss": "ohem_auxiliary", "loss_groups": "share", "ohem_groups": "share", "suponly_group_size": 3},
    ),
    "images": ("mean_teacher", {"loss_groups": "image"}),
    "mean_teacher": ("mean_teacher", {}),
    "averaged": ("mean_teacher", {"teacher_buffers": "averaged", "teacher_first_epoch": "averaged"}),
    "cutmix": ("cutmix", {"cutmix_probability": 1}),
    "after_mix": ("cutmix", {"cutmix_probability": 1, "pseudo_label": "after_mix"}),
    "cutmix_pairs": ("cutmix", {"cutmix_probability": 1, "group_size": 2, "cutmix_box": "log_uniform_height"}),
    "warm_up": ("cutmix", {"warmup_epochs": 1}),
    "u2pl": ("u2pl", {"cutmix_probability": 1}),
    "u2pl_ohem": ("u2pl", {"cutmix_probability": 1, "cityscapes_loss": "ohem_auxiliary", "bank": False}),
    "released": ("u2pl", RELEASED | {"cutmix_probability": 1}),
    "cps": ("cps", {}),
    "cps_second": ("cps", {"cps_partner": "second_batch", "cps_labelled": True}),
    "cps_half_box": ("cps", {"cps_masks": "half_box", "cps_label_mode": "eval"}),
    "cps_none": ("cps", {"cps_mixing": "none", "cps_labelled": True, "cps_weight": 1.5}),
    "cct": ("cct", {}),
    "cct_heads": ("cct", {"cct_decoder": "head", "streams_forward": "separate"}),
    "cct_crops": ("cct", {"cct_resolution": "crop", "cct_rampup": 1.0}),
    "cct_none": ("cct", {"cct_background": "none"}),
    "gct": ("gct", {"gct_rampup": 0.0}),
    "gct_shared": ("gct", {"gct_prepass": "shared", "gct_rampup": 0.0, "gct_threshold": 0.1}),
    "gct_separate": ("gct", {"streams_forward": "separate", "gct_low_maps": "shifted", "gct_rampup": 0.0}),
    "pseudoseg": ("pseudoseg", {}),
    "pseudoseg_shares": (
        "pseudoseg",
        {"pseudoseg_norm": "share", "loss_groups": "share", "group_size": 3, "streams_forward": "separate"},
    ),
    "pseudoseg_pixel": (
        "pseudoseg",
        {"pseudoseg_norm": "pixel", "pseudoseg_cam_mode": "train", "pseudoseg_grid": "os8"},
    ),
    "pc2seg": ("pc2seg", {"pc2seg_contrast_weight": 1}),
    "pc2seg_represent": (
        "pc2seg",
        {"pc2seg_projection": "represent", "pc2seg_sampling": "uniform", "streams_forward": "separate"},
    ),
    "released_mask": ("u2pl", RELEASED | {"cutmix_probability": 1, "negative_label_mask": "released"}),
    "released_shares": (
        "u2pl",
        RELEASED
        | SHARES
        | {"cutmix_probability": 1, "negative_label_mask": "released", "label_stacking": "released", "group_size": 2},
    ),
    # shares that lie across ranks, the last of them incomplete
    "shares_of_three": ("u2pl", SHARES | {"cutmix_probability": 1, "label_stacking": "released", "group_size": 3}),
    "ael": ("ael", {}),
    "ael_released": (
        "ael",
        {
            "ael_labelled_consistency": True,
            "ael_absent_class": "zero",
            "ael_confidence_groups": "share",
            "ael_weight_normaliser": "share",
            "ael_copy_paste_classes": "released",
            "ael_threshold": 0.4,
            "streams_forward": "separate",
            "group_size": 2,
        },
    ),
    "ael_batch": ("ael", {"ael_partner": "batch", "ael_keep_by": "teacher", "ael_confidence": "student"}),
    "ael_shares_of_three": (
        "ael",
        {
            "ael_cutmix": False,
            "ael_confidence_groups": "share",
            "ael_weight_normaliser": "share",
            "group_size": 3,
            "ael_teacher_mode": "eval",
        },
    ),
    "u2pl_ael": ("u2pl_ael", {}),
    "u2pl_ael_reliable": ("u2pl_ael", {"unsupervised_term": "reliable", "ael_partner": "batch"}),
    "u2pl_ael_released": (
        "u2pl_ael",
        RELEASED
        | SHARES
        | {
            "unsupervised_term": "equalised",
            "confident_drop": "released",
            "dpa": False,
            "contrastive_weight": 0.1,
            "ael_teacher_mode": "eval",
            "ael_labelled_consistency": True,
            "streams_forward": "separate",
            "group_size": 2,
        },
    ),
    "per_image": ("u2pl", {"anchors_drawn": "per_image", "replacement": False, "ignored_negatives": True}),
}


ENTRIES: dict[Stream, set[str]] = {
    "labelled": {"image_l", "mask_l"},
    "unlabelled": {"image_u"},
    "unlabelled_2": {"image_u2"},
    "labelled_2": {"image_l2", "mask_l2"},
    "ids": {"index_u"},
    "valid": {"valid_l", "valid_u", "valid_l2"},
    "raw": {"raw_u"},
    "chosen": {"image_p"},
}


def batch() -> dict[str, Tensor]:
    """Images that differ between ranks: some without any label, a class in the last one only."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(C - 1, (BATCH, SIDE, SIDE), generator=generator)
    masks[0] = masks[1, :, 3:] = IGNORE
    masks[-1, :9] = C - 1
    brightness = torch.arange(1.0, BATCH + 1)[:, None, None, None] / BATCH
    images = torch.randn(3, BATCH, 3, SIDE, SIDE, generator=generator, dtype=torch.float64) * brightness
    found = {"image_l": images[0], "image_u": images[1] + 0.5, "image_u2": images[2] - 0.5, "mask_l": masks}
    found |= {f"image_{end}": torch.randn(images[0].shape, generator=generator).double() for end in ("l2", "p")}
    found["mask_l2"] = torch.randint(C, masks.shape, generator=generator)
    found["valid_l2"] = torch.rand(masks.shape, generator=generator) < 0.9
    return found | {"index_u": torch.randperm(12, generator=generator)[:BATCH]}


def raw_colours() -> dict[str, Tensor]:
    """What `raw` and `valid` add: padding that differs between images."""
    generator = torch.Generator().manual_seed(1)
    raw = torch.randint(256, (BATCH, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    valid = torch.ones(BATCH, SIDE, SIDE, dtype=torch.bool)
    valid[1, 9:] = valid[5, :, 12:] = False
    return {"raw_u": raw, "valid_u": valid, "valid_l": valid.flip(0)}


def two_steps(name: str) -> dict[str, Any]:
    """Losses and gradients of two steps, and what is left of them in statistics, bank and generators."""
    kind, changes = CASES[name]
    small = {"alpha_0": 0.4, "anchors_per_class": 20}
    settings = settings_for(kind, **(SMALL | small | changes))
    torch.manual_seed(0)
    auxiliary = settings.cityscapes_loss != "cross_entropy"
    setup = Setup(lambda: Network(auxiliary, dropout=True), C, IGNORE, 12, BATCH)
    method = build_method(kind, settings, setup).double()
    for parameter in averages(method):
        parameter.data += 0.1 * torch.randn_like(parameter)
    wake(method)
    span_ranks(method, BATCH // world_size(), CPU)
    forward = data_parallel(method)
    trained = {key: p for key, p in method.named_parameters() if p.requires_grad}
    optimiser = torch.optim.SGD(trained.values(), lr=0.1, momentum=0.9, weight_decay=0.01)
    asked = {key for stream in settings.streams for key in ENTRIES[stream]}
    own = {key: share(value) for key, value in (batch() | raw_colours()).items() if key in asked}
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Any] = {}
    for step in (0, 1):
        progress = Progress(0, 4, step, 8, generator)
        optimiser.zero_grad(set_to_none=True)
        parts = forward(own, progress)
        parts["loss"].backward()
        found |= {f"{step} {key}": value.detach() for key, value in parts.items()}
        found |= {f"{step} {key}": p.grad for key, p in trained.items()}
        optimiser.step()
        method.after_step(progress)
    return found | method.state_dict() | {"draw": torch.rand(3), "own draw": torch.rand(3, generator=generator)}


@pytest.fixture(scope="module", autouse=True)
def few_hard_pixels() -> Any:
    """The published minimum is more than these images have; the forked ranks inherit the change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervised, "ohem_loss", partial(ohem_loss, min_kept=700, threshold=0.1))
        yield


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    return {name: two_steps(name) for name in CASES}


@pytest.fixture(scope="module", params=[1, 2, 4])
def ranks(request: pytest.FixtureRequest, on_ranks: OnRanks) -> list[dict[str, dict[str, Any]]]:
    return on_ranks(request.param, lambda: {name: two_steps(name) for name in CASES})


@pytest.mark.parametrize("name", CASES)
def test_losses_gradients_and_bank_are_those_of_one_process(
    name: str, alone: dict[str, dict[str, Any]], ranks: list[dict[str, dict[str, Any]]]
) -> None:
    for result in ranks:
        found, expected = result[name], alone[name]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if value is None:  # a head that this step left alone must not decay either
                assert found[key] is None, key
            else:
                torch.testing.assert_close(
                    found[key], value, rtol=1e-9, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}"
                )
    if name.startswith("gct"):
        assert alone[name]["1 consistency"] > 0 and alone[name]["1 correction"] > 0
    if name in ("u2pl", "u2pl_ohem", "released", "released_shares", "shares_of_three", "per_image"):
        assert alone[name]["contrast.bank.count"].sum() > 0 and alone[name]["1 contrastive"] > 0
    if name == "u2pl":
        assert (alone[name]["contrast.bank.count"] == torch.tensor([60, 40, 40, 40, 40])).any(), (
            "no ring has gone round"
        )


def test_synchronised_batch_norm_is_batch_norm_of_the_concatenated_batch(on_ranks: OnRanks) -> None:
    torch.manual_seed(0)
    images, weights = torch.randn(2, 4, 3, 5, 6, dtype=torch.float64)
    scale, shift = torch.rand(2, 3, dtype=torch.float64)

    def apply(norm: nn.BatchNorm2d, part: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        norm = norm.double()
        norm.weight.data, norm.bias.data = scale.clone(), shift.clone()
        own = part(images).clone().requires_grad_()
        values = norm(own)
        # Every rank calls backward on the sum over all, as every rank does on the loss.
        all_reduce_sum((values * part(weights)).square().sum()).backward()
        gradients = {"weight": norm.weight.grad, "bias": norm.bias.grad, "input": own.grad}
        evaluated = norm.eval()(part(images)).detach()
        return {"values": values.detach(), **gradients, "evaluated": evaluated, **norm.state_dict()}

    expected = apply(nn.BatchNorm2d(3), lambda whole: whole)
    for index, found in enumerate(on_ranks(2, lambda: apply(SyncBatchNorm2d(3), share))):
        for key in ("values", "evaluated", "input"):
            factor = 2 if key == "input" else 1  # DDP's mean takes the number of ranks out of gradients
            torch.testing.assert_close(
                found[key] / factor, expected[key][2 * index : 2 * index + 2], rtol=0, atol=1e-12
            )
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-12)


def test_collectives_keep_the_order_of_one_process(on_ranks: OnRanks) -> None:
    rows = torch.randn(12, 3, dtype=torch.float64)  # six of labelled images, six of unlabelled ones
    asked = torch.tensor([11, 0, 5, 5, 6, 4])

    def work() -> dict[str, Tensor]:
        own = torch.cat([share(rows[:6]), share(rows[6:])])
        owner, place = locate(torch.arange(12), len(own))
        uneven = fetch(own, asked[:3])  # one row of the first rank, two of the last
        return {
            "one": all_gather(share(rows)),
            "both": all_gather(own, 2),
            "bool": all_gather(own > 0, 2),
            "fetched": fetch(own, asked),
            "uneven": uneven,
            "none": fetch(own, asked[:0]),
            "located": torch.where(owner == rank(), own[place, 0], 0.0),
            "largest": torch.tensor(all_reduce_max(rank())),
        }

    results = on_ranks(3, work)
    for found in results:
        assert torch.equal(found["one"], rows) and torch.equal(found["both"], rows)
        assert torch.equal(found["bool"], rows > 0)
        assert torch.equal(found["fetched"], rows[asked]) and torch.equal(found["uneven"], rows[asked[:3]])
        assert found["none"].shape == (0, 3) and found["largest"] == 2
    assert torch.equal(sum(found["located"] for found in results), rows[:, 0])


@pytest.mark.parametrize("group", [2, 4])
@pytest.mark.parametrize(("world", "images"), [(2, 8), (3, 6), (4, 8), (5, 5)])
def test_partners_come_from_the_fixed_groups_of_the_global_batch(
    world: int, images: int, group: int, on_ranks: OnRanks
) -> None:
    values, boxes = torch.arange(images)[:, None, None].expand(-1, 2, 2).clone(), torch.ones(images, 2, 2).bool()
    found = torch.cat(on_ranks(world, lambda: cutmix(share(values), share(boxes), group)))
    assert torch.equal(found, cutmix(values, boxes, group))


def test_dropout_draws_what_one_process_draws(on_ranks: OnRanks) -> None:
    streams = torch.ones(2, 4, 50, 2, 2)

    def work() -> Tensor:
        torch.manual_seed(0)
        layer = SharedDropout2d(0.3, 2)
        own = torch.cat([share(streams[0]), share(streams[1])])
        return torch.stack([all_gather(layer(own), 2), all_gather(layer(own), 2)])

    torch.manual_seed(0)
    plain, whole = nn.Dropout2d(0.3), streams.flatten(0, 1)
    expected = torch.stack([plain(whole), plain(whole)])
    assert not torch.equal(expected[0], expected[1])
    for found in on_ranks(2, work):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("mode", ["centre_crop", "sliding_window"])
def test_evaluation_counts_each_image_once(
    mode: str, prepared: Path, split: Path, make_spec: Callable[..., RunSpec], on_ranks: OnRanks
) -> None:
    spec = make_spec(mode=mode)
    ids = (split / "val.txt").read_text().split()
    torch.manual_seed(0)
    network = build_network(spec.recipe.network, 3)
    expected = evaluate(network, prepared, ids, spec.dataset, CPU)
    # Of four images three ranks have two, one and one.
    for found in on_ranks(3, lambda: evaluate(network, prepared, ids, spec.dataset, CPU)):
        assert torch.equal(found, expected)
    expected = evaluate_images(network, prepared, ids, spec.dataset, CPU)
    for ranks in (3, 5):  # of five ranks one has no image
        for found in on_ranks(ranks, lambda: evaluate_images(network, prepared, ids, spec.dataset, CPU)):
            assert torch.equal(found, expected), "each image's matrix, in the list's order"


def test_ranks_load_their_stretch_of_the_same_batches(
    prepared: Path, split: Path, make_spec: Callable[..., RunSpec]
) -> None:
    spec = make_spec(batch=4)
    ids = (split / "labeled.txt").read_text().split(), (split / "unlabeled.txt").read_text().split()

    def batches(number: int, world: int) -> TrainBatches:
        parts = spec.dataset, spec.recipe, spec.settings, 0
        return TrainBatches(prepared, *ids, *parts, rank=number, ranks=world)

    whole = list(batches(0, 1).epoch(1))
    parts = [list(batches(number, 2).epoch(1)) for number in range(2)]
    for step, *own in zip(whole, *parts, strict=True):
        for name, value in step.items():
            assert torch.equal(torch.cat([part[name] for part in own]), value)
    with pytest.raises(UserError, match="batch: found 4 images a step for 3 ranks, expected a multiple of 3"):
        batches(0, 3)


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="found 1 GPUs, expected 2"), process_group(torch.device("cuda")):
        pass


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_a_variable_that_another_launcher_left_makes_no_rank(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "3")
    assert not is_rank()
    with process_group(CPU):
        assert world_size() == 1


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("RANK", "x", "0 to 1"),
        ("RANK", "2", "0 to 1"),
        ("RANK", "-1", "0 to 1"),
        ("WORLD_SIZE", "two", "1 to"),
        ("WORLD_SIZE", "0", "1 to"),
        ("LOCAL_RANK", "", "0 to 1"),
        ("MASTER_PORT", "99999", "1 to 65535"),
        ("MASTER_ADDR", "", "address"),
    ],
)
def test_variables_that_torchrun_would_not_set_are_refused(
    name: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "2999"}
    for variable, number in (usual | {name: value}).items():
        monkeypatch.setenv(variable, number)
    with pytest.raises(UserError, match=f"^{name}: found .*, expected .*{expected}"), process_group(CPU):
        pass


def test_a_rank_without_torchrun_prints_why_it_ends(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """torchrun reads the reason from a file that it names; without one nobody else would tell."""

    def ended(code: int) -> None:
        raise SystemExit(code)

    def mistaken() -> None:
        raise UserError("image 7", "truncated", "a whole file")

    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    monkeypatch.setattr("os._exit", ended)
    with pytest.raises(SystemExit, match="2"):
        run_rank(mistaken)
    assert capfd.readouterr().err == "u2pl: image 7: found truncated, expected a whole file\n"
    with pytest.raises(SystemExit, match="1"):
        run_rank(lambda: [][0])
    assert capfd.readouterr().err.rstrip().endswith("IndexError: list index out of range")


@pytest.mark.parametrize("ignored", [False, True])
def test_torchrun_hands_on_a_lost_terminal_unless_nohup_ignores_it(
    ignored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun itself handles what the variable names, and leaves other signals as they were."""
    handled = []

    def run(_: object) -> None:
        handled.extend(os.environ["PET_SIGNALS_TO_HANDLE"].split(","))
        raise SignalException("", signal.SIGHUP)

    monkeypatch.setenv("PET_SIGNALS_TO_HANDLE", "")
    monkeypatch.setattr(launching.torchrun, "run", run)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as raised:
            launching.launch(2, "-m", "u2pl")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ("SIGHUP" in handled) != ignored and {"SIGINT", "SIGTERM", "SIGUSR1"} <= set(handled)
    assert raised.value.code == 75


def test_global_samples_are_drawn_from_the_anchors_of_all_ranks(on_ranks: OnRanks) -> None:
    """A class with anchors on one rank only is as likely there as with one process: the draws are the same."""
    anchors = torch.from_numpy(np.random.default_rng(0).random((4, C, 3, 3)) < 0.2)
    anchors[:, 1] = False
    anchors[3, 1, 2, 2] = True
    draws = torch.rand(C, 9, generator=torch.Generator().manual_seed(0))
    wide = contrast.sample_pixels(anchors.transpose(0, 1).flatten(1), draws)

    def work() -> Tensor:
        own = torch.cat([share(anchors[:2]), share(anchors[2:])])
        everywhere = all_gather(own, 2).transpose(0, 1).flatten(1)
        return contrast.sample_pixels(everywhere, draws)

    for found in on_ranks(2, work):
        assert torch.equal(found, wide)
