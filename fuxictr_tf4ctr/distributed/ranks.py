"""The processes that train one model, and what they do together.

Each rank has the whole model and its share of every batch. Rank 0 leads: it writes what there is to
write.
"""

import math
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fuxictr_tf4ctr.errors import SettingsError

# Tensors of more numbers than this are added up where they are; smaller ones share messages of
# about as many.
_LARGE = 1 << 18
# Steps between two looks at flags that a GPU has added up, each of which waits for it.
_STEPS_PER_LOOK = 100
# Where Linux keeps files in memory, which the processes of a host can share.
_SHARED_MEMORY = Path("/dev/shm")


class Memory(Protocol):
    """What outlives ranks that are started again, kept by whoever starts them."""

    def set(self, name: str, value: str) -> None:
        """Note a value."""

    def get(self, name: str) -> str | None:
        """Return a value that was noted, None where none was."""


class Sums:
    """What a process that trains alone adds up over the ranks in a step: nothing."""

    def finish(self, tensors: Sequence[Tensor]) -> None:
        """Add up, in place, what a backward pass has left, and wait for it.

        Args:
            tensors: What to add up beside the gradients of the weights given to
                :meth:`Ranks.sums`, of the same shapes on every rank.
        """

    def release(self) -> None:
        """Leave the weights alone from here on."""


class Ranks:
    """A process that trains alone: all it does together with others, it does by itself.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
        bytes_sent: Bytes this rank gave into sums of gradients.

    Args:
        memory: What ranks before these have noted; None where none can have been.
    """

    rank = 0
    size = 1
    bytes_sent = 0

    def __init__(self, memory: Memory | None = None) -> None:
        self._memory = memory

    def remember(self, name: str, value: str) -> None:
        """Note a value for ranks that are started again in place of these."""
        if self._memory is not None:
            self._memory.set(name, value)

    def recall(self, name: str) -> str | None:
        """Return what ranks before these have noted, None where there were none."""
        return None if self._memory is None else self._memory.get(name)

    @property
    def leads(self) -> bool:
        """Whether this rank writes files and computes metrics."""
        return self.rank == 0

    def portion(self, rows: int) -> float:
        """Return which portion of a batch's rows this rank has."""
        return 1.0

    def sums(self, weights: Iterable[nn.Parameter]) -> Sums:
        """Return what adds up gradients over the ranks.

        Args:
            weights: Those of which gradients go out while a backward pass computes others.
        """
        return Sums()

    def raise_flags(self, *flags: bool) -> None:
        """Let the next :meth:`Sums.finish` tell the other ranks what this one wants.

        Args:
            flags: As many as last time. Those that are raised are to stay so until they are heeded:
                what a GPU has added up is looked at after some steps alone.
        """

    def raised(self, *flags: bool) -> list[bool]:
        """Return for each flag whether a rank had raised it, on all ranks alike.

        Args:
            flags: What this process wants now, which is what counts where it is alone.
        """
        return list(flags)

    def agree(self, *flags: bool) -> list[bool]:
        """Return for each flag whether any rank has raised it."""
        return list(flags)

    def broadcast(self, make: Callable[[], Any]) -> Any:
        """Let rank 0 make a value, and return it on every rank; so does an error it raises."""
        return make()

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, on every rank."""
        return [value]

    def gather(self, columns: Sequence[Tensor]) -> list[Tensor]:
        """Join the rows of all ranks on rank 0, those of lower ranks first.

        Args:
            columns: [rows] each, of the same types on every rank.

        Returns:
            The whole columns on rank 0; on others, their own.
        """
        return list(columns)

    def all_to_all(self, columns: Sequence[Tensor], target: Tensor) -> list[Tensor]:
        """Send each row to a rank, and return the rows that were sent to this one.

        Args:
            columns: [rows] each, on the CPU, of the same types on every rank.
            target: [rows] the rank each row is for.

        Returns:
            The columns of the rows received, those of lower ranks first.
        """
        return list(columns)

    def once_a_host(
        self, shape: Sequence[int], dtype: torch.dtype, fill: Callable[[Tensor], None]
    ) -> Tensor:
        """Let one rank of each host fill a tensor on the CPU, which its others see as well.

        Where a host has no room for shared memory, each of its ranks fills one of its own. All
        ranks call this, and none changes the tensor later.

        Args:
            fill: Fills it; what it raises is raised on all ranks of the host.
        """
        tensor = torch.empty(*shape, dtype=dtype)
        fill(tensor)
        return tensor

    def broadcast_model(self, model: nn.Module) -> None:
        """Give every rank the parameters and buffers that rank 0 has."""


ALONE = Ranks()


class JoinedRanks(Ranks):
    """The ranks of the default process group.

    Args:
        control: Group over the CPU, for what is no gradient.
        memory: As for :class:`Ranks`.
    """

    def __init__(
        self, control: dist.ProcessGroup | None = None, memory: Memory | None = None
    ) -> None:
        super().__init__(memory)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.control = control
        self.bytes_sent = 0
        self.flags: list[bool] = []

    def portion(self, rows: int) -> float:
        total = torch.tensor([rows])
        dist.all_reduce(total, group=self.control)
        return rows / total.item()

    def sums(self, weights: Iterable[nn.Parameter]) -> "JoinedSums":
        return JoinedSums(self, weights)

    def raise_flags(self, *flags: bool) -> None:
        self.flags = list(flags)

    def raised(self, *flags: bool) -> list[bool]:
        return [bool(flag) for flag in self.flags]

    def agree(self, *flags: bool) -> list[bool]:
        raised = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(raised, dist.ReduceOp.MAX, group=self.control)
        return [bool(flag) for flag in raised]

    def broadcast(self, make: Callable[[], Any]) -> Any:
        result: list[Any] = [None, None]
        if self.leads:
            try:
                result = [make(), None]
            except Exception as error:
                result = [None, error]
        dist.broadcast_object_list(result, group=self.control)
        value, error = result
        if error is not None:
            raise error
        return value

    def all_gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def gather(self, columns: Sequence[Tensor]) -> list[Tensor]:
        rows = self.all_gather(len(columns[0]))
        gathered = []
        for column in (each.cpu() for each in columns):
            padded = torch.cat([column, column.new_zeros(max(rows) - len(column))])
            parts = [torch.empty_like(padded) for _ in rows] if self.leads else None
            dist.gather(padded, parts, group=self.control)
            if parts is not None:
                column = torch.cat([part[:own] for part, own in zip(parts, rows, strict=True)])
            gathered.append(column)
        return gathered

    def all_to_all(self, columns: Sequence[Tensor], target: Tensor) -> list[Tensor]:
        order = target.argsort()
        sent = target.bincount(minlength=self.size)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.control)
        sizes = received.tolist(), sent.tolist()
        results = [column.new_empty(sum(sizes[0])) for column in columns]
        for result, column in zip(results, columns, strict=True):
            dist.all_to_all_single(result, column[order], *sizes, group=self.control)
        return results

    def once_a_host(
        self, shape: Sequence[int], dtype: torch.dtype, fill: Callable[[Tensor], None]
    ) -> Tensor:
        hosts = self.all_gather(_host())
        first = hosts.index(_host())
        count = math.prod(shape)
        path = None
        if self.rank == first and hosts.count(_host()) > 1:
            path = _shared_file(count * dtype.itemsize)
        path = self.all_gather(path)[first]
        if path is None:
            return super().once_a_host(shape, dtype, fill)
        tensor = torch.from_file(path, shared=True, size=count, dtype=dtype).view(*shape)
        self.all_gather(None)
        error = None
        if self.rank == first:
            os.unlink(path)  # all have it open: it ends with the last of them, however that ends
            try:
                fill(tensor)
            except Exception as raised:
                error = raised
        error = self.all_gather(error)[first]
        if error is not None:
            raise error
        return tensor

    def broadcast_model(self, model: nn.Module) -> None:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), src=0)


class JoinedSums(Sums):
    """Sums over the ranks of the default process group.

    Small gradients share messages. Which, and in which order messages go, is the same on every rank
    and in every step: that of the weights, last to first, as a backward pass comes to them.

    Args:
        weights: As for :meth:`Ranks.sums`.
    """

    def __init__(self, ranks: JoinedRanks, weights: Iterable[nn.Parameter]) -> None:
        self._ranks = ranks
        self._buckets = _buckets([weight for weight in weights if weight.requires_grad][::-1])
        self._bucket_of = {
            weight: number for number, bucket in enumerate(self._buckets) for weight in bucket
        }
        self._hooks = [
            weight.register_post_accumulate_grad_hook(self._note) for weight in self._bucket_of
        ]
        self._steps = 0
        self._begin()

    def _begin(self) -> None:
        self._missing = [len(bucket) for bucket in self._buckets]
        self._sent = 0
        self._under_way: list[tuple[dist.Work, Tensor, list[Tensor]]] = []

    def _note(self, weight: nn.Parameter) -> None:
        """Send the messages that are complete with the gradient of a weight."""
        self._missing[self._bucket_of[weight]] -= 1
        while self._sent < len(self._buckets) and not self._missing[self._sent]:
            self._send([weight.grad for weight in self._buckets[self._sent]])
            self._sent += 1

    @torch.no_grad()
    def finish(self, tensors: Sequence[Tensor]) -> None:
        left = [weight for bucket in self._buckets[self._sent :] for weight in bucket]
        # The backward pass did not come to all: no rank's did, as all have the same model.
        gradients = [weight.grad for weight in left if weight.grad is not None]
        flags = tensors[-1].new_zeros(len(self._ranks.flags))
        for at, flag in enumerate(self._ranks.flags):
            if flag:
                flags[at] = 1.0
        self._send([*gradients, *tensors, flags])
        for work, summed, targets in self._under_way:
            work.wait()
            if targets:
                parts = summed.split([target.numel() for target in targets])
                for target, part in zip(targets, parts, strict=True):
                    target.copy_(part.view_as(target))
        self._steps += 1
        if flags.device.type == "cpu" or self._steps % _STEPS_PER_LOOK == 0:
            self._ranks.flags = flags.tolist()
        else:
            self._ranks.flags = [False] * len(flags)
        self._begin()

    @torch.no_grad()
    def _send(self, tensors: Sequence[Tensor]) -> None:
        """Begin to add tensors up, small ones in one message."""
        for tensor in tensors:
            if tensor.numel() > _LARGE:
                self._add_up(tensor, [])
        small = [tensor for tensor in tensors if tensor.numel() <= _LARGE]
        if small:
            self._add_up(torch.cat([tensor.reshape(-1) for tensor in small]), small)

    def _add_up(self, tensor: Tensor, targets: list[Tensor]) -> None:
        work = dist.all_reduce(tensor, async_op=True)
        self._under_way.append((work, tensor, targets))
        self._ranks.bytes_sent += tensor.numel() * tensor.element_size()

    def release(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _buckets(weights: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Divide weights into those that share a message, in their order."""
    buckets: list[list[nn.Parameter]] = []
    size = _LARGE
    for weight in weights:
        if size + weight.numel() > _LARGE:
            buckets.append([])
            size = 0
        buckets[-1].append(weight)
        size += weight.numel()
    return buckets


def _host() -> tuple[str, int]:
    """Name what ranks that can share memory have in common."""
    return socket.gethostname(), os.stat(_SHARED_MEMORY).st_dev if _SHARED_MEMORY.is_dir() else 0


def _shared_file(size: int) -> str | None:
    """Make a file in shared memory, or return None where it has no room for so many bytes."""
    try:
        number, path = tempfile.mkstemp(prefix="fuxictr_tf4ctr.", dir=_SHARED_MEMORY)
    except OSError:
        return None
    try:
        os.posix_fallocate(number, 0, max(size, 1))  # else a full memory would end the process
    except OSError:
        os.unlink(path)
        return None
    finally:
        os.close(number)
    return path


def check_agreement(ranks: Ranks, facts: Mapping[str, Any]) -> None:
    """Compare what must be the same on all ranks with rank 0.

    Args:
        facts: Name -> value: settings, data fingerprint, versions.

    Raises:
        SettingsError: Some differ; the message names ranks, facts and values.
    """
    first, *others = ranks.all_gather(dict(facts))
    differences = [
        f"rank {rank} has {name}={theirs.get(name)!r}, rank 0 {first.get(name)!r}"
        for rank, theirs in enumerate(others, 1)
        for name in sorted(first.keys() | theirs.keys())
        if theirs.get(name) != first.get(name)
    ]
    if differences:
        raise SettingsError(
            "the ranks differ, start all with the same settings, data and packages:\n"
            + "\n".join(f"- {difference}" for difference in differences)
        )


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all ranks; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, inputs: Tensor) -> Tensor:
        total = inputs.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


class SynchronisedBatchNorm1d(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` whose mean and variance in training are those of all ranks' rows.

    ``nn.SyncBatchNorm`` is for GPUs alone, and takes as many rows from every rank.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise [B, C] or [B, C, L]; ranks may have batches of different sizes."""
        if not self.training:
            return super().forward(inputs)
        self._check_input_dim(inputs)
        dims = [0] if inputs.ndim == 2 else [0, 2]
        count = inputs.new_tensor([inputs.numel() / inputs.shape[1]])
        summed = _Sum.apply(torch.cat([inputs.sum(dims), count]))
        total, count = summed.split([self.num_features, 1])
        mean = total / count
        shape = (1, -1) if inputs.ndim == 2 else (1, -1, 1)
        centered = inputs - mean.view(shape)
        # Not the mean of squares less the square of the mean: that loses digits.
        variance = _Sum.apply(centered.square().sum(dims)) / count
        self._note(mean.detach(), variance.detach(), count.detach())
        outputs = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            outputs = outputs * self.weight.view(shape) + self.bias.view(shape)
        return outputs

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if not self.track_running_stats:
            return
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1), share)


def synchronise_batch_norm(model: nn.Module) -> None:
    """Let all batch norms of a model work over the rows of all ranks.

    Args:
        model: Its parameters and buffers, and their names, stay what they are.
    """
    for module in model.modules():
        if type(module) is nn.BatchNorm1d:
            module.__class__ = SynchronisedBatchNorm1d
