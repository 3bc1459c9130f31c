"""What was measured, row by row, and what follows from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from experiments.speed.ceilings import Ceiling
from experiments.speed.floors import Floor, Plan, floor
from experiments.speed.timing import Measured

TORCH = ("torch", "benchmarked", "compiled")
OURS = ("ours", "auto", "ours_compiled")
FORCED = ("direct", "winograd")  # the algorithms beside auto in a sweep


@dataclass
class Row:
    """One operator of one case in one layout."""

    case: str
    layout: str
    operator: str
    operations: float  # of the direct arithmetic
    bytes: float  # that must be read or written
    measured: Measured
    errors: dict[str, float]
    peaks: dict[str, int | None]
    plans: dict[str, Plan] = field(default_factory=dict)  # of the sides that are torch_convbp's

    @property
    def ours(self) -> str:
        return "ours" if "ours" in self.measured.spreads else "auto"

    @property
    def torch(self) -> list[str]:
        return [side for side in TORCH if side in self.measured.spreads]

    @property
    def fastest_of_ours(self) -> float:
        """Seconds of torch_convbp's fastest side, compiled or not."""
        return min(self.seconds(side) for side in OURS if side in self.measured.spreads)

    def seconds(self, side: str) -> float:
        return self.measured.spreads[side].median

    def ratio(self, theirs: str = "torch") -> float:
        """Above 1, torch_convbp is the faster one."""
        return self.seconds(theirs) / self.seconds(self.ours)

    def ratio_quartiles(self, theirs: str = "torch") -> tuple[float, float]:
        """The ratio at the quartiles that are worst and best for torch_convbp."""
        a, b = self.measured.spreads[theirs], self.measured.spreads[self.ours]
        return a.first_quartile / b.third_quartile, a.third_quartile / b.first_quartile

    def best_algorithm(self) -> tuple[str, float]:
        """In a sweep: the fastest algorithm, and how many times its time auto takes."""
        forced = [side for side in FORCED if side in self.measured.spreads]
        best = min(forced, key=self.seconds)
        return best, self.seconds("auto") / self.seconds(best)


@dataclass
class Summary:
    """Ratios of one operator over all cases."""

    operator: str
    layout: str
    against: str
    geometric_mean: float
    worst: float
    worst_case: str
    share: float | None  # of the floor, geometric mean over the cases


@dataclass
class Results:
    title: str
    command: str
    started: str
    versions: dict[str, str]
    machine: dict[str, Any]
    settings: dict[str, Any]
    ceilings: list[Ceiling]
    rows: list[Row] = field(default_factory=list)

    def floor(self, row: Row, side: str) -> Floor | None:
        """The floor of a side's algorithm with all threads; None where it is not known."""
        plan = row.plans.get(side)
        return floor(plan, row.bytes, self.ceilings[-1]) if plan else None

    def share(self, row: Row) -> float | None:
        """The floor over the time of torch_convbp."""
        floor = self.floor(row, row.ours)
        return floor.seconds / row.seconds(row.ours) if floor else None

    def mean_share(self, rows: Iterable[Row]) -> float | None:
        shares = [share for row in rows if (share := self.share(row)) is not None]
        return geometric_mean(shares) if shares else None

    def summaries(self) -> list[Summary]:
        """By operator, layout and side of torch; last, the fastest of each over all layouts."""
        found = []
        for operator in unique(row.operator for row in self.rows):
            rows = [row for row in self.rows if row.operator == operator]
            for layout in unique(row.layout for row in rows):
                here = [row for row in rows if row.layout == layout]
                share = self.mean_share(here)
                for theirs in TORCH:
                    ratios = {r.case: r.ratio(theirs) for r in here if theirs in r.torch}
                    if ratios:
                        found.append(summary(operator, layout, theirs, ratios, share))
                both = {
                    r.case: r.seconds("compiled") / r.seconds("ours_compiled")
                    for r in here
                    if "ours_compiled" in r.measured.spreads
                }
                if both:
                    found.append(summary(operator, layout, "compiled, both", both, None))
            if len({(row.layout, side) for row in rows for side in row.torch}) > 1:
                ratios, share = fastest(rows), self.mean_share(fastest_of_ours(rows))
                found.append(summary(operator, "fastest", "fastest of torch", ratios, share))
        return found

    def plain(self) -> dict[str, Any]:
        """Everything, for results.json."""
        found = {"schema": 1} | asdict(self) | {"summaries": [asdict(s) for s in self.summaries()]}
        for plain, row in zip(found["rows"], self.rows, strict=True):
            floors = {side: floor for side in row.plans if (floor := self.floor(row, side))}
            plain["floors"] = {side: asdict(floor) for side, floor in floors.items()}
            plain["share"] = self.share(row)
        return found


def summary(
    operator: str, layout: str, against: str, ratios: dict[str, float], share: float | None
) -> Summary:
    worst = min(ratios, key=lambda case: ratios[case])
    mean = geometric_mean(ratios.values())
    return Summary(operator, layout, against, mean, ratios[worst], worst, share)


def fastest(rows: Sequence[Row]) -> dict[str, float]:
    """Torch's fastest way over our fastest for each case: any layout, compiled or not."""
    return {
        ours.case: min(
            row.seconds(side) for row in rows if row.case == ours.case for side in row.torch
        )
        / ours.fastest_of_ours
        for ours in fastest_of_ours(rows)
    }


def fastest_of_ours(rows: Sequence[Row]) -> list[Row]:
    """The layout in which torch_convbp is fastest, for each case."""
    return [
        min((row for row in rows if row.case == case), key=lambda row: row.fastest_of_ours)
        for case in unique(row.case for row in rows)
    ]


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def unique(names: Iterable[str]) -> list[str]:
    """The names without repetition, in order."""
    return list(dict.fromkeys(names))
