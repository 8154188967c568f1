"""Malformed data through the command line: one line with the place and the fix, exit code 2, and no file left behind."""

import bz2
import datetime
import decimal
import errno
import gzip
import io
import json
import lzma
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from criteria_hpo import cli

SECRET = "this text is private"
HEADER = "post_id,post,criterion_id,criterion,label\n"
TWELVE = [
    {
        "post_id": f"p{p}",
        "post": f"Post {p}, {SECRET}.",
        "criterion_id": c,
        "criterion": f"Text of {c}",
        "label": (p + int(c[-1])) % 2,
    }
    for p in range(12)
    for c in ("A.1", "A.2")
]


def table(**columns: object) -> pd.DataFrame:
    """Twelve posts by two criteria without an error; `columns` replace columns."""
    return pd.DataFrame(TWELVE).assign(**columns)


def good(**columns: object) -> bytes:
    """`table` as CSV."""
    return table(**columns).to_csv(index=False).encode()


def with_row(*cells: str) -> bytes:
    """A good CSV and one more row, number 26."""
    return good() + (",".join(cells) + "\n").encode()


def zipped(**members: bytes) -> bytes:
    """A zip archive; `a_csv` becomes the member `a.csv`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return file.getvalue()


def json_lines(*lines: str) -> bytes:
    """A good line of JSON, then `lines`."""
    return "\n".join([json.dumps(TWELVE[0]), *lines]).encode()


def labels(positive: Callable[[int], bool]) -> list[int]:
    """A label for each row of `table`; `positive` says which posts have it on both pairs."""
    return [int(positive(row // 2)) for row in range(len(TWELVE))]


@dataclass(frozen=True)
class Case:
    """A file, further settings, and the fragments of the error line."""

    what: str
    file: str
    content: bytes | Callable[[Path], object] | None
    fragments: tuple[str, ...]
    settings: tuple[str, ...] = ()
    data: str = "pairs"
    others: dict[str, bytes] = field(default_factory=dict)


def endless(path: Path) -> None:
    """A sparse file with one line of 1 GB."""
    with path.open("wb") as file:
        file.write(HEADER.encode())
        file.truncate(10**9)


def parquet(**columns: pa.Array) -> bytes:
    """`table` as Parquet with these columns in place of its own, or beside them."""
    whole = pa.Table.from_pandas(table())
    for name, column in columns.items():
        place = whole.column_names.index(name) if name in whole.column_names else whole.num_columns
        whole = (whole.remove_column(place) if place < whole.num_columns else whole).add_column(place, name, column)
    pq.write_table(whole, sink := io.BytesIO())
    return sink.getvalue()


def with_open_quote(delimiter: str, ends: str = "\n") -> bytes:
    """A table in which the quote before the text of row 5 is closed by one at the end of row 9's."""
    rows = [HEADER.strip().split(","), *([str(cell) for cell in row.values()] for row in TWELVE)]
    for row in rows[1:]:
        row[1] = row[1].replace(",", "")
    rows[4][1], rows[8][1] = '"' + rows[4][1], rows[8][1] + '"'
    return ends.join([delimiter.join(row) for row in rows]).encode()


def rows_of(column: str, cell: object, *positions: int) -> dict[str, list[object]]:
    """`column` of `table` with `cell` at some positions; a column that it has not is blank elsewhere."""
    cells = table()[column].tolist() if column in table() else [""] * len(TWELVE)
    return {column: [cell if row in positions else good_cell for row, good_cell in enumerate(cells)]}


SWAPPED = good().replace(b"post_id,post,", b"post,post_id,", 1)
SENTENCES = b"post_id,sentence_id,sentence_text,DSM5_symptom,status,explanation\n"
TRUTH = b"post_id,post,DSM5_symptom,groundtruth\n"
CASES = [
    # the file
    Case("no file", "absent.csv", None, ("absent.csv: no such file", "check data.path")),
    Case("a directory", "folder.csv", Path.mkdir, ("folder.csv: is a directory", "must name one file")),
    Case("an empty file", "a.csv", b"", ("a.csv: the file is empty",)),
    Case("a dead link", "a.csv", lambda path: path.symlink_to("nowhere"), ("a.csv: no such file",)),
    Case("a device", "a.csv", lambda path: path.symlink_to("/dev/zero"), ("a.csv: is not a regular file",)),
    Case("the home of an unknown user", "~nosuchuser/a.csv", None, ("~nosuchuser/a.csv: no such file", "check data.path")),
    Case("an unknown extension", "a.xlsx", good(), ("a.xlsx: unknown extension .xlsx", ".csv, .tsv, .jsonl")),
    Case("no extension", "pairs", good(), ("pairs: no extension", ".csv, .tsv")),
    Case("a line of 1 GB", "a.csv", endless, ("a.csv, line 2: longer than 10 MB",)),
    # encodings
    Case(
        "Latin-1", "a.csv", with_row("p99", "café", "A.1", "Text of A.1", "1").decode().encode("latin-1"), ("line 26: not UTF-8",)
    ),
    Case("UTF-16", "a.csv", good().decode().encode("utf-16"), ("a.csv: its content is UTF-16", "CSV UTF-8")),
    Case("UTF-16 in JSON lines", "a.jsonl", '{"a": 1}'.encode("utf-16"), ("a.jsonl: its content is UTF-16", "save it as UTF-8")),
    Case("UTF-16 without its mark", "a.csv", good().decode().encode("utf-16-le"), ("a.csv, line 1: contains NUL bytes",)),
    Case("a NUL byte", "a.csv", with_row("p99", "a\0b", "A.1", "Text of A.1", "1"), ("a.csv, line 26: contains NUL bytes",)),
    Case("an Excel workbook named .csv", "a.csv", zipped(a_xml=b"x"), ("a.csv: its content is a zip archive or an Excel",)),
    Case(
        "half a character in JSON",
        "a.jsonl",
        json_lines('{"post": "\\ud83d"}'),
        ("a.jsonl, line 2: contains a NUL or half a character",),
    ),
    # compressed files and Parquet
    Case("a truncated gzip", "a.csv.gz", gzip.compress(good())[:-20], ("a.csv.gz: damaged, truncated",)),
    Case("a CSV named .gz", "a.csv.gz", good(), ("a.csv.gz: damaged, truncated or compressed in another way",)),
    Case("a truncated bzip2", "a.csv.bz2", bz2.compress(good())[:-20], ("a.csv.bz2: damaged",)),
    Case("a truncated xz", "a.csv.xz", lzma.compress(good())[:-20], ("a.csv.xz: damaged",)),
    Case(
        "a bzip2 named .csv",
        "a.csv",
        bz2.compress(good()),
        ("a.csv: its content is compressed by bzip2", "correct its extension"),
    ),
    Case("an xz named .csv", "a.csv", lzma.compress(good()), ("a.csv: its content is compressed by xz", "correct its extension")),
    Case("a CSV named .zst", "a.csv.zst", good(), ("a.csv.zst: damaged",)),
    Case(
        "a zip of two files", "a.zip", zipped(a_csv=good(), b_csv=good()), ("a.zip: the archive contains 2 files", "exactly one")
    ),
    Case("a zip of a picture", "a.zip", zipped(a_png=b"x"), ("a.zip: unknown extension .png",)),
    Case(
        "a truncated Parquet",
        "a.parquet",
        table().to_parquet()[:-30],
        ("a.parquet: not a readable Parquet file", "write it again, or correct its extension"),
    ),
    Case(
        "a NUL in Parquet",
        "a.parquet",
        parquet(post=pa.array([*table().post[:-1], "a\0b"])),
        ("a.parquet, row 24, column post: contains a NUL",),
    ),
    Case(
        "Latin-1 bytes in Parquet",
        "a.parquet",
        parquet(post=pa.array([b"caf\xe9"] * 24)),
        ("a.parquet, row 1, column post: contains bytes that are not UTF-8 text",),
    ),
    Case("a CSV named .parquet", "a.parquet", good(), ("a.parquet: not a readable Parquet file",)),
    # the shape of the table
    Case("semicolons", "a.csv", good().replace(b",", b";"), ("a.csv: the columns are not separated by commas; write sep=; as",)),
    Case("only a header", "a.csv", HEADER.encode(), ("a.csv: no pairs",)),
    Case("a blank first row", "a.csv", b"\n" + good(), ("a.csv: row 1 is blank",)),
    Case(
        "an unquoted comma",
        "a.csv",
        with_row("p99", "a, b", "A.1", "Text of A.1", "1"),
        ("row 26: 6 fields, but the header has 5",),
    ),
    Case("a short row", "a.csv", with_row("p99", "a"), ("a.csv, row 26: 2 fields, but the header has 5",)),
    Case("a quote never closed", "a.csv", with_row("p99", '"a', "A.1", "Text of A.1", "1"), ("row 26: not well-formed",)),
    *[
        Case(
            f"rows inside a cell of a {ending}, {len(ends)}",
            f"a.{ending}",
            with_open_quote(mark, ends),
            (f"a.{ending}, row 5: post contains whole rows",),
        )
        for ending, mark in (("csv", ","), ("tsv", "\t"))
        for ends in ("\n", "\r\n")
    ],
    Case("two files joined", "a.csv", good() + good(), ("a.csv, row 26: repeats the header", "delete this row")),
    Case("Macintosh line ends", "a.csv", good().replace(b"\n", b"\r"), ("a.csv, row 1: not well-formed (new-line character",)),
    Case("a broken line of JSON", "a.jsonl", json_lines('{"post_id": '), ("a.jsonl, line 2, character 13: not valid JSON",)),
    Case("a line that is not an object", "a.jsonl", json_lines("[1, 2]"), ("a.jsonl, line 2: valid JSON, but not an object",)),
    Case(
        "one name twice in an object",
        "a.jsonl",
        json_lines('{"label": 0, "label": 1}'),
        ("line 2: not valid JSON (a name occurs twice",),
    ),
    Case(
        "one name twice, once with a blank",
        "a.jsonl",
        json_lines('{"label": 0, " label": 1}'),
        ("line 2: not valid JSON (a name occurs twice",),
    ),
    # columns
    Case(
        "a misspelt column",
        "a.csv",
        good().replace(b"criterion_id", b"criterion_nr", 1),
        ("column criterion_id is missing (did you mean 'criterion_nr'?)", "set data.columns.criterion_id to the name"),
    ),
    Case(
        "a column twice",
        "a.csv",
        table()[[*table(), "label"]].to_csv(index=False).encode(),
        ("column label occurs 2 times; keep one",),
    ),
    Case(
        "a column in capitals",
        "a.csv",
        good().replace(b"post_id", b"POST_ID", 1),
        ("column post_id is missing (did you mean 'POST_ID'?)",),
    ),
    Case(
        "the posts as ids",
        "a.csv",
        good(),
        ("a.csv: data.columns.post_id=post is the column of the posts", "name another"),
        ("data.columns.post_id=post",),
    ),
    Case("a mapping to no column", "a.csv", good(), ("column txt is missing", "data.columns.post"), ("data.columns.post=txt",)),
    Case(
        "a mapping of no column",
        "a.csv",
        good(),
        ("data.columns.pots (did you mean 'data.columns.post'?)",),
        ("data.columns.pots=x",),
    ),
    Case(
        "no header",
        "a.csv",
        good().split(b"\n", 1)[1],
        ("a.csv: columns post, ", "row 1 of the file does not look like column names; add a header"),
    ),
    Case(
        "a header with a question mark",
        "a.csv",
        b"Post ID,User,Text ,Symptom,present?\n" + good().split(b"\n", 1)[1],
        (
            "a.csv: columns post_id (did you mean 'Post ID'?), post, criterion and label are missing",
            "the file has Post ID, User, Text, Symptom, present?",
        ),
    ),
    Case(
        "a missing column, with the columns of the file",
        "a.csv",
        good().replace(b"label", b"grade", 1),
        ("column label is missing", "the file has post_id, post, criterion_id, criterion, grade"),
    ),
    # cells
    Case(
        "a blank id of no width", "a.csv", with_row("\ufeff\u200b", "a", "A.1", "Text of A.1", "1"), ("row 26: post_id is blank",)
    ),
    Case("a blank post of no width", "a.csv", with_row("p99", "\u200b", "A.1", "Text of A.1", "1"), ("row 26: post is blank",)),
    *[
        Case(
            f"{cell} as {column}", "a.csv", good(**rows_of(column, cell, 3)), (f"row 5: {column} is {cell}, a spreadsheet error",)
        )
        for column, cell in [
            ("post", "#NAME?"),
            ("label", "#REF!"),
            ("post_id", "#N/A"),
            ("group_id", "#N/A"),
            ("evidence", "#NV"),
        ]
    ],
    *[
        Case(f"a rounded {column}", "a.csv", good(**rows_of(column, "1.0E+05", 3)), (f"row 5: {column} is 1.0E+05, rounded",))
        for column in ("post_id", "criterion_id", "group_id")
    ],
    Case("every post removed", "a.csv", good(post="[removed]"), ("a.csv: every post is [removed] or [deleted]",)),
    Case(
        "nan as the id of every post",
        "a.csv",
        good(post_id="nan"),
        ("row 4: post_id 'nan', a word for a missing value, has another post than in row 2",),
    ),
    Case("nan as a label", "a.csv", good(**rows_of("label", "nan", 3)), ("row 5: label is a word for a missing value",)),
    Case(
        "a blank author in one row of a post",
        "a.csv",
        good(group_id=["ann", "", *["cem"] * 22]),
        ("row 3: group_id of post_id 'p0' is blank here but not in row 2; enter the same value in both rows",),
    ),
    Case(
        "a placeholder in one row of a post",
        "a.csv",
        good(group_id=["[deleted]", "ann", *["cem"] * 22]),
        ("row 2: group_id of post_id 'p0' is a placeholder here but not in row 3; enter the same value in both rows",),
    ),
    Case(
        "offsets as evidence",
        "a.csv",
        good(evidence=["", '[[5, 9, "x"]]', *[""] * 22]),
        ("row 3: evidence 1 of 1 is not found in its post; it looks like offsets", "data.columns.evidence=null"),
    ),
    Case(
        "evidence in other capitals",
        "a.csv",
        good(evidence=["", SECRET.upper(), *[""] * 22]),
        ("row 3: evidence 1 of 1 is not found in its post; it differs only in capitals",),
    ),
    Case("a required column, switched off", "a.csv", good(), ("data.columns.label=null",), ("data.columns.label=null",)),
    Case("a blank id", "a.csv", with_row(" ", "a", "A.1", "Text of A.1", "1"), ("a.csv, row 26: post_id is blank", "(1 row)")),
    Case("a blank post", "a.csv", with_row("p99", " ", "A.1", "Text of A.1", "1"), ("a.csv, row 26: post is blank",)),
    Case("a blank criterion", "a.csv", with_row("p99", "a", "A.1", "", "1"), ("a.csv, row 26: criterion is blank",)),
    Case("a label 2", "a.csv", with_row("p99", "a", "A.1", "Text of A.1", "2"), ("row 26: label is another number; write 1",)),
    Case(
        "a label 2 in a column of another name",
        "a.csv",
        good().replace(b",label", b",y", 1) + b"p99,a,A.1,Text of A.1,2\n",
        ("row 26: y is another number; write 1",),
        ("data.columns.label=y",),
    ),
    Case("a text as label", "a.csv", with_row("p99", "a", "A.1", "Text of A.1", SECRET), ("row 26: label is text",)),
    Case(
        "an empty label",
        "a.parquet",
        table(label=[None, *[0.0] * 23]).to_parquet(),
        ("a.parquet, row 1: label is empty; fill it in, or set data.labels.blank=0",),
    ),
    Case(
        "an empty label of one annotator",
        "a.csv",
        good(annotator=["ann", "bea"] * 12, **rows_of("label", "", 3)),
        ("a.csv, row 5: label is empty; fill it in, or set data.labels.blank=0 (or 1, or null to leave its rows out)",),
    ),
    Case(
        "evidence not in the post",
        "a.csv",
        good(evidence=["", "Elsewhere.", *[""] * 22]),
        ("row 3: evidence 1 of 1 is not found",),
    ),
    Case(
        "evidence of 100,000 brackets",
        "a.csv",
        good(evidence=["", "[" * 100_000, *[""] * 22]),
        ("row 3: evidence 1 of 1 is not found",),
    ),
    Case(
        "evidence of 5,000 digits",
        "a.csv",
        good(evidence=["", f"[{'7' * 5000}]", *[""] * 22]),
        ("row 3: evidence 1 of 1 is not found",),
    ),
    # rows against each other
    Case(
        "a pair with two labels",
        "a.csv",
        good() + good().splitlines()[1][:-1] + b"0\n",
        ("row 26: post_id 'p0'", "another label"),
    ),
    Case(
        "a post with two texts", "a.csv", with_row("p0", "a", "A.3", "Text", "1"), ("row 26: post_id 'p0' has another post than",)
    ),
    Case(
        "ids and posts swapped",
        "a.csv",
        SWAPPED + f'p99,"Post 0, {SECRET}.",A.3,Text,1\n'.encode(),
        ("a.csv, row 26: its post_id has another post than in row 2",),
    ),
    Case(
        "a criterion with two texts",
        "a.csv",
        with_row("p99", "a", "A.1", "Text", "1"),
        ("criterion_id 'A.1' has another criterion",),
    ),
    Case(
        "a post of two authors",
        "a.csv",
        good(group_id=["ann", "bea", *["cem"] * 22]),
        ("row 3: post_id 'p0' has another group_id",),
    ),
    # too little to split
    Case(
        "negatives only", "a.csv", good(label=0), ("a.csv: all 24 pairs have label 0; training needs both", "data.columns.label")
    ),
    Case(
        "one group",
        "a.csv",
        good(group_id="ann"),
        ("a.csv: the corpus cannot be split into dev and test", "data.test_fraction", "1 group; add posts of other"),
    ),
    Case(
        "two groups in two folds",
        "a.csv",
        good(group_id=["ann", "bea"] * 12, post_id=[f"q{row}" for row in range(24)], label=[0, 0, 1, 1] * 6),
        ("a.csv: the training part of a fold cannot be split", "training.early_stopping.fraction", "1 group; add posts of other"),
        ("data.n_folds=2", "data.test_fraction=0", "hpo.pruner.max_resource=null"),
    ),
    Case(
        "one group left for five folds",
        "a.csv",
        good(group_id=[f"g{row // 8}" for row in range(24)]),
        ("a.csv: the dev split has 1 group, too few for data.n_folds=5; add posts of other groups",),
    ),
    Case(
        "fewer groups than folds",
        "a.csv",
        good(group_id=[f"g{r // 2 % 5}" for r in range(24)]),
        ("a.csv: the dev split has 3 groups, too few for data.n_folds=5; lower data.n_folds to 3",),
    ),
    Case(
        "an author of three quarters",
        "a.csv",
        good(group_id=["big"] * 18 + [f"g{r // 2}" for r in range(6)]),
        ("of data.n_folds=2 would be scored on ", "group 'big' alone has ", "leave its group_id blank if it is not an author"),
        ("data.n_folds=2", "data.test_fraction=0", "hpo.pruner.max_resource=null"),
    ),
    Case(
        "an unknown split",
        "a.csv",
        good(split=[["train", "tset"][r // 2 == 4] for r in range(24)]),
        ("a.csv: split 'tset' of post 'p4' is unknown; write test, train, dev, val, or the", "data.columns.split=null"),
    ),
    Case(
        "an author in two parts of the file's split",
        "a.csv",
        good(group_id=[f"g{r // 4}" for r in range(24)], split=[["train", "test"][r // 2 == 4] for r in range(24)]),
        ("a.csv: group 'g2' has posts in two parts of split, 'test' and 'train'", "data.columns.split=null"),
    ),
    Case(
        "a test of one group in the file's split",
        "a.csv",
        good(split=[["train", "test"][r // 2 == 4] for r in range(24)]),
        ("a.csv: the test split has 1 group, too few for a confidence", "data.columns.split=null"),
    ),
    Case(
        "other folds than data.n_folds in the file's split",
        "a.csv",
        good(split=[f"fold{r // 2 % 3}" for r in range(24)]),
        ("a.csv: the file names 3 folds, but data.n_folds is 5; set data.n_folds=3",),
    ),
    Case(
        "a fold without positives",
        "a.csv",
        good(label=labels(lambda post: post < 3)),
        ("a.csv: fold ", "of data.n_folds=5: no positive pair in its valid part; lower data.n_folds"),
    ),
    Case(
        "a test split without positives",
        "a.csv",
        good(label=labels(lambda post: post == 1)),
        ("a.csv: the test split has no positive pair; change data.test_fraction",),
    ),
    Case(
        "more positives than the table has",
        "a.csv",
        good(),
        ("data.positive_rate is 0.9, but 0.5000",),
        ("data.positive_rate=0.9",),
    ),
    Case("a path without effect", "a.csv", good(), ("data.path has no effect with data=demo; remove it",), data="demo"),
    Case("no path", "", None, ("data=pairs needs data.path",)),
    # symptoms and criteria
    Case(
        "an unknown symptom",
        "a.csv",
        TRUTH + b"p1,a,FATIGE,1\n",
        ("a.csv, row 2: its DSM5_symptom is not in data.symptoms (did you mean 'FATIGUE'?)", "data.symptoms.NAME=CRITERION"),
        data="groundtruth",
    ),
    Case(
        "a blank symptom",
        "a.csv",
        TRUTH + b"p1,a,FATIGUE,1\np2,b, ,1\n",
        ("a.csv, row 3: DSM5_symptom is blank; fill it in or delete the row",),
        data="groundtruth",
    ),
    Case(
        "criteria of 100,000 brackets",
        "a.csv",
        TRUTH + b"p1,a,FATIGUE,1\n",
        ("c.json: its brackets are nested too deeply",),
        ("data.criteria_path=c.json",),
        "groundtruth",
        {"c.json": b"[" * 100_000},
    ),
    Case(
        "criteria in the home of an unknown user",
        "a.csv",
        TRUTH + b"p1,a,FATIGUE,1\n",
        ("~nosuchuser/c.json: no such file; check data.criteria_path",),
        ("data.criteria_path=~nosuchuser/c.json",),
        "groundtruth",
    ),
    Case(
        "criteria that are not JSON",
        "a.csv",
        TRUTH + b"p1,a,FATIGUE,1\n",
        ("c.json, line 1: not valid JSON",),
        ("data.criteria_path=c.json",),
        "groundtruth",
        {"c.json": b"A.1: text"},
    ),
    Case(
        "a symptom without its criterion",
        "a.csv",
        TRUTH + b"p1,a,FATIGUE,1\n",
        ("data.symptoms.DEPRESSED_MOOD is 'A.1', which is not in c.json",),
        ("data.criteria_path=c.json",),
        "groundtruth",
        {"c.json": b'{"criteria": [{"id": "B.1", "text": "a"}]}'},
    ),
    Case("no annotations", "a.csv", b"post_id,text\np1,a\n", ("data=redsm5 needs data.annotations_path",), data="redsm5"),
    Case(
        "annotations whose ids lost their zeros",
        "a.csv",
        b"post_id,text\n007,a\n",
        ("s.csv, row 2: its post_id is not in a.csv", "differs only in capitals, blanks or zeros (7 here, 007 there)"),
        ("data.annotations_path=s.csv",),
        "redsm5",
        {"s.csv": SENTENCES + b"7,1,a,FATIGUE,1,-\n"},
    ),
    Case(
        "annotations of another release",
        "a.csv",
        b"post_id,text\np1,a\n",
        ("s.csv, row 2: its post_id is not in a.csv", "one release"),
        ("data.annotations_path=s.csv",),
        "redsm5",
        {"s.csv": SENTENCES + b"p9,1,a,FATIGUE,1,-\n"},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_is_one_line(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, tell) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in {case.file: case.content, **case.others}.items():
        if callable(content):
            content(tmp_path / name)
        elif content is not None:
            (tmp_path / name).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    settings = ["preset=smoke", "model=tiny", "studies_dir=studies", f"data={case.data}", *case.settings]
    code = cli.main(settings + ([f"data.path={case.file}"] if case.file else []))
    out, err = capsys.readouterr()
    tell("malformed data and its error line", case.what, err.strip().removeprefix("criteria_hpo: "))
    assert code == 2
    assert len(err.strip().splitlines()) == 1 and err.startswith("criteria_hpo: ") and "Traceback" not in err
    for fragment in case.fragments:
        assert fragment in err
    assert not out and SECRET not in err
    assert sorted(tmp_path.rglob("*")) == before, "a rejected run left a file behind"


def test_a_file_without_read_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Permissions do not stop root, so for root the opening is made to fail."""
    file = tmp_path / "a.csv"
    file.write_bytes(good())
    file.chmod(0)
    if os.geteuid() == 0:
        denied = mock.Mock(side_effect=PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
        really = Path.open
        monkeypatch.setattr(Path, "open", lambda path, *how, **more: (denied if path == file else really)(path, *how, **more))
    code = cli.main(["preset=smoke", "data=pairs", f"data.path={file}"])
    line = capsys.readouterr().err
    assert code == 2 and line.startswith(
        f"criteria_hpo: {file}: cannot be read (Permission denied); check the file's permissions"
    )


def test_the_good_table_is_good(tmp_path: Path) -> None:
    """The table that the cases damage is read and split without an error."""
    from criteria_hpo.config.load import load_config
    from criteria_hpo.data.study_data import load_data

    files = {"a.csv": good(), "b.csv": good() + b"\n,,,,\n", "a.parquet": table().to_parquet(), "a.csv.gz": gzip.compress(good())}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        data = load_data(load_config(["preset=smoke", "data=pairs", f"data.path={tmp_path / name}"]))
        assert len(data.dev) + len(data.test) == len(TWELVE)


def test_parquet_of_every_type_is_the_same_table(tmp_path: Path) -> None:
    """Bytes for texts, decimals for numbers, and dates beyond Python's in a column that is not used."""
    from criteria_hpo.inputs.pairs import load_pairs

    numbers = [decimal.Decimal(row // 2) for row in range(24)]
    (tmp_path / "a.csv").write_bytes(good(post_id=[str(number) for number in numbers]))
    far = pa.array([2**62] * 24, pa.int64())
    whole = parquet(
        post=pa.array([post.encode() for post in table().post]),
        post_id=pa.array(numbers),
        label=pa.array([decimal.Decimal(f"{label}.00") for label in table().label]),
        when=far.view(pa.timestamp("us")),
        took=far.view(pa.duration("us")),
        day=pa.array([datetime.date(2026, 1, 2)] * 24),
    )
    (tmp_path / "a.parquet").write_bytes(whole)
    pd.testing.assert_frame_equal(load_pairs(tmp_path / "a.parquet"), load_pairs(tmp_path / "a.csv"))


def test_clinical_tables_with_blank_lines_at_their_end(tmp_path: Path) -> None:
    from criteria_hpo.config.load import load_config
    from criteria_hpo.inputs.corpora import load_corpus

    (tmp_path / "t.csv").write_bytes(TRUTH + b"p1,a,FATIGUE,1\n\n,,,\n")
    (tmp_path / "c.json").write_bytes(b'\xef\xbb\xbf{"criteria": [{"id": "A.6", "text": "Tired"}]}')
    (tmp_path / "p.csv").write_bytes(b"post_id,text\np1,a\n\n")
    (tmp_path / "s.csv").write_bytes(SENTENCES + b"p1,1,a,FATIGUE,1,-\n\n")
    others = [f"data.symptoms.{name}=null" for name in load_config(["data=redsm5"]).data.symptoms if name != "FATIGUE"]
    places = [f"data.criteria_path={tmp_path}/c.json", *others]
    truth = load_corpus(load_config(["data=groundtruth", f"data.path={tmp_path}/t.csv", *places]).data)
    redsm5 = load_corpus(
        load_config(["data=redsm5", f"data.path={tmp_path}/p.csv", f"data.annotations_path={tmp_path}/s.csv", *places]).data
    )
    assert truth.label.tolist() == redsm5.label.tolist() == [1]


WARNINGS = {
    "unknown authors": ({"group_id": ["[deleted]"] * 6 + ["ann"] * 18}, "row 2: group_id is '[deleted]'", "3 of 12 posts"),
    "nan as authors": ({"group_id": ["nan"] * 4 + ["ann"] * 20}, "row 2: group_id is 'nan'", "2 of 12 posts"),
    "removed posts": (rows_of("post", "[removed]", 2, 3), "row 4: post is [removed]", "2 of 24 rows, 1 of 12 posts"),
    "a word for nothing": (rows_of("post", "nan", 2, 3), "row 4: post is 'nan', which is read as text", "(2 rows)"),
    "mojibake": (rows_of("post", "cafÃ©", 2, 3), "row 4: post contains UTF-8 that was read as Windows-1252", "(2 rows)"),
    "a lost character": (rows_of("post", "caf\ufffd", 2, 3), "row 4: post contains U+FFFD", "(2 rows)"),
    "a full cell": (rows_of("post", "x" * 32_767, 2, 3), "row 4: post has 32,767 characters", "(2 rows)"),
    "capitals": (rows_of("post_id", "P0", 2, 3), "row 4: post_id differs from that of row 2 only in", "(P0 and p0)"),
    "a last blank": (rows_of("criterion", "Text of A.1 ", 2), "row 4: criterion differs only in blanks", "(1 row)"),
    "line ends": (rows_of("criterion", "Text of\r\nA.1", 2), "row 4: criterion differs only in blanks", "(1 row)"),
    "zero as two authors": (
        {"group_id": ["0"] * 2 + ["0.0"] * 4 + ["ann"] * 18},
        "row 4: group_id is 0.0 here and 0 in other rows; the two are read as one id",
        "(4 rows)",
    ),
    "a number as two posts": (
        {"post_id": ["101", "101.0"] + [f"p{row // 2}" for row in range(2, 24)]},
        "row 3: post_id is 101.0 here and 101 in other rows; the two are read as one id",
        "(1 row)",
    ),
}


@pytest.mark.parametrize("what", WARNINGS)
def test_is_one_warning(what: str, tmp_path: Path, caplog, tell) -> None:
    """A suspicious value that is not an error: the file is read, and exactly one line is logged."""
    from criteria_hpo.inputs.pairs import load_pairs

    columns, start, also = WARNINGS[what]
    (tmp_path / "good.csv").write_bytes(good(group_id="ann"))
    (tmp_path / "a.csv").write_bytes(good(**columns))
    load_pairs(tmp_path / "good.csv")
    assert not caplog.messages
    load_pairs(tmp_path / "a.csv")
    (line,) = [line for line in caplog.messages if "no column group_id" not in line]
    tell("suspicious data and its warning", what, line.replace(f"{tmp_path}/", ""))
    assert f"{tmp_path / 'a.csv'}, {start}" in line and also in line
    assert len(line.splitlines()) == 1 and SECRET not in line


def test_nan_in_json_lines_is_not_an_author(tmp_path: Path, caplog) -> None:
    """Python writes NaN for a missing author: every such post is its own group, without a warning, as for a blank."""
    from criteria_hpo.inputs.pairs import load_pairs

    nan = table(group_id=[float("nan")] * 12 + ["ann"] * 12, evidence=float("nan")).to_dict("records")
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, nan)))
    assert "NaN" in (tmp_path / "a.jsonl").read_text()
    pairs = load_pairs(tmp_path / "a.jsonl")
    assert pairs.group_id.nunique() == 7 and not caplog.messages and not pairs.evidence.map(len).any()


def test_evidence_as_people_write_it(tmp_path: Path) -> None:
    """One sentence as JSON, Python and NumPy list it, and nothing as a list, a blank or a word; or the column is not read."""
    from criteria_hpo.inputs.pairs import load_pairs

    sentence = f"Post 0, {SECRET}."
    cells = [sentence, json.dumps([sentence]), str([sentence]), f"['Post 0,'\n '{SECRET}.']", "[]", "nan", "None", ""]
    for cell in cells:
        (tmp_path / "a.csv").write_bytes(good(**rows_of("evidence", cell, 1)))
        found = load_pairs(tmp_path / "a.csv").evidence.map(" ".join)
        assert found[found != ""].tolist() == ([sentence] if SECRET in cell else []), cell
    (tmp_path / "a.csv").write_bytes(good(**rows_of("evidence", "[[1, 2]]", 1)))
    assert not load_pairs(tmp_path / "a.csv", {"evidence": None}).evidence.map(len).any()


def test_texts_that_differ_in_blanks_are_one_in_any_order(tmp_path: Path) -> None:
    from criteria_hpo.inputs.pairs import load_pairs, pairs_hash

    (tmp_path / "good.csv").write_bytes(good())
    spelt = table(**rows_of("criterion", "Text of A.1 ", 2), **rows_of("post", f"Post 5, {SECRET}.\r\n", 10))
    hashes = set()
    for seed in range(3):
        spelt.sample(frac=1, random_state=seed).to_csv(tmp_path / "a.csv", index=False)
        hashes.add(pairs_hash(load_pairs(tmp_path / "a.csv")))
    assert hashes == {pairs_hash(load_pairs(tmp_path / "good.csv"))}
