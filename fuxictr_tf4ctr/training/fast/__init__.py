"""Fast mode: switches that may change a run's results, and forward passes in other arithmetic.

Weights, optimizer, loss and evaluation stay in float32.
"""

import importlib.util
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel, MultiTaskModel
from torch import Tensor, nn

from fuxictr_tf4ctr.distributed.ranks import ALONE, Ranks
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.registry import overrides

LOG = logging.getLogger(__name__)

PRECISIONS = ("fp32", "tf32", "bf16")
# What ``fast: true`` stands for: what is quicker there and leaves the metrics where they were.
_FAST_ON_GPU = {"precision": "bf16", "cuda_graphs": True}
_FAST_ON_CPU = {"fast_dropout": True}
# Their updates can be recorded in a CUDA graph.
_CAPTURABLE = ("adam", "adamw", "adamax", "nadam", "radam", "rmsprop", "asgd", "adadelta", "sgd")


@dataclass(frozen=True)
class FastOptions:
    """How far training may go from FuxiCTR's arithmetic; as it stands, nowhere.

    Attributes:
        precision: Arithmetic of matrix products: "fp32", "tf32" (a GPU's), "bf16" (autocast).
        compile: Whether ``torch.compile`` fuses what lies between the lookups and the loss.
        cuda_graphs: Whether a step is recorded once and replayed by the GPU.
        sparse_embeddings: Whether only the rows of a batch are updated and regularised.
        cowclip: Whether embedding gradients are clipped row by row, as CowClip does.
        cowclip_scale: Batch size over the one that learning rate and regularizers are given for.
        fast_dropout: Whether dropout masks on a CPU come from a faster generator than PyTorch's.
    """

    precision: str = "fp32"
    compile: bool = False
    cuda_graphs: bool = False
    sparse_embeddings: bool = False
    cowclip: bool = False
    cowclip_scale: float = 1.0
    fast_dropout: bool = False

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> "FastOptions":
        """Read the switches from settings; ``fast`` stands for those safe on the device.

        Args:
            params: Settings with gpu and batch_size; switches not given are left out or None.
        """
        chosen: dict[str, Any] = {}
        if params.get("fast"):
            chosen = _FAST_ON_GPU if params["gpu"] >= 0 else _FAST_ON_CPU
        names = [field.name for field in fields(cls)]
        given = {name: params[name] for name in names if params.get(name) is not None}
        if params.get("cowclip_batch_size"):
            given["cowclip_scale"] = params["batch_size"] / params["cowclip_batch_size"]
        return cls(**chosen | given)

    @property
    def replaces_step(self) -> bool:
        """Whether a switch changes the training step itself, beside the generator of dropout."""
        return replace(self, fast_dropout=False) != EXACT


EXACT = FastOptions()


def fast_problems(params: Mapping[str, Any], model_class: type[BaseModel] | None) -> list[str]:
    """List what keeps the switches from working, one sentence each; empty if all is well."""
    options = FastOptions.from_params(params)
    problems = [
        *_device_problems(options, on_gpu=params["gpu"] >= 0),
        *_optimizer_problems(options, str(params["optimizer"]).lower()),
    ]
    if params.get("cowclip_batch_size") and not options.cowclip:
        problems.append("cowclip_batch_size is for cowclip: set cowclip: true, or leave it out")
    if model_class is not None and options.replaces_step:
        problems += _step_problems(model_class)
    return problems


def check_fast(options: FastOptions, model: BaseModel, ranks: Ranks = ALONE) -> None:
    """Raise SettingsError where a switch cannot work with a model, its device or the ranks."""
    problems = list(_device_problems(options, on_gpu=model.device.type != "cpu"))
    if options.precision == "bf16" and too_old_for_bf16(model.device):
        problems.append(
            "precision: bf16 needs a GPU of compute capability 8.0 or above: take tf32 or fp32 "
            "(precision: fp32 beside fast: true)"
        )
    if ranks.size > 1:
        problems += [
            f"{name} sees the batch of one process: leave it out, or train with one worker"
            for name in ("sparse_embeddings", "cowclip", "cuda_graphs")
            if getattr(options, name)
        ]
    if options.replaces_step:
        optimizer = getattr(model, "optimizer", None)
        problems += _step_problems(type(model))
        problems += _optimizer_problems(options, type(optimizer).__name__.lower())
    if problems:
        raise SettingsError("; ".join(problems))
    if options.precision == "bf16" and model.device.type == "cpu" and slow_in_bf16():
        LOG.warning(
            "precision: bf16 makes a step several times slower on this CPU, which has no "
            "instructions for it: take fp32"
        )


def slow_in_bf16() -> bool:
    """Whether this is an x86 CPU without AVX-512, where PyTorch goes through bfloat16 by hand."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def too_old_for_bf16(device: torch.device) -> bool:
    """Whether a device is a GPU without arithmetic in bfloat16."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)


def _device_problems(options: FastOptions, on_gpu: bool) -> Iterator[str]:
    if options.precision == "tf32" and not on_gpu:
        yield "precision: tf32 is a GPU's arithmetic: set gpu, or take fp32 or bf16"
    if options.cuda_graphs and not on_gpu:
        yield "cuda_graphs needs a GPU: set gpu, or leave it out"
    if options.fast_dropout and on_gpu:
        yield "fast_dropout is for a CPU, a GPU draws its masks fast: leave it out"
    if options.cuda_graphs and (options.sparse_embeddings or options.cowclip):
        yield (
            "cuda_graphs records steps of one shape, but sparse_embeddings and cowclip go over as "
            "many rows as a batch has different ids: leave one of them out"
        )
    if options.compile and not _has_compiler(on_gpu):
        needed = "triton (pip install triton)" if on_gpu else "a C++ compiler (g++ or clang++)"
        yield f"compile needs {needed}: install it, or leave compile out"


def _optimizer_problems(options: FastOptions, optimizer: str) -> Iterator[str]:
    if options.sparse_embeddings and optimizer != "adam":
        yield f"sparse_embeddings has a rule for optimizer adam alone, not {optimizer}"
    if options.cuda_graphs and optimizer not in _CAPTURABLE:
        yield f"cuda_graphs cannot record optimizer {optimizer}: take adam"


def _step_problems(model_class: type[BaseModel]) -> Iterator[str]:
    if overrides(model_class, "train_step"):
        yield (
            f"{model_class.__name__} has its own train_step, which precision, compile, "
            "cuda_graphs, sparse_embeddings and cowclip would bypass: leave them out"
        )
    elif issubclass(model_class, MultiTaskModel):
        yield (
            f"{model_class.__name__} predicts several labels, and precision, compile, cuda_graphs, "
            "sparse_embeddings and cowclip are for one: leave them out"
        )


def _has_compiler(on_gpu: bool) -> bool:
    if on_gpu:
        return importlib.util.find_spec("triton") is not None
    return any(map(shutil.which, ("g++", "clang++", "c++")))


Forward = Callable[[Any], dict[str, Tensor]]


@contextmanager
def arithmetic(model: BaseModel, precision: str, forward: Forward) -> Iterator[Forward]:
    """Give a model's forward pass in another arithmetic.

    Args:
        precision: "fp32", "tf32" or "bf16"; for TF32 see :func:`matmul_precision`.

    Yields:
        The forward pass; its outputs are float32.
    """
    if precision == "bf16":
        # A probability in bfloat16 would round to 1, whose cross-entropy has no gradient.
        hook = model.output_activation.register_forward_pre_hook(_in_float32)
        try:
            yield lambda batch: _autocast(model.device, forward, batch)
        finally:
            hook.remove()
    else:
        yield forward


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Let products of float32 matrices be TF32's where ``precision`` is "tf32"."""
    if precision != "tf32":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _autocast(device: torch.device, forward: Forward, batch: Any) -> dict[str, Tensor]:
    with torch.autocast(device.type, torch.bfloat16):
        outputs = forward(batch)
    return {name: _in_full(output) for name, output in outputs.items()}


def _in_full(output: Any) -> Any:
    """Return an output of a model, a tensor, a list of them or None, in float32 where it is not."""
    if isinstance(output, list | tuple):
        return [_in_full(each) for each in output]
    is_half = isinstance(output, Tensor) and output.dtype is torch.bfloat16
    return output.float() if is_half else output


def _in_float32(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.float() for each in inputs)


def compiled_forward(model: BaseModel) -> Callable[[Any], dict[str, Tensor]]:
    """Return a model's forward pass, compiled for batches of the size that comes first.

    Others, such as the last of an epoch, run as they are: compiling for each size takes longer
    than it saves. Lookups stay outside what is compiled.
    """
    compiled = torch.compile(model.forward, dynamic=False)
    sizes: list[int] = []

    def forward(batch: Any) -> dict[str, Tensor]:
        size = len(model.get_labels(batch))
        if not sizes:
            sizes.append(size)
        return compiled(batch) if size == sizes[0] else model.forward(batch)

    return forward
