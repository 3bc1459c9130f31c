"""Peak memory of one call, in a process of its own.

Each call is made in a fresh child of a process that has loaded torch and computed nothing, so that
what a side keeps for its next call counts too: scratch memory, reordered weights, freed memory that
the C library holds. Counted is what the resident memory grows by over inputs and weights, without
the pages of code that are read meanwhile. On a GPU it is what torch's allocator hands out in the
first call, the result included.
"""

from __future__ import annotations

import ctypes
import multiprocessing
from multiprocessing.connection import Connection

import torch

from experiments.common.memory import PeakMemory, status_bytes
from experiments.speed.cases import Case
from experiments.speed.implementations import Run, Setup, switch, work


def peak_bytes(case: Case, operator: str, setup: Setup, side: str) -> int | None:
    """Peak bytes of one call; None where the system does not say."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.speed.peak"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(sender, case, operator, setup, side))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"{case.name}, {operator}, {side}: the process that measures peak memory ended with "
            f"exit code {process.exitcode}"
        ) from None
    finally:
        process.join()


def child(answer: Connection, case: Case, operator: str, setup: Setup, side: str) -> None:
    torch.set_num_threads(setup.threads)
    switch(side, setup)
    if setup.device == "cuda":
        answer.send(gpu_bytes(work(case, operator, setup).runs[side]))
        return
    run = work(case, operator, setup).runs[side]
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # what making the tensors left free would be used again
    peak = PeakMemory()
    if not peak.method.startswith("VmHWM"):
        answer.send(None)
        return
    code = status_bytes("RssFile")
    run()
    answer.send(peak.peak_bytes() - peak.start_bytes - (status_bytes("RssFile") - code))


def gpu_bytes(run: Run) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before
