"""One of several processes of a run; started by ``runs`` through torch.distributed.run."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from scalemine.config import Config, InputError, RunError
from scalemine.executor import Stopped, StopSignals
from scalemine.store import read_json
from scalemine.training.runs import plan_splits, read_data, train_split


def main() -> None:
    """Do this process's part of the run that a spec file describes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    spec = read_json(Path(sys.argv[1]))
    config, folder = Config.model_validate(spec["config"]), Path(spec["folder"])
    with StopSignals() as signals:
        try:
            data = read_data(config)
            [split] = [one for one in plan_splits(config, data.train) if one.fold == spec["fold"]]
            train_split(config, data, split, folder, signals=signals)
        except Stopped:
            (folder / "stopped").touch()
        except (InputError, RunError) as error:
            (folder / "failure.txt").write_text(str(error), encoding="utf-8")
            raise


if __name__ == "__main__":
    main()
