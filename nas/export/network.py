"""The network as it is exported: in eval mode, folded, on raw pixels."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.fusion import fuse_conv_bn_eval


class PixelNetwork(nn.Module):
    """Raw pixels, uint8 (N, C, H, W), 0 to 255 -> logits (N, classes), or (N, classes, H, W).

    Normalising stays a step of its own: folded into the first convolution it would be wrong at the border,
    where zeros are padded *after* it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Any:
        return self.network((pixels.to(torch.float32) - self.mean) / self.std)


def still(network: nn.Module) -> nn.Module:
    """A copy for inference on the CPU, float32, channels last: its convolutions are twice as fast there."""
    copied: nn.Module = copy.deepcopy(network).to("cpu", torch.float32).eval().requires_grad_(False)
    for tensor in (*copied.parameters(), *copied.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return copied


def fold(network: nn.Module) -> tuple[nn.Module, str]:
    """A copy for inference: each batch norm right after a convolution folded into it, dropout removed.

    Names in the state dict stay; folded convolutions gain a bias. Also returns what was done, such as
    ``folded: 12 of 12``, or ``not folded: ...`` and a plain copy where `torch.fx` cannot trace the network.

    Differs from `torch.fx.experimental.optimization.fuse`, which goes wrong where a convolution is called
    twice or has hooks (both are left alone here) and multiplies in float32 (float64 here).
    """
    bare = copy.deepcopy(network).eval()
    try:
        traced = fx.symbolic_trace(bare)
    except Exception as error:  # tracing runs the network's own code on proxies: anything can come out
        return bare, f"not folded: {one_line(error)}"
    total = sum(isinstance(module, _BatchNorm) for module in traced.modules())
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    folded = sum(_fold_into_convolution(node, traced, calls) for node in list(traced.graph.nodes))
    for node in list(traced.graph.nodes):
        if isinstance(_called(node, traced), _DropoutNd):
            _bypass(node)
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced, f"folded: {folded} of {total}" if total else "none in the network"


def _fold_into_convolution(node: fx.Node, traced: fx.GraphModule, calls: Mapping[Any, int]) -> bool:
    """Remove the node if it is a batch norm that the convolution before it can absorb; True if so."""
    norm, source = _called(node, traced), node.args[0] if node.args else None
    if type(norm) is not nn.BatchNorm2d or norm.running_mean is None or not isinstance(source, fx.Node):
        return False
    convolution = _called(source, traced)
    if type(convolution) is not nn.Conv2d or len(source.users) > 1 or calls[source.target] > 1:
        return False
    if any(module._forward_hooks or module._forward_pre_hooks for module in (convolution, norm)):
        return False
    exact = fuse_conv_bn_eval(copy.deepcopy(convolution).double(), copy.deepcopy(norm).double())
    traced.set_submodule(str(source.target), exact.to(convolution.weight.dtype))
    _bypass(node)
    return True


def _called(node: fx.Node, traced: fx.GraphModule) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _bypass(node: fx.Node) -> None:
    node.replace_all_uses_with(node.all_input_nodes[0])
    node.graph.erase_node(node)


def one_line(error: BaseException) -> str:
    """Type and first line of an error that others raised."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:300]
