"""`make demo-loop`: a town of simulated users, ten days, and a loop that follows them.

    python -m deploy.loop --out DIR [--seed 1] [--fast]

The labels of day 2 are poisoned, on day 3 somebody publishes a bad model by hand, and on day 4 tastes shift. It prints
what each night decided, then realised value a request by day, and writes result.json and result.png.
"""

import argparse
import signal
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deploy.child_processes import ChildError
from deploy.loop.asking import RefusedError
from deploy.loop.proof import PICTURE, Plan, prove
from deploy.loop.town import Town

console = Console(highlight=False)


def full(seed: int) -> Plan:
    """The plan of the demo, about ten minutes on two cores."""
    town = Town(seed, users=1_000, items=500, requests_per_day=3_000, candidates=40, shift_day=4)
    return Plan(town, days=10, poisoned_day=2, bad_model_day=3, log_rows=60_000)


def fast(seed: int) -> Plan:
    """A smaller town with the same story, for many runs."""
    town = Town(seed, users=600, items=300, requests_per_day=1_000, candidates=30, shift_day=4)
    return Plan(town, days=10, poisoned_day=2, bad_model_day=3, log_rows=20_000)


def main() -> int:
    """Run the town. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.loop", description="Prove that the loop follows its users.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that is not there yet")
    parser.add_argument("--seed", type=int, default=1, help="seed of the town (default 1)")
    parser.add_argument("--fast", action="store_true", help="a smaller town, in a fraction of the time")
    options = parser.parse_args()
    # Each of them ends every process of the town. A shell's background job ignores SIGINT unless it is set not to.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if options.out.exists():
        console.print(f"error: {options.out} is there already; name another folder", style="red", markup=False)
        return 2
    plan = fast(options.seed) if options.fast else full(options.seed)
    try:
        result = prove(plan, options.out.resolve(), lambda line: console.print(line, markup=False))
    except (ChildError, RefusedError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("\ninterrupted; every process has ended")
        return 130
    table = Table("day", *result["curves"], title="realised value a request, 95 % interval over users")
    for day in range(plan.days):
        found = [arm[day] for arm in result["curves"].values()]
        table.add_row(str(day), *(f"{one['mean']:.2f} ({one['low']:.2f} to {one['high']:.2f})" for one in found))
    console.print(table)
    for one in result["regained"]:
        if one["mean"] is not None:
            console.print(f"day {one['day']}: regained {one['mean']:.2f} ({one['low']:.2f} to {one['high']:.2f})")
    for name, one in result["experiments"].items():
        called = ", ".join(f"{metric} {call}" for metric, call in one["called"].items()) or "nothing"
        console.print(
            f"experiment {name}: {one['users']} users, truly {one['true']:+.1%}, called: {called}", markup=False
        )
    price, explored = result["exploration"]["price"], result["exploration"]["explored"]
    console.print(
        f"{explored} requests explored: value {price['mean']:+.2%} ({price['low']:+.2%} to {price['high']:+.2%})"
    )
    for what, is_so in result["called"].items():
        console.print(f"{what}: {'yes' if is_so else 'no'}")
    console.print(f"{options.out / PICTURE}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
