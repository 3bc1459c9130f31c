"""What ``compare`` found, and the table of it."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Comparison", "Row", "Side", "Step", "names_that_gain"]

# A layer gains if its ratio is larger, beyond the noise.
GAIN = 1.02
# Columns of the table where it is not printed in a terminal.
WIDTH = 120
# Characters of a name that are kept before a column is left out.
LEAST_NAME = 12


@dataclass(frozen=True)
class Side:
    """A layer as torch's or as ours, in one step of the model.

    Attributes:
        forward_ms: median time of a call, times the number of calls; milliseconds.
        backward_ms: the same for the backward pass; 0 where the layer has none.
        saved_bytes: memory that is kept for the backward pass, parameters left out.
        output_error: largest difference from float64, over the largest entry.
        gradient_error: the same for the gradients (input's, weight's, bias's), of which it is the
            worst; 0 where there are none.
    """

    forward_ms: float
    backward_ms: float
    saved_bytes: int
    output_error: float
    gradient_error: float

    @property
    def ms(self) -> float:
        return self.forward_ms + self.backward_ms

    @property
    def error(self) -> float:
        """The larger error; NaN is the largest."""
        return max(self.output_error, self.gradient_error, key=lambda e: (e != e, e))


@dataclass(frozen=True)
class Row:
    """A layer by itself, on the inputs and output gradients of one step of the model.

    Calls that differ in shape, strides or need of a gradient have a row each.

    Attributes:
        name: as ``model.named_modules()`` gives it.
        kind: as in "conv 64 3x3 s2": 64 filters, stride 2. d is dilation, g groups.
        input_shape: as in (8, 3, 64, 64).
        calls: how often a step calls the layer so.
        torch: the layer as torch's.
        ours: the layer as ours.
        least_ratio: each turn has a ratio of torch's time to ours, of both passes; their median is
            not smaller than this, but for a chance of 1/32.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    calls: int
    torch: Side
    ours: Side
    least_ratio: float

    @property
    def ratio(self) -> float:
        """torch's time over ours, of both passes."""
        return self.torch.ms / self.ours.ms


@dataclass(frozen=True)
class Step:
    """Forward and backward pass of the whole model: medians, in milliseconds.

    Attributes:
        torch_ms: with torch's layers.
        ours_ms: with every layer of the rows ours.
        faster_ms: with the layers ours that gain; None where no layer does.
        has_backward: False where no output needs a gradient: the forward pass alone was measured.
    """

    torch_ms: float
    ours_ms: float
    faster_ms: float | None
    has_backward: bool

    @property
    def ratio(self) -> float:
        """torch's time over that with every layer ours."""
        return self.torch_ms / self.ours_ms

    @property
    def faster_ratio(self) -> float | None:
        """torch's time over that with the layers ours that gain."""
        return None if self.faster_ms is None else self.torch_ms / self.faster_ms


@dataclass(frozen=True, repr=False)
class Comparison:
    """Result of ``compare``; prints as a table, as wide as the terminal allows.

    Attributes:
        rows: the layers, in the order of their first calls.
        step: the whole model.
        machine: processor and versions.
        notes: what else a reader should know, such as layers that could not be compared.
    """

    rows: tuple[Row, ...]
    step: Step
    machine: str
    notes: tuple[str, ...]

    @property
    def faster(self) -> tuple[str, ...]:
        """Names of the layers that gain: with ours more than 2 % faster, beyond the noise."""
        return names_that_gain(self.rows)

    def __str__(self) -> str:
        width = shutil.get_terminal_size((WIDTH, 24)).columns
        return "\n".join([*_table(self.rows, self.faster, width), "", *self._summary()])

    __repr__ = __str__

    def _summary(self) -> Iterator[str]:
        step, gains = self.step, len(self.faster)
        yield f"A whole {'step' if step.has_backward else 'forward pass'}:"
        yield f"{_number(step.torch_ms):>6} ms  all torch's"
        lines = [("all ours", step.ours_ms, step.ratio, "pooling=True, dense=True")]
        if step.faster_ms and step.faster_ratio:
            marked = f"{gains} ours (+)"
            lines.append((marked, step.faster_ms, step.faster_ratio, "layers=comparison.faster"))
        for which, ms, ratio, arguments in lines:
            yield (
                f"{_number(ms):>6} ms  {which:13} ratio {_number(ratio):>4}  "
                f"bp.convert(model, {arguments})"
            )
        if not gains:
            yield "No layer gains."
        yield ""
        yield "ratio: torch's time over ours; + is a gain of more than 2 %, beyond the noise."
        yield "ms: medians, all calls of a layer in a step together."
        yield "error: largest difference from float64, over the largest entry."
        yield self.machine
        yield from self.notes


def names_that_gain(rows: Sequence[Row]) -> tuple[str, ...]:
    """Names of the layers that gain, all their rows together; in the order of the rows."""
    theirs: dict[str, float] = defaultdict(float)
    ours_at_most: dict[str, float] = defaultdict(float)
    for row in rows:
        theirs[row.name] += row.torch.ms
        ours_at_most[row.name] += row.torch.ms / row.least_ratio
    return tuple(name for name in theirs if theirs[name] > GAIN * ours_at_most[name])


def _table(rows: Sequence[Row], faster: Sequence[str], width: int) -> list[str]:
    """The lines of the table. Where they are wider than ``width``, memory is left out, then errors
    and inputs, and names are cut."""

    def pair(text: Callable[[Side], str]) -> list[str]:
        return [f"{text(row.torch):>5} {text(row.ours):>5}" for row in rows]

    marks = {name: "+" for name in faster}
    columns = {
        "what": [f"{row.kind}, {row.calls}x" if row.calls > 1 else row.kind for row in rows],
        "input": ["x".join(map(str, row.input_shape)) for row in rows],
        "forward ms": pair(lambda side: _number(side.forward_ms)),
        "backward ms": pair(lambda side: _number(side.backward_ms)),
        "ratio  ": [f"{_number(row.ratio)} {marks.get(row.name, ' ')}" for row in rows],
        "error": pair(lambda side: f"{side.error:.0e}".replace("e-0", "e-").replace("0e+00", "0")),
        "saved MiB": pair(lambda side: _number(side.saved_bytes / 2**20)),
    }
    names = [row.name or "(the model itself)" for row in rows]
    longest = max(map(len, names))
    for dropped in ("saved MiB", "error", "input", ""):
        most = width - sum(len(_column(*column)[0]) + 2 for column in columns.items())
        if most < min(longest, LEAST_NAME):
            columns.pop(dropped, None)
    most = max(most, LEAST_NAME)
    cut = [name if len(name) <= most else "…" + name[1 - most :] for name in names]
    padded = [_column(*column) for column in [("layer", cut), *columns.items()]]
    return ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]


def _column(head: str, cells: list[str]) -> list[str]:
    """The cells of a column, all of one width, below two lines of its head."""
    is_text = head in ("layer", "what", "input")
    heads = ["", head] if is_text or head == "ratio  " else [head, "torch  ours"]
    width = max(map(len, [*heads, *cells]))
    return [cell.ljust(width) if is_text else cell.rjust(width) for cell in [*heads, *cells]]


def _number(value: float) -> str:
    """Four characters, up to 9999."""
    if not value:
        return "0"
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"
