"""What is seen of a study while it runs: in a terminal, in a notebook that is written meanwhile, and in log.jsonl."""

import ast
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from criteria_hpo import notebooks
from criteria_hpo.live.events import COMMON, EVENTS, read_events

ROOT = Path(__file__).resolve().parent.parent


def calls_of_events() -> list[tuple[str, set[str]]]:
    """The event and the named fields of every call of `log_event` in the package, and of the recorder's `log`."""
    found = []
    for path in (ROOT / "criteria_hpo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            name = ast.unparse(node.func)
            if name == "log_event" or name.endswith(("recorder.log", "self.log")):
                found.append((node.args[0].value, {keyword.arg for keyword in node.keywords if keyword.arg}))
    return found


def test_every_event_is_in_the_table_and_every_row_of_the_table_is_used() -> None:
    calls = calls_of_events()
    assert {event for event, _ in calls} == EVENTS.keys()
    assert all(fields <= set(EVENTS[event][1].split()) for event, fields in calls)


def in_terminal(words: list[str], columns: int) -> tuple[int, bytes]:
    """The exit code of a command in a pseudo-terminal, and what it wrote."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "CRITERIA_HPO_PROGRESS")}
    process = subprocess.Popen(words, stdin=other, stdout=other, stderr=other, env=env | {"TERM": "xterm-256color"})
    os.close(other)
    written = b""
    while True:
        try:
            written += os.read(main, 65536)
        except OSError:  # the other end is closed
            os.close(main)
            return process.wait(), written


def test_a_search_in_a_narrow_terminal_and_its_log(tmp_path: Path) -> None:
    words = ["preset=smoke", "model=tiny", "n_trials=2", "hpo.pruner.type=none", f"studies_dir={tmp_path}", "hpo.study_name=seen"]
    code, written = in_terminal([sys.executable, "-m", "criteria_hpo.cli", *words], 60)
    text = written.decode()
    assert code == 0 and "Study" in text and "fold 1 of 5" in text and "2 of 2: 2 complete" in text and "\x1b[1A" in text, text

    log = tmp_path / "seen" / "log.jsonl"
    frame, table = pd.read_json(log, lines=True), read_events(log)
    assert list(frame.event) == list(table.event) and set(COMMON) <= set(frame)
    assert frame.event.value_counts().to_dict() == {
        "study started": 1,
        "worker started": 1,
        "trial started": 2,
        "fold finished": 10,
        "trial finished": 2,
        "worker ended": 1,
    }
    folds = table[table.event == "fold finished"]
    assert folds.groupby("trial").fold.apply(list).tolist() == [[1, 2, 3, 4, 5]] * 2 and (folds.seconds > 0).all()
    assert table.time.is_monotonic_increasing and str(table.time.dt.tz) == "UTC"


def test_a_notebook_is_written_while_its_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One output that is replaced is enough for papermill to save: the file is never older than its interval and an update."""
    monkeypatch.setattr(notebooks, "SAVE_SECONDS", 1)
    code = (
        "import time\nfrom IPython.display import display\nhandle = display('state 0', display_id=True)\n"
        "for n in range(1, 50):\n    time.sleep(0.1)\n    handle.update(f'state {n}')"
    )
    cells = [nbformat.v4.new_code_cell("study = 'x'", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(code)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    template, output = tmp_path / "template.ipynb", tmp_path / "out.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), template)
    seen, ended = set(), threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            try:
                outputs = json.loads(output.read_text())["cells"][-1]["outputs"]
            except (OSError, ValueError):  # it is being written
                continue
            seen.update("".join(each["data"]["text/plain"]) for each in outputs if "data" in each)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        notebooks.execute(template, output, {"study": "x"})
        time.sleep(0.2)
    finally:
        ended.set()
        thread.join()
    assert len(seen) >= 3, seen
    assert len(nbformat.read(output, as_version=4).cells[-1].outputs) == 1
