"""Census-Income (KDD): UCI's two files to three splits with six binary labels.

Input: census-income.data and census-income.test as UCI publishes them (text without a header, `?` for null, also
.gz), or train.parquet and test.parquet with the same 42 columns. Output: 38 input columns, the labels
income_over_50k, never_married, bachelor_or_more, some_college, worked and has_dividends (0/1), `row` (position in the
source file) and `split`. The columns that the first four are made of and the population weight are not passed on.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from training.data.found import FilesOfFolder, Found
from training.datasets.folder import Prepared
from training.datasets.reading import INTEGER, TEXT, read_table

LICENCE = "CC BY 4.0"
ATTRIBUTION = (
    "Census-Income (KDD), UCI Machine Learning Repository, 2000, donated by Terran Lane and Ronny Kohavi, "
    "from the 1994 and 1995 Current Population Surveys of the U.S. Census Bureau. DOI 10.24432/C5N30T"
)

# In the order of UCI's files.
# fmt: off
COLUMNS = [
    "age", "class_of_worker", "detailed_industry_recode", "detailed_occupation_recode", "education",
    "wage_per_hour", "enroll_in_edu_inst_last_wk", "marital_stat", "major_industry_code", "major_occupation_code",
    "race", "hispanic_origin", "sex", "member_of_labor_union", "reason_for_unemployment",
    "full_or_part_time_employment_stat", "capital_gains", "capital_losses", "dividends_from_stocks",
    "tax_filer_stat", "region_of_previous_residence", "state_of_previous_residence",
    "detailed_household_and_family_stat", "detailed_household_summary_in_household", "instance_weight",
    "migration_code_change_in_msa", "migration_code_change_in_reg", "migration_code_move_within_reg",
    "live_in_this_house_1_year_ago", "migration_prev_res_in_sunbelt", "num_persons_worked_for_employer",
    "family_members_under_18", "country_of_birth_father", "country_of_birth_mother", "country_of_birth_self",
    "citizenship", "own_business_or_self_employed", "fill_inc_questionnaire_for_veterans_admin",
    "veterans_benefits", "weeks_worked_in_year", "year", "income",
]
NUMBERS = [
    "age", "wage_per_hour", "capital_gains", "capital_losses", "dividends_from_stocks",
    "num_persons_worked_for_employer", "weeks_worked_in_year",
]
NOMINAL_INTEGERS = [
    "detailed_industry_recode", "detailed_occupation_recode", "own_business_or_self_employed", "veterans_benefits",
    "year",
]
# fmt: on
NOT_INPUTS = ("education", "marital_stat", "income", "instance_weight")
BACHELOR_OR_MORE = (
    "Bachelors degree(BA AB BS)",
    "Masters degree(MA MS MEng MEd MSW MBA)",
    "Prof school degree (MD DDS DVM LLB JD)",
    "Doctorate degree(PhD EdD)",
)
SOME_COLLEGE = (
    "Some college but no degree",
    "Associates degree-occup /vocational",
    "Associates degree-academic program",
    *BACHELOR_OR_MORE,
)
# UCI has no validation split: its test file of 99,762 rows is halved at random, by this permutation.
SPLIT_SEED = 20261122


def read(source: Path, progress: Callable[[str], None]) -> Prepared:
    """Read the files in `source` and split them. Raises ValueError naming file, column and row."""
    train_path, test_path = _find(source)
    tables = {}
    for path in (train_path, test_path):
        progress(f"reading {path.name}")
        tables[path] = _impressions(path)
    train, test = tables[train_path], tables[test_path]
    order = np.random.RandomState(SPLIT_SEED).permutation(test.num_rows)
    half = test.num_rows // 2
    splits = {
        "train": train,
        "validation": test.take(np.sort(order[:half])),
        "test": test.take(np.sort(order[half:])),
    }
    rows = Counter({name: table.num_rows for name, table in splits.items()})
    Found(FilesOfFolder([train_path, test_path]), rows.total(), rows).log_counts()
    for name, table in splits.items():
        splits[name] = table.append_column("split", pa.array([name] * table.num_rows))
    return Prepared(
        dataset="census",
        splits=splits,
        source_format="parquet" if train_path.suffix == ".parquet" else "text",
        sources=[train_path, test_path],
        licence=LICENCE,
        attribution=ATTRIBUTION,
    )


def _find(source: Path) -> tuple[Path, Path]:
    layouts = [
        ("train.parquet", "test.parquet"),
        ("census-income.data", "census-income.test"),
        ("census-income.data.gz", "census-income.test.gz"),
    ]
    for layout in layouts:
        if (source / layout[0]).exists():
            return source / layout[0], source / layout[1]
    raise ValueError(f"{source}: has none of {', '.join(layout[0] for layout in layouts)}")


def _impressions(path: Path) -> pa.Table:
    numbers = {*NUMBERS, *NOMINAL_INTEGERS}
    read_columns = [name for name in COLUMNS if name != "instance_weight"]
    if path.suffix == ".parquet":
        types = {name: INTEGER if name in numbers else TEXT for name in read_columns}
        nullable = [name for name in read_columns if name not in (*numbers, *NOT_INPUTS)]
        table = read_table(path, types, nullable)
    else:
        table = _read_uci_text(path, read_columns, numbers)
    labels = {
        "income_over_50k": _income_label(path, table["income"]),
        "never_married": pc.equal(table["marital_stat"], "Never married"),
        "bachelor_or_more": pc.is_in(table["education"], pa.array(BACHELOR_OR_MORE)),
        "some_college": pc.is_in(table["education"], pa.array(SOME_COLLEGE)),
        # Made of columns that are inputs too: a schema has the one or the other.
        "worked": pc.greater(table["weeks_worked_in_year"], 0),
        "has_dividends": pc.greater(table["dividends_from_stocks"], 0),
    }
    inputs = {name: table[name] for name in COLUMNS if name not in NOT_INPUTS}
    row = pa.array(np.arange(table.num_rows, dtype=np.int64))
    return pa.table({**inputs, **{name: label.cast(pa.int8()) for name, label in labels.items()}, "row": row})


def _read_uci_text(path: Path, columns: list[str], numbers: set[str]) -> pa.Table:
    text = read_table(path, dict.fromkeys(columns, TEXT), names=COLUMNS)
    cleaned = {}
    for name in columns:
        column = pc.utf8_trim(text[name], ' "\t\r')
        if name == "income":
            column = pc.replace_substring(pc.utf8_rtrim(column, "."), " ", "")  # "- 50000." and " 50000+."
        if name not in NOT_INPUTS:
            column = pc.if_else(pc.equal(column, "?"), pa.scalar(None, TEXT), column)
        cleaned[name] = _integers(path, name, column) if name in numbers else column
    return pa.table(cleaned)


def _integers(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    whole = pc.fill_null(pc.match_substring_regex(column, r"^[0-9]{1,9}$"), False)
    wrong = np.flatnonzero(~whole.to_numpy())
    if wrong.size:
        value = column[int(wrong[0])].as_py() or "?"
        raise ValueError(f"{path}: column {name!r}, row {wrong[0] + 1}: {value!r} is not a whole number")
    return column.cast(INTEGER)


def _income_label(path: Path, income: pa.ChunkedArray) -> pa.ChunkedArray:
    known = pc.fill_null(pc.is_in(income, pa.array(["-50000", "50000+"])), False)
    wrong = np.flatnonzero(~known.to_numpy())
    if wrong.size:
        value = income[int(wrong[0])].as_py()
        raise ValueError(f"{path}: column 'income', row {wrong[0] + 1}: {value!r} is not -50000 or 50000+")
    return pc.equal(income, "50000+")
