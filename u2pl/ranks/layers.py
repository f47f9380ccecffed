"""The ranks of one training: how they meet, and layers that see the global batch."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from u2pl.errors import UserError
from u2pl.ranks.collectives import all_reduce_sum, rank, world_size

# Of any exchange between ranks. With the time torchrun takes to end the others, a job outlives a lost rank by less than
# two minutes.
TIMEOUT = timedelta(seconds=70)
PATIENCE = timedelta(hours=2)  # for the files of the first rank: gigabytes, perhaps on a busy file system
_patient: Any = None  # the group of ranks that waits so long


def is_rank() -> bool:
    """Whether torchrun started this process. It sets all three; other launchers leave one of them behind."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))


def _variable(name: str, lowest: int, highest: int = 10**6) -> int:
    """An environment variable of a rank. Raises UserError if it is not a number from `lowest` to `highest`."""
    found = os.environ.get(name, "")
    if not re.fullmatch("[0-9]{1,9}", found) or not lowest <= int(found) <= highest:
        raise UserError(name, repr(found), f"a number from {lowest} to {highest}, as torchrun sets it")
    return int(found)


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Inside, a process that torchrun started is one of WORLD_SIZE ranks; yields the device it uses.

    A process on its own keeps its device and joins nothing. Raises UserError where a rank has no GPU for itself, and
    where its variables are not those of torchrun.
    """
    ranks = _variable("WORLD_SIZE", 1) if is_rank() else 1
    if ranks == 1:
        yield device
        return
    _variable("RANK", 0, ranks - 1)
    local = _variable("LOCAL_RANK", 0, ranks - 1)
    if device.type == "cuda":
        device = torch.device("cuda", local)
        if (found := torch.cuda.device_count()) <= device.index:
            raise UserError("device", f"{found} GPUs", f"{ranks}, one per rank")
        torch.cuda.set_device(device)
    if not os.environ.get("MASTER_ADDR"):
        raise UserError("MASTER_ADDR", "nothing", f"the address where the {ranks} ranks meet, as torchrun sets it")
    _variable("MASTER_PORT", 1, 65535)
    # gloo as well, so that ranks can agree on something without waiting for their GPUs
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    global _patient
    _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    yield device
    dist.destroy_process_group()  # after an error the process ends: peers may be gone


def wait_for_files() -> None:
    """Wait until all ranks are here, above all the first, which writes the files; a lost rank ends the wait at once."""
    if world_size() > 1:
        dist.barrier(group=_patient)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose batch is that of all ranks; for the CPU, where `nn.SyncBatchNorm` has no kernels."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        count = world_size() * input.numel() // input.shape[1]  # every rank has as many images
        mean = all_reduce_sum(input.sum((0, 2, 3))) / count
        centred = input - mean[:, None, None]
        variance = all_reduce_sum(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            for running, new in ((self.running_mean, mean), (self.running_var, variance * count / (count - 1))):
                assert running is not None and self.momentum is not None
                running.lerp_(new, self.momentum)
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


class SharedDropout2d(nn.Dropout2d):
    """Dropout2d whose draws are this rank's rows of what one process would draw for the global batch.

    So all ranks' generators stay equal, and a training does not depend on their number. `images` is the number of a
    rank's images in each stream.
    """

    def __init__(self, p: float, images: int) -> None:
        super().__init__(p)
        self.images = images

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return input
        world, streams = world_size(), len(input) // self.images
        noise = input.new_empty(world * len(input), input.shape[1], 1, 1).bernoulli_(1 - self.p).div_(1 - self.p)
        own = noise.unflatten(0, (streams, world, self.images))[:, rank()].flatten(0, 1)
        return input * own


def span_ranks(method: nn.Module, images: int, device: torch.device) -> None:
    """Give the method's networks batch norm and dropout of the global batch; with one process nothing changes.

    `images`: of a rank, in each stream. The names of the tensors stay, so weights fit either way.
    """
    if world_size() == 1:
        return
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(method)
    for module in list(method.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout2d):
                setattr(module, name, SharedDropout2d(child.p, images))
            elif isinstance(child, nn.BatchNorm2d):
                # The parameters stay the same objects.
                synchronised = SyncBatchNorm2d(child.num_features, child.eps, child.momentum).train(child.training)
                for kept in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                    setattr(synchronised, kept, getattr(child, kept))
                setattr(module, name, synchronised)


def data_parallel(method: nn.Module) -> nn.Module:
    """The method, with its gradients averaged over the ranks in `backward`; as it is with one process.

    The whole method is wrapped, yet DDP takes up only parameters that need a gradient. Around a single network it would
    wait for gradients of an output that this step's loss leaves out.
    """
    if world_size() == 1:
        return method
    # Which parameters a step uses is looked up each time: warm-up steps use fewer, and theirs must have no gradient, as
    # with one process. It also keeps DDP from regrouping gradients after its first step, which a resumed run would do
    # at another step, with other rounding.
    with warnings.catch_warnings():
        # Newer torch has another name for it, older torch only this one. Nothing is to be sent: all ranks' are equal.
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        return nn.parallel.DistributedDataParallel(method, broadcast_buffers=False, find_unused_parameters=True)
