"""Tables: CSV and Parquet files, read into rows of numbers with the names of their columns.

Nothing is guessed in silence: what is read in a way that a person might not expect is told by the logger "pyro_vae", and a
column that holds no numbers is refused by its name.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from decimal import Decimal
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyro_vae.data.csv_files import (
    MISSING,
    TEXTS,
    Reading,
    different,
    ending_of,
    first_line,
    from_text,
    is_number,
    listed,
)

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("pyro_vae")
PARQUETS = (".parquet", ".pq")
"""The endings of the names of Parquet files."""


class Table(NamedTuple):
    """A table that was read.

    Attributes:
        x: the numbers ``(N, D)``, in float64; NaN where a cell is empty.
        names: the names of the D columns.
        named: whether the file names them.
        labels: what stands in the column of labels ``(N,)``, as numbers or texts.
    """

    x: np.ndarray
    names: tuple[str, ...]
    named: bool
    labels: np.ndarray | None


def is_table(path: Path) -> bool:
    """Whether a file is a table, by the ending of its name."""
    return ending_of(path) in (*TEXTS, *PARQUETS)


def read_table(path: Path, how: Reading) -> Table:
    """Reads a CSV or a Parquet file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such table, or a column is not made of numbers; the message names the column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    frame, named = _from_parquet(path, how) if ending_of(path) in PARQUETS else from_text(path, how)
    names = [str(name) for name in frame.columns]
    chosen = [*(how.columns or ()), *how.leave_out, *([how.labels] if how.labels else [])]
    if unknown := [name for name in chosen if name not in names]:
        raise ValueError(f"{path}: there is no column {unknown[0]!r}; its columns are {listed(names)}")
    if twice := [name for name, count in Counter(chosen).items() if count > 1]:
        raise ValueError(
            f"{path}: column {twice[0]!r} is named twice among --data.columns, --data.leave_out and --data.labels"
        )
    label = how.labels or ("labels" if "labels" in names and "labels" not in chosen else None)
    left = {*how.leave_out, label}
    index = [name for name in names if name not in chosen and name != label and _is_index(name)]
    if how.columns is None and index:
        logger.warning(
            "%s: what has no name is left out, as an index: %s. --data.columns takes it", path, listed(index)
        )
        left |= {*index}
    taken = list(how.columns) if how.columns is not None else [name for name in names if name not in left]
    if not taken or not len(frame):
        raise ValueError(f"{path}: expected rows of numbers, got {len(frame)} rows of {len(taken)} columns of data")
    columns = [_numbers(frame.iloc[:, names.index(name)], name, path, how) for name in taken]
    labels = None if label is None else _label_values(frame.iloc[:, names.index(label)], label, path)
    return Table(np.stack(columns, 1), tuple(taken), named, labels)


def _is_index(name: str) -> bool:
    """Whether a column is one that pandas and R write without a name, or name so when they read it again."""
    return name == "" or bool(re.fullmatch(r"Unnamed: [\d.]+|__index_level_\d+__", name))


def _from_parquet(path: Path, how: Reading) -> tuple[pd.DataFrame, bool]:
    """The columns of a Parquet file."""
    from pyarrow import ArrowException, parquet  # noqa: PLC0415  (half a second of import that only tables need)

    try:
        frame = parquet.read_table(path).to_pandas()
    except (ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({first_line(error)})") from error
    if named := [str(name) for name in frame.index.names if name is not None]:
        if {*named} & {*(how.columns or ()), *how.leave_out, how.labels}:
            frame = frame.reset_index()
        else:
            logger.warning("%s: its index %s is left out. --data.columns takes it", path, listed(named))
    frame.columns = different([str(name) for name in frame.columns], path)
    return frame, True


def _numbers(column: pd.Series[Any], name: str, path: Path, how: Reading) -> np.ndarray:
    """A column in float64, with NaN where a cell is empty; false and true are 0 and 1.

    Raises:
        ValueError: it holds something else than numbers.
    """
    import pandas as pd  # noqa: PLC0415

    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    numeric = pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)
    if numeric and not pd.api.types.is_complex_dtype(column):
        numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
        marked = [float(each) for each in how.missing if is_number(each, ".")]
        return np.where(np.isin(numbers, marked), nan, numbers) if marked else numbers
    cells = column[column.notna()]
    N = len(cells)
    what = f"values of type {column.dtype}"
    if pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column):
        found = [_number(cell, how) for cell in cells]
        if None not in found:
            return pd.Series(found, cells.index, np.float64).reindex(column.index).to_numpy()
        cells = cells[[number is None for number in found]]
        what = "texts" if isinstance(cells.iloc[0], str) else f"values of type {type(cells.iloc[0]).__name__}"
    example = str(cells.iloc[0]) if len(cells) else "none"
    advice = f'leave it out by --data.leave_out "[{name}]", or take it as labels by --data.labels "{name}"'
    if how.decimal == "." and re.fullmatch(r"[-+]?\d+,\d+", example.strip()):
        advice = "a decimal comma is read by --data.decimal ,"
        if all(re.fullmatch(r"[-+]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?", str(cell).strip()) for cell in cells):
            advice = (
                f"if its commas separate thousands, save it without them; only if they are decimal commas, {advice}"
            )
    elif re.fullmatch(r"[-+]?\d{1,3}([ ,.'’]\d{3})+([.,]\d+)?", example.strip()):
        advice = "save numbers without a separator of thousands"
    elif len(cells) < N:
        markers = json.dumps(sorted({str(cell).strip() for cell in cells})[:5], ensure_ascii=False)
        advice = f"if these stand for missing values, say so by --data.missing '{markers}'; otherwise {advice}"
    if len(cells) < N:
        raise ValueError(
            f"{path}: column {name!r} holds numbers and, in {len(cells)} of {N} cells, {what} such as "
            f"{_short(example)}: {advice}"
        )
    raise ValueError(f"{path}: column {name!r} holds {what} and no numbers, such as {_short(example)}: {advice}")


def _number(cell: Any, how: Reading) -> float | None:
    """A cell as a number, NaN where it is missing, and None where it is none."""
    if isinstance(cell, str):
        text = cell.strip()
        if text in how.markers:
            return nan
        if is_number(text, how.decimal):
            return float(text.replace(how.decimal, "."))
        return {"true": 1.0, "false": 0.0}.get(text.lower())
    return float(cell) if isinstance(cell, bool | int | float | Decimal | np.number) else None


def _label_values(column: pd.Series[Any], name: str, path: Path) -> np.ndarray:
    """The labels, as numbers where all are numbers, and as texts otherwise."""
    import pandas as pd  # noqa: PLC0415

    if empty := int(column.isna().sum()):
        raise ValueError(f"{path}: column {name!r} of the labels is empty in {empty} of {len(column)} rows")
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return column.to_numpy()
    texts = np.array([str(cell).strip() for cell in column], dtype=str)
    gone = np.isin(texts, MISSING)
    try:
        numbers = np.where(gone, "nan", texts).astype(np.float64)
    except ValueError:
        return texts  # among texts, NA may be the name of a class
    if gone.all():
        return texts
    if gone.any():
        raise ValueError(f"{path}: column {name!r} of the labels is empty in {int(gone.sum())} of {len(column)} rows")
    return numbers


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
