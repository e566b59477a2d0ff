"""Predicts the seconds of a training step and of an inference batch from the layers of a network.

FLOPs are a poor measure of time: a batch norm has hardly any FLOPs and takes as long as a 1x1 convolution, and a
convolution of few channels reaches a fraction of the speed of a wide one. So `Work` counts what a network does for one
image in several classes, and `CostModel` gives each class its own speed::

    seconds of a step = overhead * layers + optimizer * parameters + batch * (weights . work)

The weights are fitted to a few measured steps. They are shrunk towards those of a reference machine, times one factor
for the machine at hand, so that seconds of measuring suffice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nas.errors import InputError, first_error
from nas.evaluation.complexity import at_inference
from nas.space import Shape

VERSION: Final = 1
"""Of the classes of work and of the formula; a model of another version is refused."""

NARROW_CHANNELS = 16
"""Spatial convolutions that read fewer channels than this are a class apart: they run far below the usual speed."""

CHANNEL_BLOCK = 8
"""Convolutions compute on whole blocks of channels: what does not fill one costs as much as a full one."""

RIDGE = 0.1
"""Pull of each weight towards the prior, against the squared relative error of one sample."""

OUTLIER = 0.15
"""Samples with a larger relative error than this count less (Huber 1964)."""

WARM_UP_STEPS = 1
MEASURED_STEPS = 5

CONVOLUTIONS = ("convolution", "mkldnn_convolution", "cudnn_convolution", "_convolution")
MATRIX_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear")
ATTENTION = ("_scaled_dot_product", "scaled_dot_product")
NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "_batch_norm", "rms_norm")
RECTIFIERS = ("relu", "relu6", "threshold", "hardtanh", "clamp", "clamp_min", "leaky_relu")
SMOOTH_ACTIVATIONS = (
    *("gelu", "silu", "sigmoid", "tanh", "elu", "hardswish", "hardsigmoid", "mish", "softplus", "celu", "selu"),
    *("_softmax", "_log_softmax", "exp", "erf", "pow", "sqrt", "log"),
)
JOINS = ("cat", "stack", "add", "sub", "mul", "div", "maximum", "minimum", "copy", "clone", "_to_copy")
FREE = (
    *("empty", "zeros", "ones", "full", "empty_like", "zeros_like", "ones_like", "detach", "lift_fresh", "alias"),
    *("sym_size", "arange", "scalar_tensor", "new_zeros", "new_empty", "_unsafe_view", "_local_scalar_dense"),
)


@dataclass(frozen=True)
class Work:
    """What a network computes for one image at inference.

    `layers` counts operations that compute, `parameters` are trained numbers. Multiply-adds of convolutions, with
    channels rounded up to whole blocks (`CHANNEL_BLOCK`): `pointwise` 1x1, `narrow` spatial with fewer than
    `NARROW_CHANNELS` inputs, `regular` 3x3, `wide` of other sizes (5x5, 1x7), `grouped` in groups. `products` are
    multiply-adds of linear layers and other matrix products. The rest are numbers of elements: read and written by
    convolutions (`convolved`) and by poolings and averages (`pooled`); written by norms (`normalised`), by ReLU and
    its kin (`rectified`), by other activations (`activated`), by concatenations, sums and copies (`joined`), and by
    operations that fit nowhere (`other`).
    """

    layers: int = 0
    parameters: int = 0
    pointwise: int = 0
    narrow: int = 0
    regular: int = 0
    wide: int = 0
    grouped: int = 0
    products: int = 0
    convolved: int = 0
    normalised: int = 0
    rectified: int = 0
    activated: int = 0
    pooled: int = 0
    joined: int = 0
    other: int = 0

    @classmethod
    def of(cls, network: nn.Module, input_shape: Shape) -> Self:
        """Count the work of a network for an image of this shape, without computing where that is possible.

        The network may be on any device; its mode and state are left as they were. A network that cannot run on the
        meta device computes one image where it is.
        """
        with at_inference(network), torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                counts = _counted_on_meta(network, input_shape)
            except Exception:  # a third-party network may raise anything on the meta device
                device = next((p.device for p in network.parameters()), torch.device("cpu"))
                with _Recorder() as recorder:
                    network(torch.zeros(1, *input_shape, device=device))
                counts = recorder.counts
        parameters = sum(p.numel() for p in network.parameters())
        return cls(**counts, parameters=parameters)


TERMS = tuple(field.name for field in fields(Work))
PER_STEP = ("layers", "parameters")
"""Terms that cost the same for any batch; `parameters` cost nothing at inference."""


@dataclass(frozen=True)
class Conditions:
    """What the speed depends on beside the network: a model holds for one such value."""

    batch: int
    threads: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    busy_workers: int = 1


@dataclass(frozen=True)
class Sample:
    """Measured seconds of one training step, and of one batch at inference (None: not measured)."""

    work: Work
    batch: int
    seconds_per_step: float
    seconds_per_batch: float | None = None


Nonnegative = Field(ge=0, allow_inf_nan=False)


class Weights(BaseModel):
    """Seconds per unit of each term of `Work`; those of `PER_STEP` are paid once a step, the others once an image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: float = Nonnegative
    parameters: float = Nonnegative
    pointwise: float = Nonnegative
    narrow: float = Nonnegative
    regular: float = Nonnegative
    wide: float = Nonnegative
    grouped: float = Nonnegative
    products: float = Nonnegative
    convolved: float = Nonnegative
    normalised: float = Nonnegative
    rectified: float = Nonnegative
    activated: float = Nonnegative
    pooled: float = Nonnegative
    joined: float = Nonnegative
    other: float = Nonnegative

    def seconds(self, work: Work, batch: int) -> float:
        """Of `work` for each image of a batch."""
        return float(_units(work, batch) @ self.vector())

    def vector(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """In the order of `TERMS`."""
        return np.array([getattr(self, term) for term in TERMS])

    @classmethod
    def of(cls, vector: Sequence[float] | np.ndarray[Any, np.dtype[np.float64]]) -> Self:
        """From values in the order of `TERMS`."""
        return cls(**dict(zip(TERMS, map(float, vector), strict=True)))


class CostModel(BaseModel):
    """Predicts seconds from work. `factor` multiplies all: what later observations say (see `corrected`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = VERSION
    training: Weights
    inference: Weights
    factor: FiniteFloat = Field(1.0, gt=0)

    def seconds_per_step(self, work: Work, batch: int) -> float:
        """Seconds of one training step: forward, backward, optimizer."""
        return self.factor * self.training.seconds(work, batch)

    def seconds_per_batch(self, work: Work, batch: int) -> float:
        """Seconds of one batch at inference."""
        return self.factor * self.inference.seconds(work, batch)

    @classmethod
    def fit(cls, samples: Sequence[Sample], prior: CostModel | None = None, ridge: float = RIDGE) -> CostModel:
        """The model with the least relative error on the samples.

        Args:
            samples: Any number; with none, the model is the prior.
            prior: What the weights are shrunk towards, times a common factor; None: the shipped `PRIOR`.
            ridge: Strength of that; 0: plain nonnegative least squares.
        """
        prior = PRIOR if prior is None else prior
        training = [(_units(s.work, s.batch), s.seconds_per_step) for s in samples]
        inference = [(_units(s.work, s.batch), s.seconds_per_batch) for s in samples if s.seconds_per_batch is not None]
        weights = _fitted(training, prior.factor * prior.training.vector(), ridge)
        scored = _fitted(inference, prior.factor * prior.inference.vector(), ridge)
        if not inference and training:  # the machine is as much faster at inference as it is at training
            speed = _machine_factor(training, prior.factor * prior.training.vector())
            scored = speed * scored
        return cls(training=Weights.of(weights), inference=Weights.of(scored))

    def to_json(self) -> str:
        """One line of JSON with the version."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> CostModel:
        """Read what `to_json` wrote. Raises InputError where the text is no model of this version."""
        try:
            data = json.loads(text)
        except ValueError:
            raise InputError("not a cost model: the text is not JSON") from None
        if isinstance(data, dict) and data.get("version") != VERSION:
            raise InputError(
                f"cost model of version {data.get('version')!r} cannot be used, only version {VERSION}: measure again"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InputError(f"not a cost model: {first_error(error)}") from None


def corrected(model: CostModel, observed: Sequence[tuple[float, float]]) -> CostModel:
    """The model times the median ratio of (predicted, observed) seconds; unchanged where there are none."""
    ratios = [seen / predicted for predicted, seen in observed if predicted > 0 and seen > 0]
    return model.model_copy(update={"factor": model.factor * statistics.median(ratios)}) if ratios else model


def spread_over_cost(costs: Sequence[float], count: int) -> list[int]:
    """Indices of `count` costs, from the least to the largest, as evenly as possible on a logarithmic scale."""
    remaining = sorted(range(len(costs)), key=lambda index: costs[index])
    if count >= len(remaining):
        return remaining
    low, high = (math.log(max(costs[remaining[end]], 1e-300)) for end in (0, -1))
    chosen = []
    for target in np.linspace(low, high, count):
        nearest = min(remaining, key=lambda index: abs(math.log(max(costs[index], 1e-300)) - target))
        remaining.remove(nearest)
        chosen.append(nearest)
    return sorted(chosen, key=lambda index: costs[index])


def measure(
    networks: Sequence[nn.Module],
    input_shape: Shape,
    conditions: Conditions,
    seconds: float = 15.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Sample]:
    """Time training steps and inference batches of networks, the cheapest first, for at most about `seconds`.

    A step is SGD with Nesterov momentum on the cross entropy of made-up images, channels-last. Each figure is the
    median of a few steps after a warm-up. Networks that the time does not suffice for are left out; the first is
    always measured. The networks are trained and moved to the device: pass some that serve nothing else. With
    `busy_workers` above 1 the caller keeps the other workers busy.

    Args:
        clock: Seconds now. ``time.thread_time`` ignores other load on the machine, and suits one thread only.
    """
    begin, threads = clock(), torch.get_num_threads()
    batch, samples, scale = conditions.batch, list[Sample](), 1.0
    ordered = sorted(
        ((Work.of(network, input_shape), network) for network in networks),
        key=lambda pair: PRIOR.seconds_per_step(pair[0], batch),
    )
    torch.set_num_threads(conditions.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            for number, (work, network) in enumerate(ordered):
                left = begin + seconds - clock()
                expected = scale * PRIOR.seconds_per_step(work, batch)
                least = (WARM_UP_STEPS + 1) * (expected + scale * PRIOR.seconds_per_batch(work, batch))
                if samples and least > left:
                    break
                until = clock() + left / (len(ordered) - number)
                stepping = _Stepping(network, input_shape, conditions)
                step = _median_seconds(stepping.train, until - expected, clock)
                samples.append(Sample(work, batch, step, _median_seconds(stepping.infer, until, clock)))
                scale = step / PRIOR.seconds_per_step(work, batch)
    finally:
        torch.set_num_threads(threads)
    return samples


def load_or_fit(
    folder: Path | None,
    conditions: Conditions,
    input_shape: Shape,
    make_networks: Callable[[], Sequence[nn.Module]],
    seconds: float = 15.0,
) -> CostModel:
    """The model for this machine: from the cache, or measured now and put there.

    Args:
        folder: Of the cache; None: `cache_folder()`. Where it cannot be written, nothing is cached.
        conditions: They are part of the cache's key, with the processor, the version of torch and the input shape.
        make_networks: Throw-away networks to measure, called only where the cache has no model.
        seconds: Limit on measuring.
    """
    key = {
        "version": VERSION,
        "processor": processor(conditions.device),
        "torch": torch.__version__,
        "input_shape": list(input_shape),
        **asdict(conditions),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = (cache_folder() if folder is None else folder) / f"cost-model-{digest}.json"
    with suppress(OSError, ValueError, KeyError, TypeError, InputError):  # absent or damaged: measured again
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == key:
            return CostModel.from_json(json.dumps(stored["model"]))
    model = CostModel.fit(measure(make_networks(), input_shape, conditions, seconds))
    with suppress(OSError):
        _write_atomically(path, json.dumps({"key": key, "model": model.model_dump()}, indent=1))
    return model


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/inception-nas``, else ``~/.cache/inception-nas``."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~/.cache"))) / "inception-nas"


def processor(device: str = "cpu") -> str:
    """The model of the CPU with the number of its cores, or of the GPU."""
    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_name(device))
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _units(work: Work, batch: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Of each term in one step."""
    return np.array([getattr(work, term) * (1 if term in PER_STEP else batch) for term in TERMS], dtype=np.float64)


Observed = Sequence[tuple[np.ndarray[Any, np.dtype[np.float64]], float]]
"""Units of each term, and seconds."""


def _machine_factor(observed: Observed, prior: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """How much slower than the prior this machine is: the median over samples."""
    ratios = [seconds / expected for units, seconds in observed if (expected := float(units @ prior)) > 0]
    return statistics.median(ratios) if ratios else 1.0


def _fitted(
    observed: Observed, prior: np.ndarray[Any, np.dtype[np.float64]], ridge: float
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Weights of the least relative error, each drawn to `prior` times the machine's factor by its ratio to it.

    Terms are scaled by the prior before they are fitted. Terms that no sample has keep the prior's ratio, and
    weights of 0 stay 0.
    """
    from scipy.optimize import nnls

    if not observed:
        return prior
    scale = _machine_factor(observed, prior) * prior
    seconds = np.array([each[1] for each in observed])
    units = np.stack([each[0] for each in observed])
    shares = units * scale / seconds[:, None]
    present = shares.any(0)
    trust = np.ones(len(seconds))
    ratios = np.ones(len(scale))
    for _ in range(5):
        rows, goal = shares[:, present] * trust[:, None], trust
        if ridge > 0:
            rows = np.vstack([rows, math.sqrt(ridge) * np.eye(int(present.sum()))])
            goal = np.concatenate([goal, np.full(int(present.sum()), math.sqrt(ridge))])
        ratios[present] = nnls(rows, goal)[0]
        errors = np.abs(shares @ ratios - 1)
        trust = np.sqrt(np.minimum(1.0, OUTLIER / np.maximum(errors, 1e-9)))
    return scale * ratios


class _Recorder(TorchDispatchMode):
    """Counts the work of the operations run inside it, by term of `Work`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: dict[str, int] = dict.fromkeys((term for term in TERMS if term != "parameters"), 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        written = next((leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)), None)
        if written is not None and not _is_view(func):
            self.note(name.rstrip("_"), args, written)
        return result

    def note(self, name: str, args: Sequence[Any], written: Tensor) -> None:
        """One operation, by its name in ATen without the mark of those in place."""
        term, amount = "other", written.numel()
        if name in FREE:
            return
        if name in CONVOLUTIONS:
            term, amount = _convolution(args[0], args[1], written)
            self.counts["convolved"] += args[0].numel() + written.numel()
        elif name in MATRIX_PRODUCTS:
            tensors = [each for each in args if isinstance(each, Tensor)]
            left = tensors[0] if name in ("mm", "bmm", "linear") else tensors[1]
            term, amount = "products", written.numel() * left.shape[-1]
        elif name.startswith(ATTENTION):
            term, amount = "products", 2 * written.numel() * args[1].shape[-2]
        elif any(norm in name for norm in NORMS):
            term = "normalised"
        elif name in RECTIFIERS:
            term = "rectified"
        elif name in SMOOTH_ACTIVATIONS:
            term = "activated"
        elif "pool" in name or name == "mean":
            term, amount = "pooled", args[0].numel() + written.numel()
        elif name in JOINS:
            term = "joined"
        self.counts["layers"] += 1
        self.counts[term] += amount


def _is_view(func: Any) -> bool:
    """Whether the operation returns an input without writing to it."""
    return any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)


def _convolution(inputs: Tensor, weight: Tensor, written: Tensor) -> tuple[str, int]:
    """The class of a convolution, and its multiply-adds in whole blocks of channels."""
    channels, kernel = weight.shape[1], tuple(weight.shape[2:])
    window = math.prod(kernel)
    if channels != inputs.shape[1]:
        return "grouped", written.numel() * window * channels
    outputs = weight.shape[0]
    places = written.numel() // max(1, outputs) if written.shape[1] == outputs else written.numel()
    amount = places * _whole_blocks(outputs) * _whole_blocks(channels) * window
    if window == 1:
        return "pointwise", amount
    if channels < NARROW_CHANNELS:
        return "narrow", amount
    return ("regular" if set(kernel) == {3} else "wide"), amount


def _whole_blocks(channels: int) -> int:
    """Rounded up; the few channels of an image stay as they are, because kernels exist for them."""
    return channels if channels < CHANNEL_BLOCK / 2 else -(-channels // CHANNEL_BLOCK) * CHANNEL_BLOCK


def _counted_on_meta(network: nn.Module, input_shape: Shape) -> Mapping[str, int]:
    state = {
        name: tensor.detach().to("meta") for name, tensor in [*network.named_parameters(), *network.named_buffers()]
    }
    with _Recorder() as recorder, _with_light_norms(network, recorder):
        functional_call(network, state, (torch.zeros(1, *input_shape, device="meta"),))
    counts: Mapping[str, int] = recorder.counts
    return counts


@contextmanager
def _with_light_norms(network: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Batch norms are only counted: on the meta device they take longer than all the rest."""
    norms = [
        module
        for module in network.modules()
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and "forward" not in vars(module)
    ]

    def passed(channels: int, input: Tensor) -> Tensor:
        if input.shape[1] != channels:
            raise ValueError(f"batch norm of {channels} channels got {input.shape[1]}")
        recorder.note("batch_norm", (input,), input)
        return input

    for module in norms:
        vars(module)["forward"] = partial(passed, int(vars(module)["num_features"]))
    try:
        yield
    finally:
        for module in norms:
            del vars(module)["forward"]


class _Stepping:
    """Training steps and inference batches of a network on made-up images."""

    def __init__(self, network: nn.Module, input_shape: Shape, conditions: Conditions) -> None:
        device = torch.device(conditions.device)
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.randn(conditions.batch, *input_shape, device=device)
        self._network, self._device = network, device
        self._images = images.contiguous(memory_format=torch.channels_last)
        self._autocast = partial(
            torch.autocast, device.type, dtype=torch.bfloat16, enabled=conditions.precision == "bfloat16"
        )
        self._optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
        self._labels: Tensor | None = None

    def train(self) -> None:
        self._network.train()
        with self._autocast():
            logits = _first_tensor(self._network(self._images))
            if self._labels is None:
                self._labels = torch.zeros(len(logits), *logits.shape[2:], dtype=torch.int64, device=logits.device)
            loss = nn.functional.cross_entropy(logits.float(), self._labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._wait()

    @torch.inference_mode()
    def infer(self) -> None:
        self._network.eval()
        with self._autocast():
            self._network(self._images)
        self._wait()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _first_tensor(output: Any) -> Tensor:
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def _median_seconds(step: Callable[[], None], until: float, clock: Callable[[], float]) -> float:
    """Of some steps after a warm-up; fewer where they would end later than `until`, but at least one."""
    for _ in range(WARM_UP_STEPS):
        step()
    times = list[float]()
    while len(times) < MEASURED_STEPS and (not times or clock() + times[-1] < until):
        begin = clock()
        step()
        times.append(clock() - begin)
    return statistics.median(times)


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except OSError:
        with suppress(OSError):
            os.unlink(name)
        raise


PRIOR = CostModel(
    training=Weights(
        layers=2.3e-4,
        parameters=3.1e-9,
        pointwise=1.84e-10,
        narrow=1.31e-10,
        regular=1.19e-10,
        wide=1.06e-10,
        grouped=3.8e-10,
        products=1.24e-10,
        convolved=1.9e-9,
        normalised=5.3e-9,
        rectified=2.6e-9,
        activated=7.8e-9,
        pooled=3.1e-9,
        joined=2.3e-9,
        other=3.1e-9,
    ),
    inference=Weights(
        layers=8.7e-5,
        parameters=0,
        pointwise=5.3e-11,
        narrow=4.6e-11,
        regular=3.2e-11,
        wide=4.1e-11,
        grouped=1.1e-10,
        products=4.1e-11,
        convolved=2e-10,
        normalised=1.16e-9,
        rectified=7.1e-10,
        activated=2.8e-9,
        pooled=1.4e-9,
        joined=1.06e-9,
        other=1.35e-9,
    ),
)
"""One thread of an AMD EPYC (Zen 3, 2.45 GHz), torch 2.13, float32, batches of 128.

Single layers were timed at 28x28 to 7x7 pixels; the weights were then fitted to 86 networks of three kinds (random
points of two spaces, plain stacks) and drawn to those of the layers. CPU seconds of the thread, on a busy machine:
under less load each is smaller, which the factor of the machine makes up for.
"""
