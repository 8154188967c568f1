"""A search in a terminal: the display from its start to its end, in a window that is made wider, and the log that it leaves.

The pictures stay in test-results/, for somebody to look at.
"""

import re
import sys
from pathlib import Path

import pandas as pd
from terminal import LOOKS, Terminal, draw

from criteria_hpo.live.events import COMMON, read_events

ROOT = Path(__file__).resolve().parent.parent
SEARCH = [
    *("preset=smoke", "model=tiny", "n_trials=2", "hpo.pruner.type=none", "data.max_groups=20", "hpo.metric=average_precision"),
    *("command=hpo", "hpo.study_name=seen"),
]


def photographed(terminal: Terminal, folder: Path) -> list[str]:
    """Take pictures from the start to the end; make the window wider in the middle; return the rows of the running trial."""
    seen, taken = list[str](), set[str]()

    def take(moment: str) -> None:
        for look in LOOKS:
            draw(terminal.screen, look, folder / f"terminal_{moment}_{terminal.screen.columns}_{look}.png")
        taken.add(moment)

    while terminal.read():
        text = terminal.text
        if (row := re.search(r"^running +(trial .*)", text, re.MULTILINE)) and row[1] not in seen:
            seen.append(row[1])
        if "memory" not in text:  # the block is being drawn
            continue
        if "start" not in taken:
            take("start")
        elif "1 of 2:" in text and "middle" not in taken:
            take("middle")
            terminal.resize(120)
        elif "middle" in taken and "wider" not in taken and len(text.splitlines()[0]) == 120:
            take("wider")
        elif "wider" in taken and "2 of 2:" in text and "done" not in taken:
            take("done")
    take("results")
    return seen


def test_a_search_in_a_terminal_and_its_log(tmp_path: Path) -> None:
    pictures = ROOT / "test-results"
    pictures.mkdir(exist_ok=True)
    for old in pictures.glob("terminal_*.png"):
        old.unlink()
    terminal = Terminal([sys.executable, "-m", "criteria_hpo.cli", *SEARCH, f"studies_dir={tmp_path}"], 80)
    seen = photographed(terminal, pictures)
    written, text = terminal.written.decode(), terminal.text
    assert terminal.process.wait() == 0 and "\x1b[1A" in written, text
    # a quick first fold may pass between two looks
    assert len(seen) >= 4 and seen == sorted(seen) and seen[0].startswith("trial 0, fold"), seen
    assert {path.name for path in pictures.glob("terminal_*.png")} == {
        f"terminal_{moment}_{look}.png"
        for moment in ("start_80", "middle_80", "wider_120", "done_120", "results_120")
        for look in LOOKS
    }
    whole = terminal.history
    assert whole.count("Study seen") == 1 and "2 of 2: 2 complete" in whole, "one block is left, and nothing of earlier ones"
    assert max(map(len, whole.splitlines())) <= 120 and "Best: trial " in whole

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
