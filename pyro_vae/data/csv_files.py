"""CSV files: their text, what stands between cells, and whether the first row has names."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import logging
import lzma
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("pyro_vae")
TEXTS = (".csv", ".tsv", ".txt", ".data")
"""The endings of the names of text files, each also with an ending of `_OPENERS`."""
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_SEPARATORS = "\t;|,"
"""What may stand between cells, in the order in which it is tried: a comma may also be a decimal comma."""
MISSING = ["", "NA", "N/A", "n/a", "na", "#N/A", "NaN", "nan", "-nan", "NULL", "null", "None", "none", "?"]
"""Cells of a column of numbers that stand for a missing value."""
_SHOWN = 50
"""How many lines the separator is told by."""


@dataclass(frozen=True)
class Reading:
    """How a table is read.

    Attributes:
        columns: the names of the columns that are data; None takes all.
        leave_out: the names of columns that are not data.
        labels: the name of the column of labels; None takes the column "labels", if there is one.
        separator: what stands between the cells of a text file; None tells it by its first lines.
        decimal: the decimal point.
        header: whether the first line names the columns; None tells it by what stands there.
        missing: what stands for a missing value, beside `MISSING`.
    """

    columns: Sequence[str] | None = None
    leave_out: Sequence[str] = ()
    labels: str | None = None
    separator: str | None = None
    decimal: Literal[".", ","] = "."
    header: bool | None = None
    missing: Sequence[str] = ()

    @property
    def markers(self) -> list[str]:
        """All texts that stand for a missing value in a column of numbers."""
        return [*MISSING, *self.missing]


def ending_of(path: Path) -> str:
    """The ending of a file's name, without that of a compressed file."""
    return (path.with_suffix("") if path.suffix.lower() in _OPENERS else path).suffix.lower()


def from_text(path: Path, how: Reading) -> tuple[pd.DataFrame, bool]:
    """The columns of a text file, in which texts are left as they are."""
    import pandas as pd  # noqa: PLC0415

    text = _text(path)
    separator = _separator(text, path, how)
    first, width, named = _shape(text, separator, path, how)
    names = first if named else [f"x{j + 1}" for j in range(width)]
    if len(names) == width - 1:  # as R writes names of rows, which stand under no name
        names = ["", *names]
    label = names.index(how.labels) if how.labels in names else names.index("labels") if "labels" in names else None
    # In a column of labels NA may be the name of a class.
    missing: Any = {j: [""] if j == label else how.markers for j in range(width)}
    try:
        frame = pd.read_csv(
            io.StringIO(text),
            sep=separator,
            decimal=how.decimal,
            header=0 if named else None,
            names=range(width),
            index_col=False,
            na_values=missing,
            keep_default_na=False,
            dtype={} if label is None else {label: str},
            skipinitialspace=True,
            float_precision="round_trip",
            low_memory=False,
        )
    except (ValueError, OverflowError, pd.errors.ParserError) as error:
        raise ValueError(f"{path}: not a readable table ({first_line(error)})") from error
    if named and names[-1] == "" and width > 1 and bool(frame.iloc[:, -1].isna().all()):
        frame, names = frame.iloc[:, :-1], names[:-1]  # every line ends in a separator
    elif names[0] == "" and len(first) == width - 1 and bool(frame.iloc[:, -1].isna().all()):
        frame, names = frame.iloc[:, :-1], names[1:]  # every line but the first does
    frame.columns = pd.Index(different(names, path))
    return frame, named


def _text(path: Path) -> str:
    """The text of a file, which may be compressed.

    Raises:
        ValueError: it is damaged, empty, or no text.
    """
    opened = _OPENERS.get(path.suffix.lower(), open)
    try:
        with opened(path, "rb") as file:
            content: bytes = file.read()
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if opened is open:
            raise
        raise ValueError(f"{path}: damaged, or not compressed as its name says ({error})") from error
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start
        raise ValueError(
            f"{path}: no text in UTF-8 (byte {content[at]:#04x} at position {at}): save it as CSV in UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(f"{path}: no text, since it has zero bytes: save it as CSV in UTF-8")
    text = _without_comments(text.replace("\r\n", "\n").replace("\r", "\n"), path)
    if not text.strip():
        raise ValueError(f"{path}: the file is empty")
    return text


def _without_comments(text: str, path: Path) -> str:
    """The text without the lines at its top that begin with #, but for names of columns, as numpy.savetxt writes them."""
    comments, rest = [], text
    while (rest := rest.lstrip("\n ")).startswith("#"):
        line, _, rest = rest.partition("\n")
        comments.append(line)
    if not comments:
        return text
    names, row = comments[-1], rest.partition("\n")[0]
    named = all(names.count(each) == row.count(each) for each in _SEPARATORS)
    if left := len(comments) - named:
        logger.warning("%s: %d lines at its top that begin with # are left out", path, left)
    return f"{names}\n{rest}" if named else rest


def _separator(text: str, path: Path, how: Reading) -> str:
    """What stands between the cells: the first of `_SEPARATORS` by which all of the first lines have as many cells."""
    if how.decimal not in (".", ","):
        raise ValueError(f"decimal: expected . or a comma, got {how.decimal!r}")
    if how.separator is not None:
        given = {"\\t": "\t", "tab": "\t"}.get(how.separator, how.separator)
        if len(given) != 1 or given in '"\r\n' or given == how.decimal:
            raise ValueError(
                f"separator: expected one character, other than a quotation mark and the decimal point {how.decimal!r}, got "
                f"{how.separator!r}"
            )
        return given
    tried = [each for each in _SEPARATORS if each != how.decimal]
    widths = {each: [len(row) for row in islice(_rows(text, each, path), _SHOWN)] for each in tried}
    for each, found in widths.items():
        if max(found) > 1 and len({*found[1:]}) < 2 and found[0] in (found[-1], found[-1] - 1):
            return each
    return next((each for each, found in widths.items() if max(found) > 1), ",")


def _rows(text: str, separator: str, path: Path) -> Any:
    """The rows of a text that are not empty, as lists of cells, with the number of the line as an attribute of the reader."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=False)
    try:
        for row in reader:
            if any(row) or len(row) > 1:
                yield row
    except csv.Error as error:
        raise ValueError(f"{path}: no CSV (line {reader.line_num}: {error})") from error


def _shape(text: str, separator: str, path: Path, how: Reading) -> tuple[list[str], int, bool]:
    """The cells of the first row, the number of columns, and whether the first row names them.

    Raises:
        ValueError: rows have different numbers of cells, or it cannot be told whether the first row has names.
    """
    rows = _rows(text, separator, path)
    first = [cell.strip() for cell in next(rows)]
    second = next(rows, None)
    width = len(first) if second is None else len(second)
    others = [second] if second is not None else []
    for number, row in enumerate(rows, start=3):
        if len(row) != width:
            raise ValueError(
                f"{path}: row {number} has {len(row)} cells, and those before it have {width} (separated by {separator!r}). A "
                f"text that contains the separator must be quoted; another separator is given by --data.separator"
            )
        if number <= _SHOWN:
            others.append(row)
    if len(first) not in (width, width - 1):
        raise ValueError(
            f"{path}: the first row has {len(first)} cells, and the second has {width} (separated by {separator!r}); another "
            f"separator is given by --data.separator"
        )
    named = how.header
    if named is None:
        named = len(first) == width - 1 or _names_columns(first, others, path, how)
    if not named and len(first) != width:
        raise ValueError(f"{path}: the first row has {len(first)} cells, and the second has {width}")
    if named:
        first[0] = re.sub(r"^#\s*", "", first[0])  # as numpy.savetxt writes a header
        if second is None:
            raise ValueError(f"{path}: there are names of columns, and no rows under them")
    if width == 1 and (empty := sum(not line.strip() for line in text.strip().splitlines())):
        logger.warning("%s: %d empty lines are left out, and are not taken as missing values", path, empty)
    return first, width, named


def _names_columns(first: list[str], others: list[list[str]], path: Path, how: Reading) -> bool:
    """Whether the first row has names: texts, or one text at least over a column of numbers."""
    numbers = [is_number(cell, how.decimal) for cell in first]
    if not any(numbers):
        return True
    if all(number or cell in how.markers for number, cell in zip(numbers, first, strict=True)):
        logger.warning(
            "%s: its first row has numbers and is taken as data, whose columns have no names. --data.header true takes it as "
            "names",
            path,
        )
        return False
    for j, number in enumerate(numbers):
        cells = [row[j] for row in others if row[j] not in how.markers]
        if not number and first[j] not in how.markers and cells and all(is_number(cell, how.decimal) for cell in cells):
            return True
    raise ValueError(
        f"{path}: its first row, {listed(first)}, may be names of columns or data: say which by --data.header true or "
        f"--data.header false"
    )


def is_number(cell: str, decimal: str) -> bool:
    """Whether a cell is a number."""
    try:
        float(cell.strip().replace(decimal, "."))
    except ValueError:
        return False
    return cell.strip() not in MISSING and "_" not in cell and (decimal == "." or "." not in cell)


def different(names: list[str], path: Path) -> list[str]:
    """The names, each with a number behind it where it stands there again, and those without one as pandas calls them."""
    found: list[str] = []
    for j, name in enumerate(names):
        own = name or f"Unnamed: {j}"
        while own in found:
            base, _, number = own.rpartition(".") if own != name else (name, "", "0")
            own = f"{base}.{int(number) + 1}"
        if own != name and name:
            logger.warning("%s: the name %r stands there again; this column is called %r", path, name, own)
        found.append(own)
    return found


def listed(names: Sequence[str]) -> str:
    """Names for a message, the first of many."""
    shown = ", ".join(repr(name) for name in names[:20])
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20} more"


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
