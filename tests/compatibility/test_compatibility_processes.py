"""The layers in several threads, in forked workers, and in processes that train together."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from cases import normal
from layers import LAYERS, every
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from twins import assert_close, gradients

import torch_convbp as bp

SECONDS = 60  # after which something hangs


def every_column(row: str) -> Callable[[Any], Any]:
    """A test of the network below decides the cell of each layer in it."""

    def decorate(test: Any) -> Any:
        for column in LAYERS:
            test = pytest.mark.cell("Transforms", row, column=column)(test)
        return test

    return decorate


def network() -> nn.Module:
    """Each of our layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        bp.ConvBP2d(3, 6, 3, padding=1, activation="silu"),
        bp.MaxPoolBP2d(3, 2, 1),
        bp.ConvBP2d(6, 4, 3, groups=2),
        bp.AvgPoolBP2d(2, 1),
        nn.Flatten(),
        bp.LinearBP(16, 5, activation="tanh"),
    ).double()


def pictures() -> Tensor:
    return normal((6, 3, 9, 10), torch.float64, 1)


# --- threads ---------------------------------------------------------------------------------


@pytest.mark.cell("Transforms", "several Python threads")
@every()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads(layer: str, dtype: torch.dtype) -> None:
    """They share the layer and the kernels' threads, and start together: each gets the bits that it
    gets alone."""
    module, threads, rounds = LAYERS[layer].make(dtype), 4, 5

    def input(seed: int) -> Tensor:
        return LAYERS[layer].input(seed, dtype, batch=64).requires_grad_()

    alone = [gradients(module, input(seed)) for seed in range(threads)]
    start = threading.Barrier(threads)

    def work(seed: int) -> list[tuple[Tensor, ...]]:
        start.wait(SECONDS)
        return [gradients(module, input(seed)) for _ in range(rounds)]

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(work, seed) for seed in range(threads)]
        for expected, future in zip(alone, futures, strict=True):
            for results in future.result(SECONDS):
                for a, b in zip(results, expected, strict=True):
                    assert torch.equal(a, b)


# --- forked workers --------------------------------------------------------------------------


class Computed(torch.utils.data.Dataset):
    """Item i is the layer's output for the input of seed i, computed where it is asked for."""

    def __init__(self, layer: str) -> None:
        self.layer, self.module = LAYERS[layer], LAYERS[layer].make(torch.float32)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        input = self.layer.input(index, torch.float32, batch=64)
        with torch.no_grad():
            return self.module(input)


class Collate:
    """Runs the layer's tangents of a batch too; a backward pass after fork torch refuses on
    machines with an accelerator."""

    def __init__(self, layer: str) -> None:
        self.layer, self.module = LAYERS[layer], LAYERS[layer].make(torch.float32)

    def __call__(self, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        input = self.layer.input(7, torch.float32, batch=64)
        tangent = torch.func.jvp(self.module, (input,), (input,))[1]
        return torch.stack(outputs), tangent.detach()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, in jvp
@pytest.mark.cell("Transforms", "DataLoader workers")
@every()
def test_forked_workers(layer: str) -> None:
    """After this process has used its threads, of which a forked one has none."""
    data, collate = Computed(layer), Collate(layer)
    module = LAYERS[layer].make(torch.float32)
    gradients(module, LAYERS[layer].input(dtype=torch.float32, batch=64).requires_grad_())
    options = {"batch_size": 2, "collate_fn": collate}
    here = list(DataLoader(data, **options))
    there = list(
        DataLoader(data, num_workers=2, multiprocessing_context="fork", timeout=SECONDS, **options)
    )
    assert len(there) == 3
    for (a, a_t), (b, b_t) in zip(there, here, strict=True):
        assert torch.equal(a, b) and torch.equal(a_t, b_t) and a.any() and a_t.any()


# --- processes that train together -----------------------------------------------------------


def train(model: nn.Module, parameters: Any, input: Tensor) -> list[Tensor]:
    """Three steps. The loss is a mean, so that of a batch is the mean of those of its parts."""
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = (model(input) - 0.5).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def results_of(model: nn.Module) -> dict[str, list[Tensor]]:
    """Gradients and values of all parameters, put together where they are in parts."""

    def whole(tensor: Any) -> Tensor:
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    parameters = list(model.parameters())
    return {
        "gradients": [whole(p.grad).detach() for p in parameters],
        "parameters": [whole(p).detach() for p in parameters],
    }


def data_parallel(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def static_graph(model: nn.Module) -> nn.Module:
    """Gradients are views of buckets, and those are small."""
    return DistributedDataParallel(
        model, static_graph=True, gradient_as_bucket_view=True, bucket_cap_mb=1e-3
    )


def sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        if next(layer.parameters(), None) is not None:
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


WAYS = {"DDP": data_parallel, "DDP, static graph": static_graph, "FSDP2": sharded}


def process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=SECONDS),
    )
    for name, way in WAYS.items():
        model = way(network())
        losses = train(model, model.parameters(), pictures()[rank::2])
        torch.save({"losses": losses, **results_of(model)}, folder / f"{name} {rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    # Without taking the interpreter down: a thread of gloo may still hold a tensor, and to let go
    # of it after that aborts the process (pytorch/pytorch#179291).
    os._exit(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where two processes have left what they trained."""
    folder = tmp_path_factory.mktemp("processes")
    context = torch.multiprocessing.spawn(process, (folder,), nprocs=2, join=False)
    deadline = time.monotonic() + SECONDS
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, f"no end after {SECONDS} s"
        yield folder
    finally:
        for child in context.processes:
            child.kill()


def assert_trained_as_one(folder: Path, name: str) -> None:
    """Gradients, parameters and losses are those of one process with the whole batch."""
    model = network()
    losses = train(model, model.parameters(), pictures())
    expected = results_of(model)
    parts = [torch.load(folder / f"{name} {rank}.pt") for rank in range(2)]
    for part in parts:
        assert_close({key: part[key] for key in expected}, expected)
    means = [sum(pair) / 2 for pair in zip(*(part["losses"] for part in parts), strict=True)]
    assert_close(means, losses)


@every_column("DDP over gloo")
@pytest.mark.parametrize("name", ["DDP", "DDP, static graph"])
def test_distributed_data_parallel(name: str, folder: Path) -> None:
    assert_trained_as_one(folder, name)


@every_column("FSDP2 over gloo")
def test_fully_sharded(folder: Path) -> None:
    assert_trained_as_one(folder, "FSDP2")


# --- one tensor in several processes -----------------------------------------------------------


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.mark.cell("Transforms", "DTensor")
@every()
def test_distributed_tensors(layer: str, mesh: DeviceMesh) -> None:
    """torch's function runs, which has rules for sharding; none for avg_pool2d's gradient."""

    def results(module: nn.Module) -> list[Tensor]:
        input = distribute_tensor(LAYERS[layer].input(), mesh, [Shard(0)]).requires_grad_()
        module = distribute_module(module, mesh)
        output = module(input)
        grads: tuple[Any, ...] = ()
        if layer != "avg_pool2d":
            grads = torch.autograd.grad(output.sum(), (input, *module.parameters()))
        return [tensor.full_tensor() for tensor in (output, *grads)]

    assert_close(results(LAYERS[layer].make()), results(LAYERS[layer].torchs()))
