"""Tables in CSV and Parquet: what is read from them, what is told, and what is refused by the name of its column."""

import bz2
import gzip
import json
import lzma

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import constraints

from pyro_vae import figures
from pyro_vae.data import Arrays
from pyro_vae.data.csv_files import Reading
from pyro_vae.data.tables import read_table
from pyro_vae.figures import Look


def rng():
    return np.random.default_rng(0)


def read(path, text=None, **options):
    """A table as it is read, of a text, or of the text before."""
    path = path / options.pop("name", "t.csv") if path.is_dir() else path
    if text is not None:
        path.write_text(text, encoding="utf-8") if isinstance(text, str) else path.write_bytes(text)
    return read_table(path, Reading(**options))


ROWS = [[1.5, -2.0], [3.25, 4e3], [0.0, 1e-3]]
PLAIN = "a,b\n1.5,-2.0\n3.25,4e3\n0,0.001\n"
SAME = {
    "plain": PLAIN,
    "semicolon": PLAIN.replace(",", ";"),
    "tab": PLAIN.replace(",", "\t"),
    "bar": PLAIN.replace(",", "|"),
    "quoted": '"a","b"\n"1.5","-2.0"\n"3.25",4e3\n0,"0.001"\n',
    "spaces": "a, b\n1.5, -2.0 \n 3.25,4e3\n0,0.001\n",
    "byte order mark": PLAIN.encode("utf-8-sig"),
    "UTF-16": PLAIN.encode("utf-16"),
    "Windows": PLAIN.replace("\n", "\r\n"),
    "old Mac": PLAIN.replace("\n", "\r"),
    "empty lines": "\n\n" + PLAIN.replace("\n", "\n\n"),
    "no line end": PLAIN.strip(),
    "separator at the end": "a,b,\n1.5,-2.0,\n3.25,4e3,\n0,0.001,\n",
    "separator at the end of rows": "a,b\n1.5,-2.0,\n3.25,4e3,\n0,0.001,\n",
    "savetxt": "# a,b\n1.5,-2.0\n3.25,4e3\n0,0.001\n",
    "texts of one": 'a,b\n"1.5 ",-2.0\n3.25,4e3\n0,"  0.001"\n',
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_table_in_many_ways(tmp_path, name, caplog):
    table = read(tmp_path, SAME[name])
    np.testing.assert_array_equal(table.x, ROWS)
    assert table.names == ("a", "b")
    assert table.named
    assert table.labels is None
    assert not caplog.text


@pytest.mark.parametrize("opened", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed(tmp_path, opened):
    ending = {gzip.compress: "gz", bz2.compress: "bz2", lzma.compress: "xz"}[opened]
    np.testing.assert_array_equal(read(tmp_path, opened(PLAIN.encode()), name=f"t.csv.{ending}").x, ROWS)
    with pytest.raises(ValueError, match="damaged"):
        read(tmp_path, opened(PLAIN.encode())[:-9], name=f"t.csv.{ending}")
    with pytest.raises(ValueError, match="damaged, or not compressed as its name says"):
        read(tmp_path, PLAIN, name=f"t.csv.{ending}")


def test_a_decimal_comma_is_read_if_it_is_asked_for(tmp_path):
    text = "a;b\n1,5;-2,0\n3,25;4000\n0;0,001\n"
    np.testing.assert_array_equal(read(tmp_path, text, decimal=",").x, ROWS)
    with pytest.raises(
        ValueError,
        match=r"column 'a' holds numbers and, in 2 of 3 cells, texts such as '1,5': a decimal.*--data.decimal ,",
    ):
        read(tmp_path, text)
    with pytest.raises(ValueError, match="thousands"):
        read(tmp_path, 'a;b\n1;"1,234.5"\n2;3\n')
    for cells, thousands in (("1,234;12,345", True), ("1,234;1,5", False), ("0,123;0,456", False)):
        text = "a;b\n" + "\n".join(f"1;{cell}" for cell in cells.split(";")) + "\n"
        with pytest.raises(ValueError, match=r"--data\.decimal ,") as told:
            read(tmp_path, text)
        assert ("if its commas separate thousands, save it without them" in str(told.value)) is thousands


def test_labels_that_float64_does_not_hold_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("a,labels\n" + "".join(f"{k},{2**53 + 1}\n" for k in range(9)))
    with pytest.raises(ValueError, match=r"labels up to 2\^53 - 1"):
        Arrays(tmp_path / "t.csv", valid=2, test=2).load()


def test_separator(tmp_path):
    assert read(tmp_path, "a b\n1 2\n3 4\n", separator=" ").x.tolist() == [[1, 2], [3, 4]]
    assert read(tmp_path, "a\tb\n1\t2\n", separator="tab").x.tolist() == [[1, 2]]
    assert read(tmp_path, "a;b,c\n1;2\n3;4\n", separator=";").names == ("a", "b,c")
    for bad in ("", ";;", '"', "."):
        with pytest.raises(ValueError, match="separator: expected one character"):
            read(tmp_path, PLAIN, separator=bad)


def test_header(tmp_path, caplog):
    text = "1.5,-2.0\n3.25,4e3\n0,0.001\n"
    table = read(tmp_path, text)
    np.testing.assert_array_equal(table.x, ROWS)
    assert (table.names, table.named) == (("x1", "x2"), False)
    assert "first row has numbers and is taken as data" in caplog.text
    assert read(tmp_path, text, header=True).names == ("1.5", "-2.0")
    assert len(read(tmp_path, text, header=True).x) == 2
    assert len(read(tmp_path, text, header=False).x) == 3
    # Names of years beside a text over numbers; a row of data with a text; and what cannot be told.
    assert read(tmp_path, "mass,2001\n1,2\n3,4\n").names == ("mass", "2001")
    iris = "5.1,3.5,setosa\n4.9,3.0,setosa\n7.0,3.2,versicolor\n"
    with pytest.raises(
        ValueError, match=r"'5.1', '3.5', 'setosa', may be names .*--data.header true or --data.header false"
    ):
        read(tmp_path, iris)
    table = read(tmp_path, iris, header=False, labels="x3")
    assert table.labels.tolist() == ["setosa", "setosa", "versicolor"]
    assert table.x.shape == (3, 2)


def test_index_columns_are_left_out_and_it_is_said(tmp_path, caplog):
    frame = pd.DataFrame(ROWS, columns=["a", "b"])
    frame.to_csv(tmp_path / "t.csv")
    table = read(tmp_path / "t.csv")
    np.testing.assert_array_equal(table.x, ROWS)
    assert "what has no name is left out, as an index: 'Unnamed: 0'" in caplog.text
    caplog.clear()
    pd.read_csv(tmp_path / "t.csv").to_csv(tmp_path / "t.csv")
    assert read(tmp_path / "t.csv").names == ("a", "b")
    assert "'Unnamed: 0'" in caplog.text
    assert read(tmp_path, PLAIN.replace("a,b", ",b"), columns=["Unnamed: 0"]).x[:, 0].tolist() == [1.5, 3.25, 0]
    # As R writes names of rows.
    table = read(tmp_path, "a b\nfirst 1 2\nsecond 3 4\n", separator=" ")
    assert table.x.tolist() == [[1, 2], [3, 4]]
    frame.set_index("a").to_parquet(tmp_path / "t.parquet")
    caplog.clear()
    assert read(tmp_path / "t.parquet").names == ("b",)
    assert "its index 'a' is left out" in caplog.text
    assert read(tmp_path / "t.parquet", columns=["a", "b"]).x.tolist() == ROWS


def test_comments_at_the_top(tmp_path, caplog):
    np.testing.assert_array_equal(read(tmp_path, "# made by hand, in 2024\n#\n" + PLAIN).x, ROWS)
    assert "2 lines at its top that begin with # are left out" in caplog.text
    np.savetxt(tmp_path / "t.csv", ROWS, delimiter=",", header="in mm\na,b")
    assert read(tmp_path / "t.csv").names == ("a", "b")


def test_names_that_stand_twice(tmp_path, caplog):
    table = read(tmp_path, "a,a,b,a\n1,2,3,4\n")
    assert table.names == ("a", "a.1", "b", "a.2")
    assert table.x.tolist() == [[1, 2, 3, 4]]
    assert "the name 'a' stands there again; this column is called 'a.1'" in caplog.text
    assert read(tmp_path, "a.1,a,a\n1,2,3\n").names == ("a.1", "a", "a.2")


def test_columns_are_taken_and_left_out(tmp_path):
    text = "date,a,b,c\n2024-01-01,1,2,3\n2024-01-02,4,5,6\n"
    with pytest.raises(
        ValueError, match=r"column 'date' holds texts and no numbers, such as '2024-01-01'.*leave_out \"\[date\]\""
    ):
        read(tmp_path, text)
    assert read(tmp_path, text, leave_out=["date"]).names == ("a", "b", "c")
    assert read(tmp_path, text, columns=["c", "a"]).x.tolist() == [[3, 1], [6, 4]]
    assert read(tmp_path, text, columns=["c"], labels="b").labels.tolist() == [2, 5]
    for options, message in (
        ({"columns": ["d"]}, "there is no column 'd'; its columns are 'date', 'a', 'b', 'c'"),
        ({"labels": "species"}, "there is no column 'species'"),
        ({"leave_out": ["x"]}, "there is no column 'x'"),
        ({"columns": ["a", "a"]}, "column 'a' is named twice"),
        ({"columns": ["a"], "labels": "a"}, "column 'a' is named twice"),
        ({"leave_out": ["date", "a", "b", "c"]}, "2 rows of 0 columns"),
        ({"columns": []}, "0 columns"),
    ):
        with pytest.raises(ValueError, match=message):
            read(tmp_path, text, **options)


def test_labels(tmp_path):
    text = "a,species\n1,b\n2,a\n3,NA\n4,b\n"
    assert read(tmp_path, text, labels="species").labels.tolist() == ["b", "a", "NA", "b"]
    assert read(tmp_path, "a,y\n1,7\n2,-3\n", labels="y").labels.tolist() == [7, -3]
    assert read(tmp_path, "a,y\n1,True\n2,False\n", labels="y").labels.tolist() == ["True", "False"]
    assert read(tmp_path, "a,labels\n1,u\n2,v\n").labels.tolist() == ["u", "v"]
    assert read(tmp_path, "a,labels\n1,5\n2,6\n", columns=["labels"]).labels is None
    assert not np.isfinite(read(tmp_path, "a,y\n1,inf\n2,2\n", labels="y").labels).all()  # which Arrays refuses
    with pytest.raises(ValueError, match="column 'y' of the labels is empty in 1 of 2 rows"):
        read(tmp_path, "a,y\n1,NA\n2,2\n", labels="y")
    with pytest.raises(ValueError, match="column 'species' of the labels is empty in 1 of 4 rows"):
        read(tmp_path, text.replace("NA", ""), labels="species")
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "y": pd.Categorical(["u", "v", "u"]), "k": [3, 1, 2]})
    frame.to_parquet(tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", labels="y").labels.tolist() == ["u", "v", "u"]
    assert read(tmp_path / "t.parquet", labels="k", leave_out=["y"]).labels.tolist() == [3, 1, 2]


def test_columns_of_other_types(tmp_path):
    frame = pd.DataFrame({
        "real": [0.5, 1.5], "whole": [3, 4], "truth": [True, False], "small": np.array([1, 2], np.int8),
        "nullable": pd.array([1, None], "Int64"),
        "maybe": pd.array([True, None], "boolean"), "half": np.array([1, 2], np.float16),
    })  # fmt: skip
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    expected = [[0.5, 3, 1, 1, 1, 1, 1], [1.5, 4, 0, 2, np.nan, np.nan, 2]]
    for name in ("t.parquet", "t.csv"):
        np.testing.assert_array_equal(read(tmp_path / name).x, expected)
    for column in (
        pd.to_datetime(["2024-01-01", "2024-01-02"]),
        pd.to_timedelta([1, 2], "s"),
        pd.Categorical(["u", "v"]),
        [[1.0], [2.0]],
        ["x", "y"],
        [pd.Timestamp("2024-01-01").date()] * 2,
        [b"a", b"b"],
    ):
        pd.DataFrame({"a": [1.0, 2.0], "odd one": column}).to_parquet(tmp_path / "t.parquet")
        with pytest.raises(ValueError, match=r"column 'odd one' holds .* and no numbers.*leave_out"):
            read(tmp_path / "t.parquet")


def test_empty_cells_are_missing(tmp_path):
    table = read(tmp_path, "a,b,c\n1,,3\nNA,nan,?\n4,5,\n")
    np.testing.assert_array_equal(table.x, [[1, np.nan, 3], [np.nan] * 3, [4, 5, np.nan]])
    assert read(tmp_path, "a,b\n,\n1,2\n").x.shape == (2, 2)


def test_one_column_and_one_row(tmp_path, caplog):
    assert read(tmp_path, "a\n1\n2\n").x.tolist() == [[1], [2]]
    assert read(tmp_path, "a,b\n1,2\n").x.tolist() == [[1, 2]]
    assert not caplog.text
    assert read(tmp_path, "a\n1\n\n2\n").x.tolist() == [[1], [2]]
    assert "1 empty lines are left out, and are not taken as missing values" in caplog.text


BAD = {
    "empty": (b"", "the file is empty"),
    "blank": (b"\n \n", "the file is empty"),
    "only a mark": (b"\xef\xbb\xbf", "the file is empty"),
    "only names": (b"a,b\n", "names of columns, and no rows"),
    "no text": (b"\x89PNG\r\n\x1a\n\xff\xfe", "no text"),
    "zeros": (b"a,b\n1,\0\n", "zero bytes"),
    "Latin-1": ("größe,b\n1,2\n".encode("latin-1"), "no text in UTF-8.*save it as CSV in UTF-8"),
    "short row": (b"a,b\n1,2\n3\n", "row 3 has 1 cells, and those before it have 2"),
    "long row": (b"a,b\n1,2\n3,4,5\n", "row 3 has 3 cells"),
    "long rows": (b"a,b\n1,2,3,4\n", "first row has 2 cells, and the second has 4"),
    "letter": (b"Dear all,\nthis is, well, no table.\n", "cells|texts"),
    "page": (b"<html>\n<body>\n</body>\n</html>\n", "column '<html>' holds texts"),
    "JSON": (b'{"a": [1, 2]}\n', "table|names|columns|cells"),
    "open quotation": (b'a,b\n"1,2\n3,4\n', "table|row|cells|texts"),
    "pickle": (b"\x80\x04\x95\x0b\x00\x00", "no text"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_table_is_refused(tmp_path, name):
    content, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content)
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        read(tmp_path, content, name="t.parquet")


def test_other_files_are_told_what_can_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"t.csv: there is no such file"):
        Arrays(tmp_path / "t.csv").load()
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(
        ValueError, match=r"expected a table \(.csv, .*\.parquet.*\.npy or .npz file. Save other data as CSV"
    ):
        Arrays(tmp_path / "t.xlsx").load()
    np.save(tmp_path / "x.npy", np.ones((9, 2)))
    with pytest.raises(ValueError, match="are options of tables, and this file is none"):
        Arrays(tmp_path / "x.npy", columns=["a"]).load()
    Arrays(tmp_path / "x.npy", leave_out=[], valid=2, test=2).load()  # as the command line gives it
    np.savez(tmp_path / "x.npz", x=np.arange(18.0).reshape(9, 2), y=np.array(["u", "v", "w"] * 3))
    splits = Arrays(tmp_path / "x.npz", labels="y", valid=2, test=2).load()
    assert splits.view.classes == ("u", "v", "w")
    with pytest.raises(ValueError, match="there is no array 'z' of labels"):
        Arrays(tmp_path / "x.npz", labels="z").load()


def table_of(tmp_path, ending=".csv", N=60, **columns):
    frame = pd.DataFrame({"mass": rng().normal(size=N), "big wing": rng().normal(size=N)} | columns)
    path = tmp_path / f"t{ending}"
    frame.to_parquet(path, index=False) if ending == ".parquet" else frame.to_csv(path, index=False)
    return path, frame


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet"])
def test_names_go_through_to_the_view(tmp_path, ending):
    path, frame = table_of(tmp_path, ending, species=["a", "c", "b"] * 20)
    splits = Arrays(path, labels="species", valid=10, test=10).load()
    assert splits.view.columns == ("mass", "big wing")
    assert splits.view.classes == ("a", "b", "c")
    assert splits.classes == 3
    assert splits.x_shape == (2,)
    assert splits.standardize
    assert splits.support is constraints.real
    everything = torch.cat([part.x for part in splits[:3]])
    labels = torch.cat([part.labels for part in splits[:3]])
    order = everything[:, 0].argsort()
    there = frame.sort_values("mass")
    np.testing.assert_allclose(everything[order], there[["mass", "big wing"]], rtol=1e-6)
    assert [splits.view.classes[k] for k in labels[order]] == there["species"].tolist()


LOST = {
    "offset": 1e9 + rng().normal(size=60),
    "integers": rng().integers(2**24, 2**30, 60),
    "unsigned": np.array([2**64 - 1, 2**63 + 5] * 30, dtype=np.uint64),
    "huge": 1e300 * rng().normal(size=60),
}


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("name", LOST)
def test_numbers_that_float32_cannot_hold_are_refused_by_name(tmp_path, name, ending):
    path, _ = table_of(tmp_path, ending, **{"odd one": LOST[name]})
    with pytest.raises(ValueError, match=r"float32.*cannot hold 1 of the 3 .*column 'odd one' has values"):
        Arrays(path, valid=10, test=10).load()


def test_infinite_numbers_are_refused_by_name(tmp_path):
    path, _ = table_of(tmp_path, odd=[np.inf] * 60)
    with pytest.raises(ValueError, match=r"60 of 180 values are .*infinite, the first in column 'odd'"):
        Arrays(path, valid=10, test=10).load()


def test_names_of_any_kind_are_drawn_as_they_are(tmp_path):
    """Two dollar signs are mathematics to matplotlib, and a long name does not fit into a line."""
    names = ["$a_{$ and $", "x" * 29 + " " + "y" * 29, "größe_[mm]", ""]
    look = Look("table", columns=tuple(names))
    figure = figures.reconstructions(torch.randn(9, 4), torch.randn(9, 4), look)
    figure.savefig(tmp_path / "f.png")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [r"\$a_{\$ and \$", names[1].replace(" ", "\n"), names[2], ""]
    drawn = figures.latents(torch.randn(9, 2), torch.arange(9) % 2, name=lambda k: ("$u_{$", "$v$")[int(k)])
    drawn.savefig(tmp_path / "g.png")


def test_whole_numbers_are_counts(tmp_path):
    pd.DataFrame(rng().integers(0, 9, (60, 3)), columns=[*"abc"]).to_csv(tmp_path / "t.csv", index=False)
    splits = Arrays(tmp_path / "t.csv", valid=10, test=10).load()
    assert splits.support.upper_bound == 8


def test_the_whole_way_on_the_command_line(script, tmp_path):
    """Classes are shown by name, and panels by the names of columns; the options are kept with the run."""
    path, _ = table_of(tmp_path, N=300, species=["a", "c", "b"] * 100, date=["2024-01-01"] * 300)
    data = ["--data", "Arrays", "--data.path", str(path), "--data.labels", "species", "--data.leave_out", "[date]"]
    small = ["--data.valid", "50", "--data.test", "50", "--epochs", "1", "--test_particles", "5", "--latent", "2"]
    code, out, err = script("train", *data, *small, "--model", "Conditional", "--out", "run")
    assert (code, err) == (0, "")
    assert not any(f"Left out: {what}" in out for what in ("metric", "figure"))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["log_px"]["n"] == 50
    code, _, err = script("train", *data[:4], *small)
    assert code == 1
    assert "column 'species' holds texts" in " ".join(err.split())


MARKED = "a,b\n" + "\n".join(f"{i},{'-' if i % 10 == 0 else i / 2}" for i in range(300))


def test_a_marker_among_numbers_is_counted_and_told_how_to_be_declared(tmp_path):
    expected = (
        r"column 'b' holds numbers and, in 30 of 300 cells, texts such as '-': if these stand for missing values, say so by "
        r"--data.missing '\[\"-\"\]'; otherwise leave it out by --data.leave_out"
    )
    with pytest.raises(ValueError, match=expected):
        read(tmp_path, MARKED)
    table = read(tmp_path, missing=("-",))
    np.testing.assert_array_equal(np.isnan(table.x).sum(0), [0, 30])
    np.testing.assert_array_equal(table.x[1], [1, 0.5])


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_number_may_be_a_marker_too(tmp_path, name):
    frame = pd.DataFrame({"a": [1.5, -999.0, 2.5], "b": [-999, 3, 4]})
    frame.to_csv(tmp_path / name, index=False) if name.endswith("csv") else frame.to_parquet(tmp_path / name)
    x = read_table(tmp_path / name, Reading(missing=("-999",))).x
    np.testing.assert_array_equal(x, [[1.5, np.nan], [np.nan, 3], [2.5, 4]])
