"""A Lightning callback that logs each layer's error signal and draws it: layers against steps.

Users import the callback from ``bp.lightning``, which loads on first use.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_convbp.error_signals import recording
from torch_convbp.error_signals.recording import ErrorSignals
from torch_convbp.error_signals.statistics import Statistics

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from matplotlib.axes import Axes
else:
    try:
        from lightning.pytorch.callbacks import Callback
    except ModuleNotFoundError:
        try:
            from pytorch_lightning.callbacks import Callback
        except ModuleNotFoundError as error:
            raise ImportError(
                "torch_convbp.lightning needs Lightning: pip install 'lightning>=2.5' "
                "(or pytorch-lightning)"
            ) from error

__all__ = ["ErrorSignalMonitor"]

STATISTICS = ("rms", *Statistics._fields)
TITLES = {
    "delta": "error signal δ",
    "input_grad": "gradient of the input",
    "weight_grad": "gradient of the weight",
    "bias_grad": "gradient of the bias",
}
# Columns of a picture; with more steps than that, neighbours share a column.
COLUMNS = 512
NAMES_AT_MOST = 40
NOT_FINITE, ZERO, NO_RECORD = "#e8186d", "#101010", "#e4e6e9"


class ErrorSignalMonitor(Callback):
    """Logs the error signals of torch_convbp's layers, and draws them when training ends.

        trainer = lightning.Trainer(callbacks=[bp.lightning.ErrorSignalMonitor()])

    At each recorded step every logger gets one number per layer, named as in
    ``delta_rms/features.3``. The picture, error-signals.png, shows the rms of each layer (in
    forward order, from top to bottom) against the steps. It is written when training ends, also by
    an exception or an interruption.

    A step is an optimizer step. Under gradient accumulation its batches count as one large batch:
    for delta and input_grad exactly; for weight_grad and bias_grad the statistic is over the
    batches' shares, not of their sum.

    Args:
        every_n_steps: the first step is recorded, and then every n-th step.
        what: one or more of "delta", "input_grad", "weight_grad", "bias_grad".
        statistic: what is logged: "rms" (comparable between layers), "norm", "mean", "max_abs",
            "share_of_zeros", "share_finite" or "size".
        folder: where the picture goes; None for the logger's folder, or the trainer's.

    Raises:
        TypeError: folder is no path.
        ValueError: an argument is out of range; when training starts, if the model has no layer
            of torch_convbp.
    """

    def __init__(
        self,
        every_n_steps: int = 1,
        what: Sequence[str] = ("delta",),
        statistic: str = "rms",
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        if (
            isinstance(every_n_steps, bool)
            or not isinstance(every_n_steps, int)
            or every_n_steps < 1
        ):
            raise ValueError(
                f"ErrorSignalMonitor: every_n_steps must be an int >= 1, but got {every_n_steps!r}"
            )
        if statistic not in STATISTICS:
            raise ValueError(
                f"ErrorSignalMonitor: statistic must be one of {', '.join(STATISTICS)}, "
                f"but got {statistic!r}"
            )
        if folder is not None and not isinstance(folder, (str, os.PathLike)):
            raise TypeError(
                "ErrorSignalMonitor(): argument 'folder' must be a str or an os.PathLike, "
                f"not {type(folder).__name__}"
            )
        self.every_n_steps = every_n_steps
        self.what = recording.quantities("ErrorSignalMonitor", what)
        self.statistic = statistic
        self.folder = folder
        self.histories = {quantity: History() for quantity in self.what}
        self._signals: ErrorSignals | None = None
        self._on: contextlib.ExitStack | None = None  # open while a step is recorded
        self._step = self._next_step = 0
        self._path = Path("error-signals.png")

    # --- Lightning's hooks ---

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._signals = ErrorSignals(pl_module, "statistics", None, self.what)
        self.histories = {quantity: History() for quantity in self.what}
        self._next_step = trainer.global_step
        folder = self.folder or trainer.log_dir or trainer.default_root_dir
        self._path = Path(folder) / "error-signals.png"
        if importlib.util.find_spec("matplotlib") is None:
            warnings.warn(
                "ErrorSignalMonitor logs, but draws no picture: matplotlib is not installed "
                "(pip install matplotlib)",
                stacklevel=2,
            )

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if (
            self._signals is not None
            and self._on is None
            and trainer.global_step >= self._next_step
        ):
            self._step = trainer.global_step
            self._on = contextlib.ExitStack()
            self._on.enter_context(recording.switched_on(self._signals))

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        # Batches whose gradients are accumulated belong to one step.
        if self._signals is None or self._on is None or trainer.global_step == self._step:
            return
        self._stop()
        self._next_step = self._step + self.every_n_steps
        metrics = {}
        for quantity, history in self.histories.items():
            found = {
                name: Statistics.of_all(kept)
                for name, records in self._signals.items()
                if (kept := [k for r in records if (k := getattr(r, quantity)) is not None])
            }
            if found:
                history.add(self._step, {name: s.rms for name, s in found.items()})
            for name, statistics in found.items():
                label = f"{quantity}_{self.statistic}/{recording.shown(name)}"
                metrics[label] = float(getattr(statistics, self.statistic))
        self._signals.clear()
        if metrics and trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=self._step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._stop()
        self._save(trainer)
        if self._signals is not None and (complaint := self._signals.complaint()):
            warnings.warn(f"ErrorSignalMonitor: {complaint}", stacklevel=2)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._stop()
        try:
            self._save(trainer)
        except Exception as error:  # the exception that ended training must stay visible
            warnings.warn(f"ErrorSignalMonitor could not draw: {error}", stacklevel=2)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._on is not None:
            self._on.close()
            self._on = None

    # --- the picture ---

    def _save(self, trainer: Any) -> None:
        empty = not any(history.columns for history in self.histories.values())
        if empty or trainer.fast_dev_run or not trainer.is_global_zero:
            return
        if importlib.util.find_spec("matplotlib") is not None:
            self.save(self._path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the picture as PNG: the file is there as a whole or not at all.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            ValueError: nothing was recorded.
        """
        from matplotlib.figure import Figure  # not pyplot: no window, no global state

        # A quantity that no layer has, as bias_grad without biases, gets no picture.
        drawn = [q for q in self.what if self.histories[q].columns] or self.what[:1]
        height = 0.9 + 0.19 * min(max(len(self.names()), 6), NAMES_AT_MOST)
        heights = [*(height for _ in drawn), 2.2]
        figure = Figure(figsize=(9, sum(heights) + 0.3), dpi=110, layout="constrained")
        *pictures, curves = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        for quantity, axes in zip(drawn, pictures, strict=True):
            self.draw(axes, quantity)
            axes.set_xlabel("")
        self._draw_curves(curves, drawn[0])
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".png")
        try:
            with os.fdopen(handle, "wb") as file:
                figure.savefig(file, format="png")
            os.chmod(draft, 0o644)
            os.replace(draft, path)
        except BaseException:
            os.unlink(draft)
            raise

    def names(self) -> list[str]:
        """The layers with something to draw, in the order of the forward pass."""
        recorded = {name for h in self.histories.values() for c in h.columns for name in c}
        return [name for name in self._signals or () if name in recorded]

    def draw(
        self,
        axes: Axes,
        what: str | None = None,
        limits: tuple[float, float] | None = None,
    ) -> None:
        """Draws layers against steps into a matplotlib Axes, with a colour bar.

        Args:
            axes: the Axes to draw into.
            what: one of the recorded quantities; None for the first.
            limits: the rms at both ends of the colours, both above 0; None for the range found.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            ValueError: what is not recorded, or not yet; limits are not 0 < low <= high < infinity.
        """
        import numpy as np
        from matplotlib.colors import ListedColormap, Normalize
        from matplotlib.patches import Patch
        from matplotlib.ticker import MaxNLocator

        what = self.what[0] if what is None else what
        if what not in self.what:
            raise ValueError(
                "draw(): argument 'what' must be one of those the monitor records, "
                f"{', '.join(self.what)}, but got {what!r}"
            )
        if limits is not None and not 0 < limits[0] <= limits[1] < math.inf:
            raise ValueError(
                "draw(): argument 'limits' must be two numbers above 0, the lower one first, "
                f"but got {limits!r}"
            )
        history, names = self.histories[what], self.names()
        if not history.columns:
            raise ValueError(f"ErrorSignalMonitor: no {what} was recorded")
        none = -math.inf  # below every rms, which is never negative
        rms = np.array([[c.get(name, none) for c in history.columns] for name in names])
        usual = np.isfinite(rms) & (rms > 0)
        if limits is None:
            found = rms[usual] if usual.any() else np.ones(1)
            limits = (float(found.min()), float(found.max()))
        low, high = (math.log10(limit) for limit in limits)
        if high < low + 1:  # at least one decade: rounding is no event
            low, high = low - 0.5, high + 0.5
        decades = np.log10(np.where(usual, rms, 1.0))
        edges = (np.array(history.edges()) - 0.5, np.arange(len(names) + 1) - 0.5)
        colours = axes.pcolormesh(
            *edges, np.ma.array(decades, mask=~usual), norm=Normalize(low, high), cmap="viridis"
        )
        marks = {
            "NaN or infinite": (NOT_FINITE, np.isnan(rms) | (rms == math.inf)),
            "exactly zero": (ZERO, rms == 0),
            "no record": (NO_RECORD, rms == none),
        }
        patches = []
        for label, (colour, where) in marks.items():
            if where.any():
                flat = np.ma.array(np.zeros_like(rms), mask=~where)
                axes.pcolormesh(*edges, flat, cmap=ListedColormap([colour]))
                patches.append(Patch(color=colour, label=label))
        if patches:
            axes.legend(
                handles=patches, ncols=3, fontsize=7, frameon=False, handlelength=1,
                loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2,
            )  # fmt: skip
        every = math.ceil(len(names) / NAMES_AT_MOST)
        shown = [recording.shown(name) for name in names]
        axes.set_yticks(range(0, len(names), every), shown[::every], fontsize=7)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("step")
        axes.set_title(f"rms of the {TITLES[what]}", loc="left", fontsize=10, fontweight="bold")
        axes.spines[:].set_color("#8a8f98")
        bar = axes.figure.colorbar(
            colours, ax=axes, pad=0.01, format=_power_of_ten, ticks=MaxNLocator(integer=True)
        )
        bar.ax.tick_params(labelsize=7)

    def _draw_curves(self, axes: Axes, what: str) -> None:
        from matplotlib.ticker import MaxNLocator

        history, names = self.histories[what], self.names()
        chosen = {"first": names[0], "middle": names[len(names) // 2], "last": names[-1]}
        for (place, name), colour in zip(
            chosen.items(), ("#d1600b", "#6b7280", "#1f5a96"), strict=True
        ):
            values = [c.get(name, math.nan) for c in history.columns]
            values = [math.log10(v) if 0 < v < math.inf else math.nan for v in values]
            label = f"{place}: {recording.shown(name)}"
            # A single step is a line of no length.
            marker = "o" if len(values) < 3 else None
            axes.plot(
                history.edges()[:-1], values, color=colour, lw=1.2, label=label, marker=marker
            )
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter(_power_of_ten)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("step")
        axes.grid(color="#e6e8eb", lw=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))


def _power_of_ten(exponent: float, _: Any = None) -> str:
    return f"$10^{{{exponent:g}}}$"


class History:
    """The rms of each layer, step by step, in bounded memory.

    A column that several steps share holds the largest rms; NaN counts as the largest.
    """

    def __init__(self) -> None:
        self.columns: list[dict[str, float]] = []
        self._steps: list[int] = []  # first step of each column
        self._end = 0
        self._width = 1  # steps a column
        self._filled = 0  # steps in the last column

    def add(self, step: int, rms: Mapping[str, float]) -> None:
        distance = max(1, step - self._steps[-1]) if self._steps else 1
        self._end = step + (distance if self._width == 1 else 1)
        if self.columns and self._filled < self._width:
            self.columns[-1] = _larger(self.columns[-1], rms)
            self._filled += 1
            return
        self.columns.append(dict(rms))
        self._steps.append(step)
        self._filled = 1
        if len(self.columns) > COLUMNS:  # all columns but the last are full
            *full, last = self.columns
            pairs = zip(full[::2], full[1::2], strict=True)
            self.columns = [*(_larger(*pair) for pair in pairs), last]
            self._steps = self._steps[::2]
            self._width *= 2

    def edges(self) -> list[int]:
        """The first step of each column, and the end of the last."""
        return [*self._steps, self._end]


def _larger(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    result = dict(one)
    for name, value in other.items():
        before = result.get(name, value)
        result[name] = math.nan if before != before or value != value else max(before, value)
    return result
