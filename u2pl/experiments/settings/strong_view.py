"""What methods share that learn from a strong view of the unlabelled images."""

from typing import Literal

from u2pl.experiments.settings.common import Lists, Stream, Streams
from u2pl.experiments.values import Positive


class StrongView(Streams):
    """A strong view beside the weak one, made on the device of raw colours: colour jitter and a square cut out."""

    # the stream without labels has the images of the labelled list, too; or the unlabelled list alone
    unlabelled_list: Literal["all", "rest"] = "all"
    cutout_size: Positive = 100  # side of the square, in pixels of a crop of 513; in other crops in proportion

    @property
    def streams(self) -> frozenset[Stream]:
        return super().streams | {"valid", "raw"}

    def seen_unlabelled(self, labelled: Lists, unlabelled: Lists) -> Lists:
        return labelled + unlabelled if self.unlabelled_list == "all" else unlabelled
