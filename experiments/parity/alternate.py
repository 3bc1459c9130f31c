"""Two trainings in two processes that take turns, a few steps each.

Each training has a process of its own, so that its peak memory is its own. The two take turns:
one computes at a time, and a slower minute of the machine slows both alike. The seconds a step
would not be fair if one training ran after the other, or both at once.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from experiments.parity.config import LABELS, SIDES, Config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from types import TracebackType

    from experiments.parity.results import Epoch, Start

STOP_SECONDS = 5


class TrainingFailed(Exception):
    """One of the trainings ended before its time; the text says which and why."""


def work(pipe: Connection, side: str, config: Config) -> None:
    """Run one training, and answer with the traceback if it fails."""
    try:
        from experiments.parity.process import train

        train(pipe, side, config)
    except (EOFError, ConnectionError):
        return  # the parent has gone, or has closed the pipe to say so
    except Exception:
        with suppress(ConnectionError):
            pipe.send(traceback.format_exc())


class Trainings:
    """The two processes: a context manager that leaves none of them behind.

    The processes begin with the keyboard's interrupt ignored: the parent decides what it means.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.pipes: dict[str, Connection] = {}
        self.processes: dict[str, Any] = {}

    def __enter__(self) -> Trainings:
        # Processes forked from a third one that has loaded everything, and computed nothing.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["experiments.parity.process"])
        on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for side in SIDES:
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=work, args=(theirs, side, self.config), daemon=True
                )
                process.start()
                theirs.close()
                self.pipes[side], self.processes[side] = ours, process
        finally:
            signal.signal(signal.SIGINT, on_interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for side in SIDES:
            if side in self.processes:
                self.pipes[side].close()
                if kind is not None:
                    self.processes[side].terminate()
                self.processes[side].join(STOP_SECONDS)
                if self.processes[side].is_alive():
                    self.processes[side].kill()
                    self.processes[side].join()

    def receive(self, side: str) -> Any:
        """Return the next answer of one side."""
        try:
            answer = self.pipes[side].recv()
        except (EOFError, ConnectionResetError):
            self.processes[side].join(STOP_SECONDS)
            code = self.processes[side].exitcode
            raise TrainingFailed(f"{LABELS[side]}: its process ended with status {code}") from None
        if isinstance(answer, str):
            raise TrainingFailed(f"{LABELS[side]}: {answer.strip()}")
        return answer

    def starts(self) -> dict[str, Start]:
        """Wait until both are ready; return what each starts from."""
        return {side: self.receive(side) for side in SIDES}

    def epochs(self) -> Iterator[tuple[str, Epoch]]:
        """Let the sides train in turn; yield the record of each epoch as it ends."""
        for _ in range(self.config.epochs_done, self.config.epochs):
            training = list(SIDES)
            while training:
                for side in list(training):
                    self.pipes[side].send("go")
                    record = self.receive(side)
                    if record is not None:  # None: the turn is over, the epoch is not
                        training.remove(side)
                        yield side, record
        for side in SIDES:
            self.pipes[side].send("leave")
