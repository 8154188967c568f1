"""JupyterLab in a real browser: the study notebook runs by a click, its live view moves, its plots answer the mouse.

One study serves all of it. The pictures stay in test-results/, for somebody to look at.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import plotly.io
import pytest
from nbconvert import HTMLExporter

from criteria_hpo.core.figures import Figure

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
TOKEN = "for-this-test-only"
MINUTES_AT_MOST = 8
# No question about news, and every cell on the page, not only those in view.
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(BROWSERS)} is on the path")
playwright = pytest.importorskip("playwright.sync_api")


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab and the folder it shows."""

    url: str
    folder: Path

    @property
    def notebook(self) -> Path:
        """The copy of the study notebook, so that saving it leaves the checkout as it is."""
        return self.folder / "studies" / "hpo.ipynb"

    def kernels(self) -> dict[str, str] | None:
        """The state of each notebook's kernel, e.g. {"figure.ipynb": "idle"}; None as long as the server does not answer."""
        try:
            with urllib.request.urlopen(f"{self.url}/api/sessions?token={TOKEN}", timeout=5) as answer:
                return {session["path"]: session["kernel"]["execution_state"] for session in json.load(answer)}
        except OSError:
            return None

    def idle(self, notebook: str) -> bool:
        """Whether this notebook's own kernel waits: JupyterLab drops "Run All Cells" of a notebook that has none yet."""
        return (self.kernels() or {}).get(notebook) == "idle"


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Look twice a second."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            pytest.fail(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.5)


def stored_figures() -> nbformat.NotebookNode:
    """A notebook with two outputs: a figure as ours are shown, and one as plotly shows it left alone."""
    figure = {"data": [{"type": "bar", "y": [1, 2]}], "layout": {"height": 300}}
    cells = []
    ours = plotly.io.renderers["plotly_mimetype"].to_mimebundle(Figure(figure).to_plotly_json())
    for data in (json.loads(json.dumps(ours)), {"application/vnd.plotly.v1+json": figure}):
        output = nbformat.v4.new_output("display_data", data=data)
        cells.append(nbformat.v4.new_code_cell("figure", outputs=[output]))
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=kernel)


@pytest.fixture(scope="module")
def lab(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A JupyterLab that knows nothing of the user's own settings, on a copy of the study notebook."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "studies").mkdir()
    shutil.copy(root / "studies" / "hpo.ipynb", folder / "studies")
    nbformat.write(stored_figures(), folder / "figure.ipynb")
    for name, setting in SETTINGS.items():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(setting), encoding="utf-8")
    places = {
        "CRITERIA_HPO_STUDIES": "studies",
        "IPYTHONDIR": "ipython",
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }
    env = os.environ | {name: str(folder / place) for name, place in places.items()}
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = ["--no-browser", "--allow-root", f"--port={port}", f"--IdentityProvider.token={TOKEN}", f"--notebook-dir={folder}"]
    with (folder / "lab.log").open("wb") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=env, stdout=log, stderr=log)
    try:
        running = Lab(f"http://127.0.0.1:{port}", folder)
        wait_until(lambda: running.kernels() is not None, 60, "JupyterLab answers")
        yield running
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    with playwright.sync_playwright() as play:
        running = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def pictures(root: Path) -> Path:
    """Where the screenshots go."""
    folder = root / "test-results"
    folder.mkdir(exist_ok=True)
    return folder


def opened(browser: Any, lab: Lab, place: str) -> Any:
    """The page of a notebook, once its cells are there."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{lab.url}/lab/{place}?token={TOKEN}")
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
    return page


def point_at(page: Any, place: Any) -> None:
    """Move the mouse to the middle of an element. (Playwright's own hover insists that the element stays as it is.)"""
    box = place.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=2)


def shared(place: Any) -> list[str]:
    """The buttons of a figure that send it away."""
    place.locator(".modebar-btn").first.wait_for(state="attached", timeout=60_000)
    titles = [button.get_attribute("data-title") or "" for button in place.locator(".modebar-btn").all()]
    assert len(titles) > 3
    return [title for title in titles if "share" in title.lower()]


# The live view


def position(text: str) -> tuple[int, ...] | None:
    """Where the search is, by the text of the live view: trial, fold, epoch; None without a running trial."""
    found = re.search(r"trial (\d+), fold (\d) of 5, epoch (\d) of \d", text)
    return tuple(map(int, found.groups())) if found else None


def watched(page: Any, picture: Path) -> list[tuple[int, ...]]:
    """The positions that the live view shows until every cell has run; a picture of it in the middle."""
    view = page.get_by_role("status", name="progress of the study")
    prompts, seen = page.locator(".jp-CodeCell .jp-InputArea-prompt"), list[tuple[int, ...]]()
    until = time.monotonic() + 60 * MINUTES_AT_MOST
    while not all(re.fullmatch(r"\[\d+\]:", text.strip()) for text in prompts.all_inner_texts()):
        errors = page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()
        assert not errors and time.monotonic() < until, errors or prompts.all_inner_texts()
        now = position(" ".join(view.all_inner_texts()))
        if now and now not in seen:
            seen.append(now)
            if now[:2] >= (0, 3) and not picture.exists():
                view.scroll_into_view_if_needed()
                page.screenshot(path=picture)
        page.wait_for_timeout(200)
    return seen


# The study notebook


@pytest.fixture(scope="module")
def page(lab: Lab, browser: Any, pictures: Path) -> Any:
    """The study notebook, opened; its kernel is there, and nothing has run."""
    (pictures / "lab_live.png").unlink(missing_ok=True)
    page = opened(browser, lab, "tree/studies/hpo.ipynb")
    wait_until(lambda: lab.idle("studies/hpo.ipynb"), 60, "the kernel starts")
    return page


def test_study_notebook_runs_by_a_click_and_shows_where_it_is(page: Any, lab: Lab, pictures: Path) -> None:
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    try:
        seen = watched(page, pictures / "lab_live.png")
    finally:
        page.screenshot(path=pictures / "lab.png")
    assert len(seen) >= 3 and seen == sorted(seen), f"the live view moves, and forwards: {seen}"
    assert (pictures / "lab_live.png").is_file()
    last = page.get_by_role("status", name="progress of the study").inner_text()
    assert "2 of 2: " in last and "running" not in last and "100%" in last
    stderr = page.locator('[data-mime-type="application/vnd.jupyter.stderr"]')
    assert stderr.count() == 0, f"red output: {stderr.all_inner_texts()}"
    assert {"manifest.json", "study.db", "plots"} <= {path.name for path in (lab.folder / "studies" / "smoke").iterdir()}


def test_a_plot_of_the_study_names_the_trial_under_the_mouse(page: Any, pictures: Path) -> None:
    plot = page.locator(".jp-RenderedPlotly").first
    plot.scroll_into_view_if_needed()
    point_at(page, plot)  # a picture until the mouse comes
    assert not shared(plot)
    labels, label = list[str](), plot.locator(".hoverlayer .hovertext")
    for point in plot.locator(".scatterlayer .points path").all():
        point_at(page, point)
        label.first.wait_for(timeout=10_000)
        labels.append(label.first.text_content())
    page.screenshot(path=pictures / "lab_hover.png")
    assert sorted(re.search(r"trial \d", text)[0] for text in labels) == ["trial 0", "trial 1"], labels
    assert all("F1: 0" in text for text in labels), labels


def test_the_whole_notebook_is_small_and_shows_every_plot(page: Any, lab: Lab, pictures: Path) -> None:
    panel = page.locator(".jp-WindowedPanel-outer")
    page.set_viewport_size({"width": 1400, "height": 200 + panel.evaluate("panel => panel.scrollHeight")})
    panel.evaluate("panel => panel.scrollTo(0, 0)")
    page.wait_for_timeout(1000)
    last = page.locator(".jp-Notebook .jp-Cell").last.bounding_box()
    page.screenshot(path=pictures / "lab_whole.png", clip={"x": 0, "y": 0, "width": 1400, "height": last["y"] + last["height"]})
    drawn = [*page.locator(".jp-RenderedPlotly").all(), *page.locator(".jp-RenderedImage").all()]
    assert len(drawn) >= 6 and all(each.bounding_box()["height"] > 150 for each in drawn)
    page.keyboard.press("Control+s")
    wait_until(lambda: "application/vnd.plotly" in lab.notebook.read_text(encoding="utf-8"), 30, "the notebook is saved")
    outputs = [output for cell in nbformat.read(lab.notebook, as_version=4).cells for output in cell.get("outputs", [])]
    assert "application/vnd.jupyter.stderr" not in str(outputs) and lab.notebook.stat().st_size < 1_000_000
    figures = [output.data for output in outputs if "application/vnd.plotly.v1+json" in output.get("data", {})]
    assert len(figures) >= 4 and all("image/png" in data for data in figures), "a picture, too, for GitHub"


def test_the_notebook_as_a_page_has_every_picture_above_its_sentence(page: Any, lab: Lab, browser: Any, pictures: Path) -> None:
    """As nbconvert makes it and GitHub shows it: without plotly, without internet."""
    file = lab.folder / "hpo.html"
    file.write_text(HTMLExporter().from_filename(str(lab.notebook))[0], encoding="utf-8")
    plain = browser.new_page(viewport={"width": 1100, "height": 900})
    plain.route("**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort())
    plain.goto(file.as_uri(), wait_until="domcontentloaded")
    plain.screenshot(path=pictures / "notebook.png", full_page=True)
    assert plain.locator(".jp-OutputArea img").count() >= 6
    for sentence in (lab.folder / "studies" / "smoke" / "plots").glob("*.txt"):  # nbconvert drops the words of a picture
        if sentence.stem != "data":
            assert plain.get_by_text(sentence.read_text(encoding="utf-8").strip()[:40]).count() >= 1, sentence.stem
    assert plain.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut"


def test_a_figure_in_the_lab_has_no_button_that_sends_it_away(lab: Lab, browser: Any) -> None:
    page = opened(browser, lab, "workspaces/figure/tree/figure.ipynb")  # its own: the other tests left a notebook open
    ours, naive = (page.locator(".jp-OutputArea-output").nth(number) for number in (0, 1))
    assert shared(naive), "a renderer without the button: this test proves nothing now"
    assert not shared(ours)
