"""How good pseudo-labels and negatives are, counted against the truth that no method sees."""

import torch
from torch import Tensor

from u2pl.components.pseudo_labels import most_probable
from u2pl.components.resize import nearest
from u2pl.components.taught import NewKeys, Taught, Truth
from u2pl.engine.evaluate import confusion_matrix, mean_iou
from u2pl.ranks.collectives import STREAMS, all_reduce_sum, rank, world_size


def observe_every(steps: int) -> int:
    """The first of how many steps is observed, of an epoch of so many.

    The masks of a step take a fifth of the time that its images take to load, so that one step of 16 adds 1.3 %. In
    epochs of fewer than 128 steps eight are observed, or every third: counting then adds less than 2 % to a step.
    """
    return min(16, max(3, steps // 8))


class Diagnosis:
    """Counts of an epoch's observed steps over all ranks: integers, so that no order of summing matters."""

    def __init__(self, n_classes: int, ignore: int) -> None:
        self.n_classes, self.ignore = n_classes, ignore
        self.counts: dict[str, Tensor] = {}

    @torch.no_grad()
    def observe(self, taught: Taught, given: Truth) -> None:
        """Count what a step taught; every rank calls it for the same steps.

        On GPUs counting waits for the device, which only matters if done at each step.
        """
        labels = taught.labels if taught.labels.ndim == 3 else most_probable(taught.labels)
        truth = taught.truth(given).long()
        own = self.of_labels(labels, truth, taught.reliable)
        whole: dict[str, Tensor] = {}
        if taught.keys is not None:
            own |= self.of_keys(taught.keys, truth)
            new = taught.keys.kept.sum(dim=1)  # equal on all ranks
            whole = {"steps": torch.ones_like(new[0]), "keys": new.sum(), "classes": (new > 0).sum()}
        summed = all_reduce_sum(torch.cat([value.flatten() for value in own.values()]))
        parts = summed.split([value.numel() for value in own.values()])
        found = {name: part.view_as(own[name]) for name, part in zip(own, parts, strict=True)}
        for name, value in (found | whole).items():
            self.counts[name] = self.counts[name] + value if name in self.counts else value

    def of_labels(self, labels: Tensor, truth: Tensor, reliable: Tensor | None) -> dict[str, Tensor]:
        """Confusion matrices of this rank's pseudo-labels, and of the reliable ones where there are others."""
        truth = nearest(truth, (labels.shape[1], labels.shape[2]))
        found = {"all": confusion_matrix(labels, truth, self.n_classes, self.ignore)}
        if reliable is not None:
            known = torch.where(reliable, truth, self.ignore)
            found["reliable"] = confusion_matrix(labels, known, self.n_classes, self.ignore)
        return found

    def of_keys(self, keys: NewKeys, truth: Tensor) -> dict[str, Tensor]:
        """New keys in this rank's labelled and in its unlabelled images: of known class, of the bank's class; (2,)."""
        labels = torch.stack([nearest(values, keys.size) for values in (keys.masks, truth)]).flatten(1)
        # In the order of the images of all ranks, of which each has a stretch per stream.
        ordered = keys.kept[:, keys.places.argsort()].view(len(keys.kept), STREAMS, world_size(), -1)[:, :, rank()]
        classes = torch.arange(len(ordered), device=labels.device)[:, None, None]
        known, same = labels != self.ignore, labels == classes
        return {"known": (ordered & known).sum((0, 2)), "same": (ordered & same).sum((0, 2))}

    def row(self) -> dict[str, float]:
        """The epoch's columns of history.csv, percent but for the numbers of keys; then everything starts anew.

        A column without anything to count is left out.
        """
        counts = {name: value.cpu() for name, value in self.counts.items()}
        self.counts, row = {}, {}
        if "all" in counts and (pixels := int(counts["all"].sum())):
            row["pseudo_miou"] = mean_iou(counts["all"])
            row["pseudo_accuracy"] = 100 * int(counts["all"].trace()) / pixels
            if "reliable" in counts:
                kept = int(counts["reliable"].sum())
                row["reliable_share"] = 100 * kept / pixels
                row |= {"reliable_accuracy": 100 * int(counts["reliable"].trace()) / kept} if kept else {}
        if "steps" in counts:
            row["new_keys"] = int(counts["keys"]) / int(counts["steps"]) / self.n_classes
            row["new_key_classes"] = int(counts["classes"]) / int(counts["steps"])
            known, same = counts["known"].tolist(), counts["same"].tolist()
            for name, number, wrong in (
                ("key_purity", sum(known), sum(same)),
                ("unlabelled_key_purity", known[1], same[1]),
            ):
                row |= {name: 100 * (number - wrong) / number} if number else {}
        return row
