"""Tables in the forms in which corpora come, from the file to the split data of a study, and their errors in one line each."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import pytest

from criteria_hpo import cli
from criteria_hpo.config.load import load_config
from criteria_hpo.config.parameters import config_from_parameters
from criteria_hpo.config.schema import Config
from criteria_hpo.data.study_data import Data, load_data, load_test

SECRET = "this text is private"
CRITERIA = {"A.4": "Sleeps badly.", "A.6": "Has no energy."}
PAIRS = pd.DataFrame(
    [
        (f"p{p:02}", f"Post {p}, {SECRET}.", name, text, int((p + int(name[-1])) % 3 == 0), f"u{p:02}")
        for p in range(30)
        for name, text in CRITERIA.items()
    ],
    columns=["post_id", "post", "criterion_id", "criterion", "label", "group_id"],
)
WIDE = PAIRS.pivot(index=["post_id", "post", "group_id"], columns="criterion_id", values="label").reset_index()
MET = PAIRS[PAIRS.label == 1].groupby("post_id").criterion_id.agg(list)
POSTS = WIDE.drop(columns=[*CRITERIA])


def load(path: Path, frame: pd.DataFrame, *settings: str, sep: str = ",") -> Data:
    """The split data of a study with `frame` for its table."""
    if path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep=sep)
    cfg = load_config(["preset=smoke", "data=pairs", "data.max_groups=null", f"data.path={path}", *settings])
    return with_test_labels(cfg, load_data(cfg))


def with_test_labels(cfg: Config, data: Data) -> Data:
    """The data with the labels of its test pairs, which a search does not read."""
    return replace(data, test=load_test(cfg, data))


def pairs_of(data: Data) -> pd.DataFrame:
    """All pairs, in the order of the table."""
    both = pd.concat([data.dev, data.test]).sort_values(["post_id", "criterion_id"], ignore_index=True)
    return both[["post_id", "post", "criterion_id", "criterion", "label", "group_id"]]


@pytest.fixture
def criteria(tmp_path: Path) -> Path:
    """The criteria as a CSV."""
    file = tmp_path / "criteria.csv"
    pd.DataFrame(CRITERIA.items(), columns=["criterion_id", "criterion"]).to_csv(file, index=False)
    return file


def test_a_release_keeps_its_split(tmp_path: Path) -> None:
    parts = PAIRS.assign(split=[" test" if int(post[1:]) % 5 == 0 else "train" for post in PAIRS.post_id])
    data = load(tmp_path / "a.csv", parts)
    assert {*data.test.post_id} == {f"p{number:02}" for number in range(0, 30, 5)} and len(pairs_of(data)) == len(PAIRS)
    renamed = load(tmp_path / "a.csv", parts.rename(columns={"split": "part"}), "data.columns.split=part")
    assert renamed.hashes == data.hashes
    ignored = load(tmp_path / "a.csv", parts, "data.columns.split=null")
    assert ignored.hashes == load(tmp_path / "a.csv", PAIRS).hashes != data.hashes


@pytest.mark.parametrize("as_json", [True, False])
def test_a_column_for_each_criterion(as_json: bool, tmp_path: Path, criteria: Path) -> None:
    if as_json:
        criteria = tmp_path / "criteria.json"
        criteria.write_text(json.dumps({"criteria": [{"id": name, "text": text} for name, text in CRITERIA.items()]}))
    data = load(tmp_path / "a.csv", WIDE, "data.layout=wide", f"data.criteria_path={criteria}")
    pd.testing.assert_frame_equal(pairs_of(data), PAIRS)
    assert data.warnings == () and data.hashes == load(tmp_path / "b.csv", PAIRS).hashes


def test_a_blank_cell_is_not_asked_or_no(tmp_path: Path, criteria: Path) -> None:
    table = WIDE.assign(**{"A.4": WIDE["A.4"].mask(WIDE.index < 4).astype("Int64")})
    settings = ["data.layout=wide", f"data.criteria_path={criteria}"]
    data = load(tmp_path / "a.csv", table, *settings)
    assert len(pairs_of(data)) == len(PAIRS) - 4
    assert data.warnings == (f"{tmp_path}/a.csv: 4 blank cells are left out; if they mean no, set data.labels.blank=0",)
    no = pairs_of(load(tmp_path / "a.csv", table, *settings, "data.labels.blank=0"))
    assert len(no) == len(PAIRS) and no.label.sum() == PAIRS.label.sum() - WIDE["A.4"][:4].sum()


@pytest.mark.parametrize("separator", [";", "|", ", ", "python", "json", "jsonl"])
def test_all_criteria_in_one_cell(separator: str, tmp_path: Path, criteria: Path) -> None:
    spell = {"python": str, "json": json.dumps, "jsonl": list}.get(separator, separator.join)
    cells = [spell(MET.get(post, [])) for post in POSTS.post_id]
    path = tmp_path / ("a.jsonl" if separator == "jsonl" else "a.csv")
    settings = ["data.layout=joined", "data.columns.label=labels", f"data.criteria_path={criteria}"]
    data = load(path, POSTS.assign(labels=cells), *settings)
    pd.testing.assert_frame_equal(pairs_of(data), PAIRS)
    assert data.warnings == ()


def test_words_and_no_ids(tmp_path: Path) -> None:
    """A table of clauses and questions, as the README's command reads it from a shell's words."""
    table = PAIRS.rename(columns={"post": "policy", "criterion": "claim"}).drop(columns=["post_id", "criterion_id", "group_id"])
    table = table.assign(answer=table.label.map({1: "Yes", 0: "No"})).drop(columns="label").reset_index()
    (tmp_path / "legal.tsv").write_text(table.to_csv(index=False, sep="\t"))
    words = "data.columns.post=policy data.columns.criterion=claim data.columns.label=answer data.labels='{Yes: 1, No: 0}'"
    cfg = config_from_parameters("law", "smoke", "pairs", f"{tmp_path}/legal.tsv", "tiny", 1, 1, f"data.max_groups=null {words}")
    data = with_test_labels(cfg, load_data(cfg))
    read = pairs_of(data)
    expected = PAIRS.sort_values(["post", "criterion"])[["post", "criterion", "label"]].to_numpy().tolist()
    assert read.sort_values(["post", "criterion"])[["post", "criterion", "label"]].to_numpy().tolist() == expected
    assert (read.post_id.nunique(), read.criterion_id.nunique()) == (30, 2)
    assert data.warnings[1].endswith("made from the texts of the posts, one for all copies of a text (30)")
    assert (
        data.warnings[2].endswith("no criterion ids in the file: made from the texts of the criteria (2)")
        and len(data.warnings) == 3
    )
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "legal.tsv", index=False, sep="\t")
    assert with_test_labels(cfg, load_data(cfg)).hashes == data.hashes


def test_a_row_for_each_annotator(tmp_path: Path) -> None:
    """Two of three agree with the label; where the third is left out, a pair of votes may be even."""
    three = pd.concat([PAIRS.assign(annotator=name, label=PAIRS.label) for name in "abc"], ignore_index=True)
    three.loc[len(PAIRS) * 2 : len(PAIRS) * 2 + 6, "label"] ^= 1
    data = load(tmp_path / "a.csv", three)
    pd.testing.assert_frame_equal(pairs_of(data), PAIRS)
    line = f"{tmp_path}/a.csv: 60 of 60 pairs have several annotators (3 in total), the majority decides: 7 not unanimous, 0 ties"
    assert data.warnings == (line,)
    two = three[three.annotator != "b"]
    ones = {ties: pairs_of(load(tmp_path / "a.csv", two, f"data.ties={ties}")) for ties in ("positive", "negative", "drop")}
    assert [len(pairs) for pairs in ones.values()] == [60, 60, 53]
    assert ones["positive"].label.sum() - ones["negative"].label.sum() == 7


def test_a_spreadsheet_that_names_its_separator(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=;\n" + PAIRS.to_csv(index=False, sep=";"))
    cfg = load_config(["preset=smoke", "data=pairs", "data.max_groups=null", f"data.path={tmp_path}/a.csv"])
    data = with_test_labels(cfg, load_data(cfg))
    pd.testing.assert_frame_equal(pairs_of(data), PAIRS)


def test_symptoms_in_any_form(tmp_path: Path) -> None:
    """What data=groundtruth reads may have a column for each symptom, words for labels, and several annotators."""
    wide = WIDE.rename(columns={"A.4": "SLEEP_ISSUES", "A.6": "FATIGUE"})
    data = load(tmp_path / "a.csv", wide, "data=groundtruth", "data.layout=wide")
    assert pairs_of(data)[["post_id", "criterion_id", "label"]].equals(PAIRS[["post_id", "criterion_id", "label"]])
    names = {"criterion_id": "DSM5_symptom", "label": "groundtruth"}
    truth = PAIRS.replace({"A.4": "SLEEP_ISSUES", "A.6": "FATIGUE"}).rename(columns=names).drop(columns="criterion")
    votes = pd.concat([truth.assign(annotator=name, groundtruth=truth.groundtruth.map({1: "yes", 0: "no"})) for name in "ab"])
    voted = load(tmp_path / "a.csv", votes, "data=groundtruth", "data.labels={yes: 1, no: 0}")
    assert voted.hashes == data.hashes


@dataclass(frozen=True)
class Bad:
    """A table, further settings, and the fragments of the error line."""

    what: str
    content: str
    fragments: tuple[str, ...]
    settings: tuple[str, ...] = ()
    criteria: dict[str, str] = field(default_factory=lambda: CRITERIA)


LONG, SHEET = "post_id,post,criterion_id,criterion,label", "post_id,post,A.4,A.6\n"
ROW = f"p1,{SECRET},A.4,Sleeps badly.,1"
AS_WIDE, AS_JOINED = ("data.layout=wide",), ("data.layout=joined",)
TWO_WORDS = f"{LONG}\n" + "".join(f"p{n},{SECRET} {n},A.4,Sleeps badly.,{'Yes' if n % 2 else 'No'}\n" for n in range(4))
BAD = [
    Bad("a gap in the split", f"{LONG},split\n{ROW},test\n{ROW},\n", ("a.csv, row 3: split is blank", "data.columns.split=null")),
    Bad(
        "a post in two parts", f"{LONG},split\n{ROW},test\n{ROW},dev\n", ("row 3: post_id 'p1' has another split than in row 2",)
    ),
    Bad("an unmapped word", TWO_WORDS, ("row 2: label is text (the column contains Yes, No)", "data.labels='{Yes: 1, No: 0}'")),
    Bad(
        "a word too many",
        TWO_WORDS + f"p9,a,A.4,Sleeps badly.,{SECRET}\n",
        ("row 6: label is text, which is not in data.labels; add it",),
        ("data.labels={Yes: 1, No: 0}",),
    ),
    Bad("a map to 2", TWO_WORDS, ("data.labels.Yes=2: must be 0 or 1 or null",), ("data.labels={Yes: 2}",)),
    Bad(
        "tied votes",
        f"{LONG},annotator\n{ROW},a\n{ROW[:-1]}0,b\n",
        ("row 2: the votes on its pair are tied", "data.ties=positive"),
    ),
    Bad(
        "an annotator with two answers",
        f"{LONG},annotator\n{ROW},a\n{ROW[:-1]}0,a\n",
        ("row 3: its annotator gives the pair another",),
    ),
    Bad("a gap in the annotators", f"{LONG},annotator\n{ROW},a\n{ROW},\n", ("row 3: annotator is blank",)),
    Bad(
        "a wide table unannounced",
        SHEET + f"p1,{SECRET},1,0\n",
        ("columns of 0 and 1 (A.4, A.6)", "set data.layout=wide"),
    ),
    Bad("a 2 in a wide table", SHEET + f"p1,{SECRET},1,2\n", ("a.csv, row 2: A.6 is another number",), AS_WIDE),
    Bad("only ones", SHEET + f"p1,{SECRET},1,\n", ("every cell is 1 or blank; if a blank cell means no",), AS_WIDE),
    Bad("no such columns", "post_id,post\np1,a\n", ("no column has the name of a criterion (A.4, A.6)",), AS_WIDE),
    Bad(
        "one post twice",
        SHEET + f"p1,{SECRET},1,0\np1,{SECRET},0,0\n",
        ("row 3, column A.4: post_id 'p1'", "another label"),
        AS_WIDE,
    ),
    Bad(
        "one id, two posts",
        SHEET + f"p1,{SECRET},1,0\np1,b,1,0\n",
        ("row 3: post_id 'p1' has another post than in row 2",),
        AS_WIDE,
    ),
    Bad("a column twice", "post_id,post,A.4,A.4\np1,a,1,0\n", ("column A.4 occurs 2 times",), AS_WIDE),
    Bad(
        "an unknown name",
        f"post_id,post,label\np1,{SECRET},A.44\n",
        ("row 2: label contains a name that is not a criterion", "did you mean 'A.4'?"),
        AS_JOINED,
    ),
    Bad(
        "no name at all", f"post_id,post,label\np1,{SECRET},\n", ("a.csv: label does not name a criterion in any row",), AS_JOINED
    ),
    Bad("no criteria", SHEET, ("c.csv: no criteria; expected a header criterion_id,criterion",), AS_WIDE, {}),
    Bad("an unknown layout", SHEET, ("data.layout=tall: must be long or wide or joined",), ("data.layout=tall",)),
    Bad(
        "ties for the demo",
        "",
        ("data.ties has no effect with data=demo; remove it",),
        ("data=demo", "data.path=null", "data.ties=drop"),
    ),
    Bad("a separator of its own", "sep=:\n" + LONG, ("a.csv, row 1: sep= sets an unknown separator (known: , ; | and tab)",)),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.what)
def test_is_one_line(bad: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tell) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text(bad.content)
    pd.DataFrame(bad.criteria.items(), columns=["criterion_id", "criterion"]).to_csv("c.csv", index=False)
    settings = [*bad.settings, *["data.criteria_path=c.csv"] * ({*AS_WIDE, *AS_JOINED} & {*bad.settings} != set())]
    code = cli.main(["command=check_data", "preset=smoke", "model=tiny", "data=pairs", "data.path=a.csv", *settings])
    out, err = capsys.readouterr()
    tell("other forms of a table and their error lines", bad.what, err.strip().removeprefix("criteria_hpo: "))
    assert code == 2 and not out and SECRET not in err
    assert len(err.strip().splitlines()) == 1 and err.startswith("criteria_hpo: ")
    for fragment in bad.fragments:
        assert fragment in err
