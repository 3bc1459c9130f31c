"""What all tests share: the devices that they run on, and the number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

import torch_convbp as bp

pytest_plugins = ["compatibility_tables"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marked = metafunc.definition.get_closest_marker("every_device")
    if marked and bp.backends.cuda.is_available():
        metafunc.fixturenames.append("default_device")
        metafunc.parametrize("default_device", ["cpu", "cuda"], indirect=True)


@pytest.fixture
def default_device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a test's tensors are made, if it is marked ``every_device``: what does not say itself
    which device it means. The rest is about the CPU's kernels, processes, files and programs."""
    if request.param == "cpu":
        yield "cpu"
        return
    with torch.device(request.param):
        yield request.param


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """torch.set_num_threads, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(set_threads: Callable[[int], None]) -> None:
    """For many tiny tensors, where threads would only wait for each other."""
    set_threads(1)
