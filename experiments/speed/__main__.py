"""``python -m experiments.speed``: options, measuring, writing."""

from __future__ import annotations

import os
import shlex
import sys
from argparse import Namespace
from datetime import datetime
from typing import TYPE_CHECKING

from experiments.common.errors import UsageError
from experiments.speed import options as command_line

if TYPE_CHECKING:
    from experiments.speed.ceilings import Ceiling


def main(arguments: list[str]) -> int:
    options = command_line.parse_arguments(arguments)
    missing = command_line.environment(options)
    if missing:
        command_line.restart_with(missing, arguments)
    try:
        return run(options, arguments)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: the folder stays, marked UNFINISHED", file=sys.stderr)
        return 130


def run(options: Namespace, arguments: list[str]) -> int:
    # Only now is torch loaded, which reads its variables once.
    from experiments.common.index import renew_index
    from experiments.common.machine import machine, versions
    from experiments.common.runfolder import RunFolder, fresh
    from experiments.speed import table
    from experiments.speed.measure import measure_all
    from experiments.speed.report import write_report
    from experiments.speed.results import Results
    from experiments.speed.timing import pin

    folder = RunFolder(fresh(options.runs, options.name, f"speed-{options.suite}"))
    pin(options.threads)
    settings = ("suite", "algorithm", "sweep", "compile", "isa_of_torch", "no_page_faults")
    settings += ("threads", "repeats", "seconds", "seed", "quick", "device")  # type: ignore[assignment]
    settings += ("precision", "graphs")  # type: ignore[assignment]
    results = Results(
        title=options.title,
        command=command(arguments),
        started=f"{datetime.now():%Y-%m-%d %H:%M}",
        versions=versions(),
        machine=machine(options.threads) | gpu(options) | {"load_before": load()},
        settings={name: getattr(options, name) for name in settings},
        ceilings=most(options, 3 if options.quick else 15),
    )
    for row in measure_all(options):
        results.rows.append(row)
        names = list(row.measured.spreads)
        share = row.measured.foreign_share
        print(
            f"{row.case}, {row.layout}, {row.operator}: {table.times(results, row, names)} "
            f"({' / '.join(names)}, ms)"
            + (f", disturbed: others took {share:.0%}" if row.measured.disturbed else ""),
            flush=True,
        )
    results.machine["load_after"] = load()
    write_report(folder.path, results)
    table.write_folder(folder.path, results)
    if options.write:
        table.write_document(options.write, folder.path, results)
    folder.finish(results.plain(), "results.json")
    renew_index(folder.path.parent)
    print(f"\n{table.markdown(table.summaries(results))}\nReport: {folder.path / 'report.html'}")
    return 0


def most(options: Namespace, runs: int) -> list[Ceiling]:
    from experiments.speed import ceilings, implementations, measure

    setup = measure.make_setup(options, options.layouts[0])
    if options.device == "cpu":
        return ceilings.ceilings(options.threads, setup.dtype, runs)
    implementations.set_precision(setup)
    return ceilings.gpu_ceilings(setup.dtype, runs)


def gpu(options: Namespace) -> dict[str, str]:
    """The GPU and what torch drives it with; nothing where none is measured."""
    if options.device == "cpu":
        return {}
    import torch

    return {
        "gpu": f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, cuDNN "
        f"{torch.backends.cudnn.version()}"
    }


def command(arguments: list[str]) -> str:
    """The command as a user can type it again, with the variables that have a say."""
    variables = [
        f"{name}={os.environ[name]}" for name in command_line.TELLING if name in os.environ
    ]
    return " ".join([*variables, "python -m experiments.speed", shlex.join(arguments)]).strip()


def load() -> str:
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
