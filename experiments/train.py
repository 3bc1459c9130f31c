"""Train, validate, test and predict from a YAML file: ``python -m experiments.train --help``."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from experiments.errors import UsageError
from experiments.module import Pictures, Study
from experiments.training import quieten
from experiments.training_report import write_report


class Command(LightningCLI):
    """The command line: a study and its pictures."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let the data say how large the network's input and output are."""
        for field in ("classes", "image_size"):
            parser.link_arguments(f"data.{field}", f"model.{field}", apply_on="instantiate")

    def after_fit(self) -> None:
        """Write report.html into the study's folder."""
        logs = self.trainer.log_dir
        if self.trainer.is_global_zero and logs:
            write_report(Path(self.trainer.default_root_dir), Path(logs))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    quieten()
    # Said of loaders without a state; TrainBatches asks the trainer where to go on.
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    try:
        Command(
            Study,
            Pictures,
            args=arguments,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
        )
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
