"""L9: a network of our layers alone equals its torch twin in every gradient."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from cases import normal
from torch import Tensor, nn

import torch_convbp as bp

pytestmark = pytest.mark.every_device


def ours(g: str) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv1=bp.ConvBP2d(3, 6, 5, activation=g),
            pool1=bp.MaxPoolBP2d(2),
            conv2=bp.ConvBP2d(6, 8, 3, padding=1, activation=g),
            pool2=bp.AvgPoolBP2d(3, 2, 1),
            flatten=nn.Flatten(),
            dense1=bp.LinearBP(8 * 4 * 4, 12, activation=g),
            dense2=bp.LinearBP(12, 10),
        )
    ).double()


class Twin(nn.Module):
    """The same with torch's layers, of the same names."""

    def __init__(self, g: nn.Module) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 8, 3, padding=1)
        self.dense1, self.dense2 = nn.Linear(8 * 4 * 4, 12), nn.Linear(12, 10)
        self.g = g

    def forward(self, a: Tensor) -> Tensor:
        a = F.max_pool2d(self.g(self.conv1(a)), 2)
        a = F.avg_pool2d(self.g(self.conv2(a)), 3, 2, 1)
        return self.dense2(self.g(self.dense1(a.flatten(1))))


ACTIVATIONS = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "sigmoid": nn.Sigmoid(), "silu": nn.SiLU(),
               "gelu": nn.GELU(), "leaky_relu": nn.LeakyReLU()}  # fmt: skip


@pytest.mark.parametrize("g", ACTIVATIONS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("frozen", [None, "conv1", "conv2.weight", "conv2", "dense1"])
def test_every_gradient_is_torchs(g: str, layout: torch.memory_format, frozen: str | None) -> None:
    torch.manual_seed(0)
    net = ours(g)
    twin = Twin(ACTIVATIONS[g]).double()
    twin.load_state_dict(net.state_dict())
    input = normal((4, 3, 20, 20), torch.float64, 1).contiguous(memory_format=layout)
    target = torch.tensor([1, 0, 7, 3])
    results = []
    for network in (net, twin):
        leaf = input.clone(memory_format=torch.preserve_format).requires_grad_()
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(frozen is None or not name.startswith(frozen))
        loss = F.cross_entropy(network(leaf), target)
        loss.backward()
        gradients = {name: p.grad for name, p in network.named_parameters()}
        results.append({"loss": loss, "input": leaf.grad, **gradients})
    assert results[0].keys() == results[1].keys()
    # The longest sum on the way is conv1's weight gradient, over 4 x 16 x 16 positions.
    bound = 8 * torch.finfo(torch.float64).eps * 4 * 16 * 16
    for name, expected in results[1].items():
        if expected is None:
            assert frozen is not None and name.startswith(frozen)
            assert results[0][name] is None
            continue
        error = (results[0][name] - expected).abs().max() / expected.abs().max()
        assert error <= bound, name
