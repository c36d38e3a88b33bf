"""Carries out the experiments behind the project's figures, and writes `results/NAME.json`.

    python scripts/reproduce.py --list
    python scripts/reproduce.py mutual                      # what the committed tables show
    python scripts/reproduce.py mutual --scale tiny --out /some/folder
    python scripts/reproduce.py --all --data-dir ~/tensorflow_datasets
    python scripts/reproduce.py mutual --page-only          # table and figure from the JSON

A second call goes on where the first stopped, network by network; other settings in the same
folder are an error. Where an experiment fails the others go on, and the exit status is 1. `tiny`
is for tests, `small` for two cores, `full` has the papers' recipes and wants a GPU. Beside
`results/NAME.json` stand the page, `results/NAME.md`, and the figure, `docs/figures/NAME.png`.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from keras_distill.experiments import reproducing  # noqa: E402
from keras_distill.experiments.definitions import SCALES  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent


def arguments(given=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="experiments, see --list")
    parser.add_argument("--all", action="store_true", help="all experiments")
    parser.add_argument("--list", action="store_true", help="list the experiments")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--out", help="folder of JSON, page and figure (default: results/)")
    parser.add_argument("--work", help="folder of the runs (default: runs/reproduce/)")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: the scale's)")
    parser.add_argument("--data-dir", help="folder of tensorflow-datasets (TFDS_DATA_DIR)")
    parser.add_argument("--restart", action="store_true", help="train all anew")
    parser.add_argument("--page-only", action="store_true", help="write page and figure anew")
    options = parser.parse_args(given)
    if not (options.names or options.all or options.list):
        parser.error("name an experiment, or --all, or --list")
    return options


def main(given=None):
    options = arguments(given)
    if options.list:
        print("\n".join(reproducing.listed()))
        return 0
    # The figures of the pages lie with the documentation, those of other folders beside the JSON.
    figures = None if options.out else ROOT / "docs" / "figures"
    out = pathlib.Path(options.out) if options.out else ROOT / "results"
    names = list(reproducing.experiments()) if options.all else options.names
    try:
        chosen = [reproducing.named(name) for name in names]
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    failed = []
    for experiment in chosen:
        try:
            if options.page_only:
                reproducing.write_page(out / f"{experiment.name}.json", figures, experiment)
                continue
            reproducing.reproduce(
                experiment,
                options.scale,
                out,
                figures,
                options.work or ROOT / "runs" / "reproduce",
                options.seeds,
                options.data_dir,
                options.restart,
                lambda line: print(line, flush=True),
            )
        except (ValueError, OSError, ImportError, RuntimeError) as error:  # a loss of NaN is one
            print(f"Error: {experiment.name}: {error}", file=sys.stderr)
            failed.append(experiment.name)
    if failed and len(chosen) > 1:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
