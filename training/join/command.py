"""`python -m training join` and `forget`: their options, read."""

import argparse
import re

from model.user import read_user_hash_key
from training.join.forget import forget
from training.join.join import Settings, join
from training.join.plan import Plan, hours_given, time_given

# As Spark reads them.
_MASTER = re.compile(r"(spark|k8s)://\S+|yarn|local\S*")


def run_join(options: argparse.Namespace) -> None:
    """Join, or check what was joined. Raises ValueError."""
    if options.threads < 1:
        raise ValueError(f"--threads: at least 1, got {options.threads}")
    if options.spark_master is not None and options.engine != "spark":
        raise ValueError("--spark-master: names a cluster for --engine spark; give both")
    if options.spark_master is not None and _MASTER.fullmatch(options.spark_master) is None:
        raise ValueError(
            f"--spark-master: expected a master such as spark://host:7077, k8s://https://host:443 or yarn, "
            f"got {options.spark_master!r}"
        )
    now, until = (
        None if text is None else time_given(text, option)
        for text, option in ((options.now, "--now"), (options.until, "--until"))
    )
    rejoin = None if options.rejoin is None else hours_given(options.rejoin, "--rejoin")
    plan = Plan.load(options.file)
    if options.check is not None:
        from training.join.check import check  # torch and a model, which a join needs not

        check(plan, options.check)
    else:
        settings = Settings(
            now,
            until,
            rejoin,
            options.threads,
            memory=options.memory,
            engine=options.engine,
            spark_master=options.spark_master,
        )
        join(plan, settings)


def run_forget(options: argparse.Namespace) -> None:
    """Forget a user. Raises ValueError."""
    forget(Plan.load(options.file), options.user, read_user_hash_key(options.user_hash_key))
