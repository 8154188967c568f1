"""What is seen of a study while it runs: the events of log.jsonl, and a notebook that is written meanwhile."""

import ast
import json
import threading
import time
from pathlib import Path

import nbformat
import pytest

from criteria_hpo import notebooks
from criteria_hpo.live.events import EVENTS

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
