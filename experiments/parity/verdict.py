"""The rules by which parity holds, and the check of a run against them.

RULES is what the report prints: one sentence for each check. Each rule is applied to every
seed; shown is the seed that comes closest to what is allowed, or fails.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from experiments.parity.config import LABELS, SIDES
from experiments.parity.lockstep import COMPARISONS, DTYPES, HEADROOM, Row, roundoff

if TYPE_CHECKING:
    from collections.abc import Callable

    from experiments.parity.results import SeedResult, TrainingResult

CONFIDENCE = 3
BEYOND_CONFIDENCE = 0.0027  # the share of a normal distribution beyond 3 standard deviations
TRAINING_SPREAD = 0.01

RULES = {
    "convolutions": "Every convolution of one network is an nn.Conv2d, of the other a ConvBP2d.",
    "initial weights": "Both networks start from the same bits.",
    "batches": "Both trainings see the same bits in the same order, augmentation included; "
    "a fingerprint of every batch is taken in both and compared.",
    "lockstep float64": "Same weights, same batch, in float64: every layer's output and every "
    "parameter's gradient differs by at most 8uD relative to its largest entry. u = 2^-53; "
    "D is the number of products summed one after the other on the way to that tensor. "
    "Both sides add the same products in another order, so this is agreement to rounding. Each "
    "tensor has a bound of its own: the one that came closest to it is shown, and others may err "
    "by more.",
    "lockstep float32": "The same in float32, both against the float64 truth: ConvBP2d's error "
    "is at most 8 times the sum of nn.Conv2d's and the random walk u\u221aD, u = 2^-24. ReLU and "
    "max-pool may choose differently where inputs differ by less than rounding; so that this "
    "does not drown what the convolutions do, both replay the choices of the float64 network.",
    "lockstep bfloat16": "The same in the training's own mixed precision, u = 2^-8.",
    "trainings finished": "Both trainings ran to their last step, with a finite loss throughout.",
    "first loss": "The loss of the first step differs by at most 8u\u221aD of itself, u of the "
    "training's precision: the random walk of all roundings on the way to it.",
    "final accuracy": "The test accuracies differ by at most 3 binomial standard errors of the "
    "difference for this size of test set, plus 1 percentage point. Rounding differences grow "
    "exponentially in training, so after some hundred steps the two are different samples of "
    "the same procedure: equal in quality, not in bits. The point is what two seeds of one "
    "network differ by at the least.",
    "accuracy over seeds": "The mean difference of the test accuracies over n seeds is at most "
    "the 99.73 % confidence half-width t s \u221a(2/n): s is the spread of the accuracies from "
    "seed to seed, taken from both sides together, t is Student's for 2(n-1) degrees of freedom.",
}


@dataclass(frozen=True)
class Check:
    """One rule applied: what was measured, what is allowed, whether it holds.

    ``nearness`` is the measured share of what is allowed, where that is a number.
    """

    name: str
    measured: str
    allowed: str
    ok: bool
    nearness: float = 0.0

    @property
    def rule(self) -> str:
        """The rule in words."""
        return RULES[self.name]


@dataclass(frozen=True)
class Plan:
    """What a run was meant to do."""

    seeds: int
    total_steps: int
    lockstep_steps: tuple[int, ...]
    test_size: int
    precision: str = "32-true"


def judge(seeds: list[SeedResult], plan: Plan, failure: str | None = None) -> list[Check]:
    """Apply every rule to a run."""
    of_seed: list[Callable[[SeedResult], Check]] = [
        lambda s: check_convolutions(*both(s)),
        lambda s: check_weights(*both(s)),
        lambda s: check_batches(*both(s)),
        *(
            lambda s, name=comparison: check_lockstep(s.rows, name, plan.lockstep_steps)
            for comparison in COMPARISONS[plan.precision]
        ),
        lambda s: check_finished(s.sides, plan.total_steps, failure),
        lambda s: check_first_loss(*both(s), s.rows, plan.precision),
        lambda s: check_accuracy(*both(s), plan.test_size),
    ]
    checks = [over_seeds(check, seeds, plan.seeds) for check in of_seed]
    return checks if plan.seeds == 1 else [*checks, check_spread(seeds, plan.seeds)]


def both(seed: SeedResult) -> tuple[TrainingResult, TrainingResult]:
    """Return the two trainings of a seed."""
    return seed.sides["torch"], seed.sides["bp"]


def over_seeds(
    check: Callable[[SeedResult], Check], seeds: list[SeedResult], planned: int
) -> Check:
    """Apply a rule to every seed; return the worst."""
    found = [(check(seed), seed.seed) for seed in seeds]
    worst, number = max(found, key=lambda pair: (not pair[0].ok, pair[0].nearness))
    if planned > 1:
        alike = len({one.measured for one, _ in found}) == 1
        where = f"; all {planned} seeds alike" if alike else f", seed {number}"
        worst = replace(worst, measured=worst.measured + where)
    if len(found) < planned:
        worst = replace(worst, measured=f"{len(found)} of {planned} seeds", ok=False)
    return worst


def check_convolutions(torch_side: TrainingResult, bp_side: TrainingResult) -> Check:
    """See that each network has the convolution it is meant to have."""
    total = len(torch_side.convolutions)
    right = (torch_side.convolutions.count("Conv2d"), bp_side.convolutions.count("ConvBP2d"))
    return Check(
        "convolutions",
        f"{right[0]} Conv2d, {right[1]} ConvBP2d",
        f"{total} of each",
        total > 0 and right == (total, total) and len(bp_side.convolutions) == total,
    )


def check_weights(torch_side: TrainingResult, bp_side: TrainingResult) -> Check:
    """Compare the fingerprints of the initial weights."""
    theirs, ours = torch_side.weights, bp_side.weights
    equal = bool(theirs) and theirs == ours
    measured = "equal bits" if equal else f"{theirs or 'none'} and {ours or 'none'}"
    return Check("initial weights", measured, "equal", equal)


def check_batches(torch_side: TrainingResult, bp_side: TrainingResult) -> Check:
    """Compare the fingerprints of all batches."""
    name, ours, theirs = "batches", bp_side.batches, torch_side.batches
    for step, (a, b) in enumerate(zip(theirs, ours, strict=False)):
        if a != b:
            return Check(name, f"step {step} differs ({a}, {b})", "all equal", False)
    if len(ours) != len(theirs):
        return Check(name, f"{len(theirs)} and {len(ours)} batches", "all equal", False)
    return Check(name, f"{len(ours)} of {len(theirs)} equal", "all equal", bool(ours))


def check_lockstep(rows: list[Row], comparison: str, steps: tuple[int, ...]) -> Check:
    """Find the tensor that comes closest to its bound, or the worst beyond it."""
    name = f"lockstep {comparison}"
    mine = [row for row in rows if row.comparison == comparison]
    lacking = sorted(set(steps) - {row.step for row in mine})
    if lacking or not mine:
        return Check(name, f"not compared at step {lacking or 'any'}", "every step", False)
    worst = max(mine, key=lambda row: row.error / row.allowed if row.ok else math.inf)
    bad = [row for row in mine if not row.ok]
    if bad:
        finite = [row for row in bad if math.isfinite(row.error)]
        worst = max(finite, key=lambda row: row.error / row.allowed) if finite else bad[0]
    where = f"{worst.kind} of {worst.name}" if worst.kind != "loss" else "loss"
    count = f"{len(bad)} of {len(mine)} beyond; " if bad else ""
    return Check(
        name,
        f"{count}{worst.error:.1e} ({where}, step {worst.step})",
        f"{worst.allowed:.1e}",
        not bad,
        worst.error / worst.allowed,
    )


def check_finished(
    results: dict[str, TrainingResult], total_steps: int, failure: str | None
) -> Check:
    """See that both reached the last step with finite losses."""
    name, allowed = "trainings finished", f"{total_steps} steps each, finite loss"
    if failure:
        return Check(name, failure.splitlines()[-1], allowed, False)
    for side in SIDES:
        losses = results[side].losses
        broken = [step for step, loss in enumerate(losses) if not math.isfinite(loss)]
        if broken:
            return Check(
                name, f"{LABELS[side]}: loss not finite at step {broken[0]}", allowed, False
            )
        if len(losses) != total_steps:
            return Check(name, f"{LABELS[side]}: {len(losses)} steps", allowed, False)
    return Check(name, f"{total_steps} steps each, finite loss", allowed, True)


def check_first_loss(
    torch_side: TrainingResult, bp_side: TrainingResult, rows: list[Row], precision: str
) -> Check:
    """Compare the losses of step 0, where the weights are still the same bits."""
    comparison = COMPARISONS[precision][-1]
    losses = [row for row in rows if row.kind == "loss" and row.comparison == comparison]
    depth = max((row.length for row in losses), default=0)
    if not (torch_side.losses and bp_side.losses and depth):
        return Check("first loss", "not reached", "8u\u221aD", False)
    expected, got = torch_side.losses[0], bp_side.losses[0]
    allowed = HEADROOM * roundoff(DTYPES[comparison]) * math.sqrt(depth)
    difference = abs(got - expected) / abs(expected) if expected else math.inf
    return Check(
        "first loss",
        f"{difference:.1e} ({expected:.7g}, {got:.7g})",
        f"{allowed:.1e}",
        difference <= allowed,
        difference / allowed,
    )


def accuracy_tolerance(a: float, b: float, test_size: int) -> float:
    """Return by how much two accuracies on ``test_size`` pictures may differ.

    The share p is estimated from both, with one right and one wrong answer added, so that a
    perfect score does not claim certainty.
    """
    p = ((a + b) * test_size + 1) / (2 * test_size + 2)
    return CONFIDENCE * math.sqrt(2 * p * (1 - p) / test_size) + TRAINING_SPREAD


def check_accuracy(torch_side: TrainingResult, bp_side: TrainingResult, test_size: int) -> Check:
    """Compare the accuracies after the last epoch."""
    theirs, ours = torch_side.accuracy, bp_side.accuracy
    difference = abs(theirs - ours)
    if not math.isfinite(difference):
        return Check("final accuracy", "not reached", "", False)
    allowed = accuracy_tolerance(theirs, ours, test_size)
    return Check(
        "final accuracy",
        f"{100 * difference:.2f} points ({theirs:.2%}, {ours:.2%})",
        f"{100 * allowed:.2f} points",
        difference <= allowed,
        difference / allowed,
    )


@dataclass(frozen=True)
class Spread:
    """The difference of the accuracies, bp - torch, over n seeds, and what seeds differ by."""

    difference: float
    seed_to_seed: float
    """Standard deviation from seed to seed, pooled over both sides."""
    error: float
    """Standard error of the difference."""
    freedom: int

    def half_width(self, beyond: float) -> float:
        """Return the half-width of the confidence interval that leaves ``beyond`` outside."""
        from scipy import stats

        return float(stats.t.ppf(1 - beyond / 2, self.freedom)) * self.error


def spread_of(pairs: list[tuple[float, float]]) -> Spread:
    """Compare the accuracies (torch, bp) of two seeds or more."""
    torch_side, bp_side = zip(*pairs, strict=True)
    n = len(pairs)
    pooled = math.sqrt((statistics.variance(torch_side) + statistics.variance(bp_side)) / 2)
    return Spread(
        statistics.mean(bp_side) - statistics.mean(torch_side),
        pooled,
        pooled * math.sqrt(2 / n),
        2 * (n - 1),
    )


def accuracies(seeds: list[SeedResult]) -> list[tuple[float, float]]:
    """Return the final accuracies (torch, bp) of every seed."""
    return [(seed.sides["torch"].accuracy, seed.sides["bp"].accuracy) for seed in seeds]


def check_spread(seeds: list[SeedResult], planned: int) -> Check:
    """Compare the accuracies over the seeds with what seeds differ by."""
    name, pairs = "accuracy over seeds", accuracies(seeds)
    if len(pairs) < planned or not all(math.isfinite(a) for pair in pairs for a in pair):
        return Check(name, "not reached", "", False)
    spread = spread_of(pairs)
    allowed, interval = spread.half_width(BEYOND_CONFIDENCE), spread.half_width(0.05)
    return Check(
        name,
        f"{100 * spread.difference:+.2f} \u00b1 {100 * interval:.2f} points (95 %), "
        f"{100 * spread.seed_to_seed:.2f} from seed to seed",
        f"{100 * allowed:.2f} points",
        abs(spread.difference) <= allowed,
        abs(spread.difference) / allowed if allowed else 0.0,
    )


def all_passed(checks: list[Check]) -> bool:
    """Parity holds if every check does."""
    return all(check.ok for check in checks)
