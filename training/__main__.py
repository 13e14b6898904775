"""Command line of the offline jobs: `python -m training COMMAND --help`.

What the user can fix ends in one line, `error: ...`, and exit status 2. An interrupted job ends in status 130, one that
SIGTERM ends in 143.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from training.daily.commands import add_commands as add_daily
from training.experiment.commands import add_command as add_experiment
from training.observed.commands import add_command as add_observed
from training.publish import recalibrate_command
from training.rolling.commands import add_command as add_rolling
from training.score.commands import add_command as add_score
from training.stopping import Terminated, take_signals

if TYPE_CHECKING:
    from model.artifact.signature import SigningKey


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    # Our own lines from INFO, the libraries' from WARNING.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for package in ("model", "training"):
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        return int(options.run(options) or 0)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Terminated as error:
        with suppress(OSError):  # the terminal may be what is gone
            print("ended by a signal; what was saved is kept", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted; what was saved is kept", file=sys.stderr)
        return 130


def _output(text: str) -> Path:
    from training.files import output_path

    try:
        return output_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description="Offline jobs of feedrank.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], help_text: str) -> Callable[..., argparse.Action]:
        """Add a command. Returns what adds its arguments."""
        added = commands.add_parser(name, help=help_text)
        added.set_defaults(run=run)
        return added.add_argument

    add = command("simulate", _simulate, "write the logs of a simulated feed")
    add("--rows", type=int, required=True, help="impressions to simulate")
    add("--seed", type=int, default=0)
    add("--users", type=int, default=5_000)
    add("--items", type=int, default=2_000)
    add("--history", type=int, default=20, help="clicks in a user's history, the latest ones (20)")
    add("--out", type=_output, required=True, help="folder for the Parquet files")

    add = command("prepare", _prepare, "make training data of a public data set")
    add("dataset", choices=["kuairand", "census"])
    add("--source", type=Path, required=True, help="folder with the data set's files")
    add("--out", type=_output, required=True, help="folder for the Parquet files")
    for name, help_text in (
        ("--train-to", "kuairand: last day of the training split (20220505)"),
        ("--validation-to", "kuairand: last day of the validation split (20220506)"),
        ("--test-to", "kuairand: last day of the test split (20220507)"),
        ("--day", "kuairand: write this day alone, with statistics of the days before it"),
    ):
        add(name, type=int, metavar="YYYYMMDD", help=help_text)

    add = command("vocabulary", _vocabulary, "fit vocabularies and transforms beforehand, and report on ids")
    _add_config(add)
    add("--out", type=_output, metavar="FILE", help="default: <output>-fitted/fitted_features.json")
    add("--processes", type=int, default=1, help="pieces of the log read at once (default 1)")

    add = command("train", _train, "train, or resume, the run of a training file")
    _add_config(add)
    add("--init-from", metavar="PARENT", help="start from the weights of models/NAME/VERSION, or of a finished run")
    add("--rate-factor", metavar="F", help="with a parent: multiply every learning rate by F (default 0.25)")

    add = command("report", _report, "what a training file's data holds: labels, missing, unknown, drift")
    _add_config(add)

    add = command("evaluate", _evaluate, "measure a finished run on a split")
    add("folder", type=Path, metavar="RUN")
    add("--split", choices=["train", "validation", "test"], default="test")
    add("--replicates", type=int, default=500, help="bootstrap samples of users (default 500)")
    add("--where", metavar="COLUMN=VALUE", help="measure one segment, for example tab=1")

    add = command("inspect", _inspect, "expert weights and gradient conflicts of a finished run")
    add("folder", type=Path, metavar="RUN")
    add("--split", choices=["train", "validation", "test"], default="validation")

    add = command("export", _export, "publish a finished run as the next model version")
    add("folder", type=Path, metavar="RUN")
    add("--models", type=_output, required=True, help="the models folder that a service reads")
    add("--name", help="the model's name (default: the schema's)")
    add("--compile", action="store_true", help="also compile it for CPUs of this host's kind")
    _add_accept(add)
    add(
        "--calibrate",
        choices=["isotonic", "platt"],
        help="fit each binary task's probabilities to the rates of the validation split",
    )
    add(
        "--segment-by",
        action="append",
        default=[],
        metavar="COLUMN",
        help="report what that changes for every value of this column of the data; may be given again",
    )
    add("--accept-worse", action="store_true", help="publish it though it is worse than its parent")
    add("--catalogue", type=Path, metavar="ITEMS", help="also build its catalogue of these items")
    _add_sign_key(add)

    add = command("compile", _compile, "compile a published version for CPUs of this host's kind")
    add("version", type=Path, metavar="VERSION", help="its folder, models/NAME/VERSION")
    _add_accept(add)
    _add_sign_key(add)

    add = command("catalogue", _catalogue, "build, or refresh, the catalogue of a published version's items")
    add("version", type=Path, metavar="VERSION", help="its folder, models/NAME/VERSION")
    add("items", type=Path, nargs="?", metavar="ITEMS", help="Parquet file: id and every candidate feature")
    add("--append", action="store_true", help="keep the items that are there: add these, replace those of equal ids")
    add("--remove", type=Path, metavar="IDS", help="with --append: Parquet file whose column id names items to remove")
    _add_sign_key(add)

    add = command("recalibrate", recalibrate_command.run, "fit a published version's calibration again")
    recalibrate_command.add_arguments(add)
    _add_sign_key(add)

    add = command("sign", _sign, "sign a published version, compiled package or catalogue")
    add("folder", type=Path, metavar="FOLDER", help="the folder that holds its manifest.json")
    add("--key", type=Path, required=True, help="Ed25519 private key, PEM")

    add_daily(command)
    add_observed(command)
    add_experiment(command)
    add_rolling(command)

    add_score(command)

    add = command("join", _join, "join impressions and events into dated training rows")
    add("file", type=Path, metavar="FILE", help="join.yaml")
    add("--until", metavar="TIME", help="writers that are silent have nothing earlier to bring; RFC 3339")
    add("--now", metavar="TIME", help="the time that it is (default: the clock's)")
    add("--rejoin", metavar="FROM..TO", help="hours to join anew, such as 20261129T20..20261130T05")
    add("--threads", type=int, default=1, help="threads of the engine (default 1)")
    add("--memory", metavar="SIZE", help="memory of the engine; beyond it rows go to disk (default 512MB, Spark's 2GB)")
    add("--engine", choices=["duckdb", "spark"], default="duckdb", help="spark needs requirements/spark.txt and Java")
    add("--spark-master", metavar="URL", help="a Spark cluster that sees the same files (default: in this process)")
    add("--check", type=Path, metavar="VERSIONS", help="join nothing: score joined rows again by models/NAME")

    add = command("forget", _forget, "remove a user from logs and joined rows")
    add("file", type=Path, metavar="FILE", help="join.yaml")
    add("--user", required=True, metavar="KEY", help="the value of the feature that names users")
    add("--user-hash-key", type=Path, required=True, metavar="FILE", help="the key of the service's user hashes")

    add = command("compare", _compare, "compare networks over seeds and datasets, and report")
    add("experiment", type=Path, metavar="EXPERIMENT")
    add("--seeds", type=int, help="number of seeds (default: the file's)")
    add("--baseline", help="the network to compare with (default: the file's); needs no new training")
    add("--processes", type=int, help="cells trained at once (default: the file's)")
    add("--output", type=_output, help="folder for runs and report (default: the file's)")
    add("--search", action="store_true", help="tune learning rates where the file has no search block")
    add("--trials", type=int, help="trials of the search for every network (default: the file's)")
    add("--storage", metavar="URL", help="database of the trials (default: a file in the output)")
    add("--report", action="store_true", help="train nothing, report the cells that are finished")

    add = command("images", _images, "compare routing networks on image data sets made many tasks")
    add("experiment", type=Path, metavar="EXPERIMENT")
    add("--seeds", type=int, help="number of seeds (default: the file's)")
    add("--device", choices=["cpu", "cuda"], help="where cells are trained (default: the file's)")
    add("--output", type=_output, help="folder for cells and report (default: the file's)")
    add("--report", action="store_true", help="train nothing, report the cells that are finished")
    return parser


def _add_config(add: Callable[..., argparse.Action]) -> None:
    add("config", type=Path, metavar="CONFIG")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change one key of CONFIG")


def _add_accept(add: Callable[..., argparse.Action]) -> None:
    add(
        "--accept",
        choices=["tolerance", "quality"],
        default="tolerance",
        help="compiled answers: within .001 on golden requests (default), or also by quality on kept rows",
    )


def _add_sign_key(add: Callable[..., argparse.Action]) -> None:
    add("--sign-key", type=Path, metavar="FILE", help="sign it by this Ed25519 private key, PEM")


# Commands import what they need when they run: `--help` and light commands do not wait for torch and torchrec.


def _simulate(options: argparse.Namespace) -> None:
    from training.datasets.simulate import simulate

    size = {"users": options.users, "items": options.items, "history": options.history}
    simulate(options.rows, options.seed, options.out, **size)


def _prepare(options: argparse.Namespace) -> None:
    from training.datasets.prepare import Days, prepare

    given = {
        "train_to": options.train_to,
        "validation_to": options.validation_to,
        "test_to": options.test_to,
        "only": options.day,
    }
    days = {name: day for name, day in given.items() if day is not None}
    if options.day is not None and len(days) > 1:
        raise ValueError(f"--day {options.day} is written alone, in no split: leave the bounds of the splits out")
    prepare(options.dataset, options.source, options.out, Days(**days) if days else None)


def _vocabulary(options: argparse.Namespace) -> None:
    from training.config import TrainingConfig
    from training.fit.vocabulary import build_vocabulary

    config = TrainingConfig.load(options.config, options.set)
    print(build_vocabulary(config, options.out, processes=options.processes))


def _train(options: argparse.Namespace) -> None:
    from training.config import TrainingConfig
    from training.train import train

    given = {"path": options.init_from, "rate_factor": options.rate_factor}
    changes = [f"init_from.{key}={value}" for key, value in given.items() if value is not None]
    if options.init_from is None and options.rate_factor is not None:
        without = TrainingConfig.load(options.config, options.set)
        if without.init_from is None:
            raise ValueError(f"--rate-factor {options.rate_factor}: there is no parent; give --init-from too")
    train(TrainingConfig.load(options.config, [*options.set, *changes]))


def _report(options: argparse.Namespace) -> None:
    from training.config import TrainingConfig
    from training.fit.report import report_of_file

    print(report_of_file(TrainingConfig.load(options.config, options.set)))


def _evaluate(options: argparse.Namespace) -> None:
    from training.evaluate.evaluate import evaluate, print_table
    from training.run.run import Run

    run = Run.open(options.folder)
    print_table(evaluate(run, options.split, replicates=options.replicates, where=options.where))


def _inspect(options: argparse.Namespace) -> None:
    from training.inspect.inspect import inspect, print_tables
    from training.run.run import Run

    print_tables(inspect(Run.open(options.folder), options.split))


def _export(options: argparse.Namespace) -> None:
    from training.publish.export import export
    from training.run.run import Run

    if options.segment_by and options.calibrate is None:
        raise ValueError("--segment-by reports what a calibration changes: give --calibrate too")
    version = export(
        Run.open(options.folder),
        options.models,
        options.name,
        calibration=options.calibrate,
        segment_by=options.segment_by,
        items=options.catalogue,
        sign_key=_signing_key(options),
        accept_worse=options.accept_worse,
    )
    print(version)
    if options.compile:
        options.version = version
        _compile(options)


def _compile(options: argparse.Namespace) -> None:
    from training.publish.compile import compile_version

    print(compile_version(options.version, _signing_key(options), accept=options.accept))


def _catalogue(options: argparse.Namespace) -> None:
    from training.publish.catalogue import build_catalogue
    from training.publish.catalogue_append import append_to_catalogue

    key = _signing_key(options)
    if options.append:
        if options.items is None and options.remove is None:
            raise ValueError("--append: there is nothing to append; name ITEMS, --remove IDS, or both")
        print(append_to_catalogue(options.version, options.items, options.remove, key))
        return
    if options.remove is not None:
        raise ValueError("--remove: takes items out of a catalogue that is there; give --append too")
    if options.items is None:
        raise ValueError("ITEMS: the file of all items is missing; with --append alone it may be left out")
    print(build_catalogue(options.version, options.items, key))


def _sign(options: argparse.Namespace) -> None:
    from model.artifact.signature import SigningKey
    from training.publish.sign import sign

    print(sign(options.folder, SigningKey(options.key)))


def _signing_key(options: argparse.Namespace) -> "SigningKey | None":
    from model.artifact.signature import SigningKey

    return None if options.sign_key is None else SigningKey(options.sign_key)


def _join(options: argparse.Namespace) -> None:
    from training.join.command import run_join

    run_join(options)


def _forget(options: argparse.Namespace) -> None:
    from training.join.command import run_forget

    run_forget(options)


def _compare(options: argparse.Namespace) -> None:
    from training.compare.runner import compare, load

    given = {key: getattr(options, key) for key in ("seeds", "baseline", "processes", "output")}
    changes = {key: value for key, value in given.items() if value is not None}
    experiment = load(options.experiment, changes, tune=options.search, trials=options.trials)
    if options.storage is not None and experiment.search is None:
        raise ValueError(f"--storage: {options.experiment} has no search; add --search, or a search block to the file")
    print(compare(experiment, report_only=options.report, storage=options.storage))


def _images(options: argparse.Namespace) -> None:
    from training.images.experiment import load, run

    given = {key: getattr(options, key) for key in ("seeds", "device", "output")}
    experiment = load(options.experiment, {key: value for key, value in given.items() if value is not None})
    print(run(experiment, report_only=options.report))


if __name__ == "__main__":
    take_signals()
    sys.exit(main())
