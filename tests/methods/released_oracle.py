"""A training step of the released U2PL in plain float64 loops, written from the prose about it alone.

Nothing is imported from the suite but the draw of CutMix boxes, which has tests of its own. A *share* is what one GPU
of the released code holds: `group` labelled images and as many unlabelled ones. The memory bank is common to all.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from u2pl.components.mixing import cutmix_boxes

IGNORE = 255
Queues = list[deque[Tensor]]


@dataclass(frozen=True)
class Term:
    """The numbers of the contrastive term."""

    capacities: Sequence[int]  # of the queues, one per class
    r_low: int
    r_high: int
    delta_p: float = 0.3
    tau: float = 0.5


@dataclass
class Share:
    """What the contrastive term gets of one share, at the size of the output; labelled images first in 2g."""

    student: Tensor  # (2g, D, h, w) representations
    teacher: Tensor
    probs: Tensor  # (2g, C, h, w) of the teacher's train-mode pass
    labels: Tensor  # (g, h, w) int64 with IGNORE
    pseudo_labels: Tensor  # of the eval-mode pass, mixed
    low: Tensor  # (2g, h, w) bool: labelled: not ignored; unlabelled: of the lowest entropies
    high: Tensor  # likewise, of the highest


@dataclass
class Seen:
    """What happened in the steps, so that a test can assert that its data reach every branch."""

    pushed: list[int] = field(default_factory=list)  # keys per class, over all steps
    present: list[list[int]] = field(default_factory=list)  # classes of each share and step
    contributing: list[tuple[int, int]] = field(default_factory=list)  # class of the anchors, class of the bank
    unmet: int = 0  # present classes whose position has no anchors, or whose bank is empty
    mixed: list[bool] = field(default_factory=list)  # per step
    by_count: list[bool] = field(default_factory=list)  # OHEM: whether the number of pixels decided, not 0.7


def stacked(maps: Tensor, n_classes: int) -> Tensor:
    """The released one-hot, (g, h, w) -> bool (g, C, h, w): the first image has the classes of all, the others none.

    A pixel that another image ignores counts as class 0; what the first image ignores is cleared.
    """
    found = torch.zeros(len(maps), n_classes, *maps.shape[1:], dtype=torch.bool)
    for image, y, x in np.ndindex(*maps.shape):
        label = int(maps[image, y, x])
        if maps[0, y, x] != IGNORE:
            found[0, 0 if label == IGNORE else label, y, x] = True
    return found


def ranks(probs: Tensor) -> Tensor:
    """O(c) of every pixel: 0 for the most probable class, C - 1 for the least probable one."""
    order = probs.argsort(dim=1, descending=True)
    found = torch.empty_like(order)
    for place in range(order.shape[1]):
        found.scatter_(1, order[:, place : place + 1], place)
    return found


def new_queues(term: Term) -> Queues:
    return [deque(maxlen=capacity) for capacity in term.capacities]


def push(share: Share, queues: Queues, term: Term, seen: Seen) -> None:
    """Append a share's negatives: unlabelled pixels of high entropy that have the class and rank it in the middle.

    The released mask asks labelled pixels to have the class and not to have it: they give no key.
    """
    g, n_classes = len(share.labels), len(queues)
    has_class, place = stacked(share.pseudo_labels, n_classes), ranks(share.probs[g:])
    seen.pushed = seen.pushed or [0] * n_classes
    for c in range(n_classes):
        for image, y, x in np.ndindex(*share.pseudo_labels.shape):
            middle = term.r_low <= int(place[image, c, y, x]) < term.r_high
            if has_class[image, c, y, x] and share.high[g + image, y, x] and middle:
                queues[c].append(share.teacher[g + image, :, y, x].detach().clone())
                seen.pushed[c] += 1


def low_by_class(share: Share, n_classes: int) -> list[Tensor]:
    """Pixels of low entropy that have the class, bool (2g, h, w) for each."""
    has_class = torch.cat([stacked(share.labels, n_classes), stacked(share.pseudo_labels, n_classes)])
    return [has_class[:, c] & share.low for c in range(n_classes)]


def present_classes(low_of: list[Tensor]) -> list[int]:
    return [c for c, low in enumerate(low_of) if low.any()]


def drawn(draws: Tensor, count: int) -> list[int]:
    """floor(u * count) for each of (K,) draws, in their own precision; a product that rounds up is clipped."""
    return [min(int(value), count - 1) for value in draws * count]


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """Of rows (..., D)."""
    return (one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1))


def contrastive_loss(
    share: Share, queues: Queues, anchor_draws: Tensor, negative_draws: Tensor, term: Term, seen: Seen
) -> Tensor:
    """The term of one share. For the i-th class that is present, anchors and prototype are those of the class with
    *index* i: row i of the draws (C, M). That class lends its bank alone: its own row of the draws (C, M, N).
    """
    low_of = low_by_class(share, len(queues))
    present = present_classes(low_of)
    seen.present.append(present)
    loss = 0 * share.student.sum()
    if len(present) <= 1:
        return loss
    for i, bank_class in enumerate(present):
        pixels = (low_of[i] & (share.probs[:, i] > term.delta_p)).nonzero().tolist()  # by image, row, column
        if not pixels or not queues[bank_class]:
            seen.unmet += 1
            continue
        seen.contributing.append((i, bank_class))
        prototype = torch.stack([share.teacher[n, :, y, x] for n, y, x in low_of[i].nonzero().tolist()]).mean(0)
        terms = []
        for m, chosen in enumerate(drawn(anchor_draws[i], len(pixels))):
            image, y, x = pixels[chosen]
            anchor = share.student[image, :, y, x]
            negatives = torch.stack(
                [queues[bank_class][k] for k in drawn(negative_draws[bank_class, m], len(queues[bank_class]))]
            )
            positive = torch.exp(cosines(anchor, prototype) / term.tau)
            terms.append(-torch.log(positive / (positive + torch.exp(cosines(anchor, negatives) / term.tau).sum())))
        loss = loss + torch.stack(terms).mean()
    return loss / len(present)


@dataclass(frozen=True)
class Numbers:
    """A data set's released numbers, and the sizes of the test."""

    group: int
    warmup_epochs: int
    gpus: int
    ohem: bool
    term: Term
    anchors: int  # M
    negatives: int  # N
    alpha_0: float
    min_kept: int = 0
    threshold: float = 0.7
    cutmix_probability: float = 0.5
    contrastive_weight: float = 1.0
    auxiliary_weight: float = 0.4
    ema_decay: float = 0.99


def full_size(values: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(values, size=size, mode="bilinear", align_corners=True)


def small_size(values: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W) by floor nearest."""
    found = values.new_empty(len(values), *size)
    for y, x in np.ndindex(*size):
        found[:, y, x] = values[:, y * values.shape[1] // size[0], x * values.shape[2] // size[1]]
    return found


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p of the label at the pixels (K,) that have one."""
    counted = labels != IGNORE
    rows = logits.permute(0, 2, 3, 1)[counted].log_softmax(dim=1)
    return -rows[torch.arange(len(rows)), labels[counted]]


class Oracle:
    """Both networks and the queues. `step` gives the losses, with "loss" to call backward on; then `after_step`."""

    def __init__(self, student: nn.Module, teacher: nn.Module, numbers: Numbers) -> None:
        self.student, self.teacher, self.numbers = student, teacher, numbers
        self.queues, self.seen = new_queues(numbers.term), Seen()

    def step(self, batch: dict[str, Tensor], epoch: int, epochs: int, generator: torch.Generator) -> dict[str, Tensor]:
        numbers, images_l, images_u, masks = self.numbers, batch["image_l"], batch["image_u"], batch["mask_l"]
        n, (height, width), g = len(images_l), masks.shape[1:], numbers.group
        shares = [slice(first, first + g) for first in range(0, n, g)]
        size = height, width
        self.student.train()

        if epoch < numbers.warmup_epochs:
            with torch.no_grad():
                self.teacher.train()(images_l)
            supervised = self.supervised(self.student(images_l), masks, shares)
            return {"loss": supervised, "supervised": supervised}

        # Pseudo-labels of the unmixed images, then CutMix with the next image of the share.
        boxes = cutmix_boxes(
            n, height, width, probability=numbers.cutmix_probability, generator=generator, device=images_u.device
        )
        self.seen.mixed.append(bool(boxes.any()))
        with torch.no_grad():
            labels = full_size(self.teacher.eval()(images_u)["logits"], size).argmax(dim=1)
        mixed, pseudo_labels = images_u.clone(), labels.clone()
        for i in range(n):
            partner = i // g * g + (i % g + 1) % g
            mixed[i][:, boxes[i]] = images_u[partner][:, boxes[i]]
            pseudo_labels[i][boxes[i]] = labels[partner][boxes[i]]

        # Both networks in train mode on labelled and mixed images.
        images = torch.cat([images_l, mixed])
        with torch.no_grad():
            view = self.teacher.train()(images)
            log_p = full_size(view["logits"][n:], size).log_softmax(dim=1)
            entropies = -(log_p.exp() * log_p).sum(dim=1)
            probs = view["logits"].softmax(dim=1)
        output = self.student(images)
        logits_u, small = full_size(output["logits"][n:], size), output["logits"].shape[2:]

        # Each share has its own thresholds, and its own lambda_u.
        alpha = numbers.alpha_0 * (1 - epoch / epochs)
        unsupervised, parts = [], []
        for own in shares:
            values = entropies[own].flatten().numpy()
            gamma, lowest = np.percentile(values, 100 * (1 - alpha)), np.percentile(values, 100 * alpha)
            for cut in (gamma, lowest):
                assert np.abs(values - cut).min() > 1e-9, "an entropy lies on its threshold"
            reliable = entropies[own] < gamma
            targets = torch.where(reliable, pseudo_labels[own], IGNORE)
            weight = reliable.numel() / int(reliable.sum())
            unsupervised.append(weight * cross_entropies(logits_u[own], targets).mean())

            valid = small_size(masks[own], small) != IGNORE
            both = [own, slice(n + own.start, n + own.stop)]
            stream = {
                name: torch.cat([value[part] for part in both])
                for name, value in (
                    ("student", output["representation"]),
                    ("teacher", view["representation"]),
                    ("probs", probs),
                )
            }
            parts.append(
                Share(
                    **stream,
                    labels=small_size(masks[own], small),
                    pseudo_labels=small_size(pseudo_labels[own], small),
                    low=torch.cat([valid, small_size(entropies[own] <= lowest, small)]),
                    high=torch.cat([valid, small_size(entropies[own] > gamma, small)]),
                )
            )

        # All keys are in the bank before any share samples.
        anchor_draws = torch.rand(len(shares), probs.shape[1], numbers.anchors, generator=generator)
        negative_draws = torch.rand(
            len(shares), probs.shape[1], numbers.anchors, numbers.negatives, generator=generator
        )
        for part in parts:
            push(part, self.queues, numbers.term, self.seen)
        contrastive = [
            contrastive_loss(part, self.queues, anchor_draws[k], negative_draws[k], numbers.term, self.seen)
            for k, part in enumerate(parts)
        ]

        found = {
            "supervised": self.supervised({name: value[:n] for name, value in output.items()}, masks, shares),
            "unsupervised": torch.stack(unsupervised).mean(),
            "contrastive": torch.stack(contrastive).mean(),
        }
        weight = numbers.contrastive_weight / numbers.gpus
        loss = found["supervised"] + found["unsupervised"] + weight * found["contrastive"]
        return {"loss": loss} | found

    def supervised(self, output: dict[str, Tensor], masks: Tensor, shares: list[slice]) -> Tensor:
        """The mean over shares of the cross-entropy, or of OHEM on both heads."""
        size = masks.shape[1], masks.shape[2]
        logits = full_size(output["logits"], size)
        if not self.numbers.ohem:
            return torch.stack([cross_entropies(logits[own], masks[own]).mean() for own in shares]).mean()
        auxiliary = full_size(output["auxiliary"], size)
        losses = [
            self.ohem(logits[own], masks[own]) + self.numbers.auxiliary_weight * self.ohem(auxiliary[own], masks[own])
            for own in shares
        ]
        return torch.stack(losses).mean()

    def ohem(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the pixels that are hard, or of the `min_kept` hardest where fewer are."""
        numbers, losses = self.numbers, cross_entropies(logits, labels)
        p = torch.exp(-losses.detach())
        at_least = p.sort().values[min(numbers.min_kept, len(p)) - 1]
        self.seen.by_count.append(bool(at_least > numbers.threshold))
        return losses[p <= max(numbers.threshold, float(at_least))].mean()

    @torch.no_grad()
    def after_step(self, epoch: int, step: int, steps_per_epoch: int) -> None:
        """Parameters alone: a copy until the end of the first semi-supervised epoch, then the average."""
        numbers = self.numbers
        since = step - numbers.warmup_epochs * steps_per_epoch
        decay = 0.0 if epoch <= numbers.warmup_epochs else min(1 - 1 / (since + 1), numbers.ema_decay)
        for target, source in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            target.copy_(decay * target + (1 - decay) * source)
