"""JupyterLab in a real browser: the study notebook opens, runs to its end with its own defaults, and looks right.

The screenshots stay in test-results/, for somebody to look at.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
TOKEN = "for-this-test-only"
MINUTES_AT_MOST = 8
# No question about news, and every cell on the page, not only those in view.
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}

# A figure as ours are shown, and one as plotly shows it left alone.
FIGURE = """from criteria_hpo.core.figures import Figure
figure = Figure({"data": [{"type": "bar", "y": [1, 2]}]})
figure"""
NAIVE = """from IPython.display import display
display({"application/vnd.plotly.v1+json": {"data": [{"type": "bar", "y": [1, 2]}], "layout": {}}}, raw=True)"""

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


@pytest.fixture(scope="module")
def lab(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A JupyterLab that knows nothing of the user's own settings, on a copy of the study notebook."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "studies").mkdir()
    shutil.copy(root / "studies" / "hpo.ipynb", folder / "studies")
    cells = [nbformat.v4.new_code_cell(source) for source in (FIGURE, NAIVE)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "figure.ipynb")
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


def code_cells(notebook: Path) -> list[dict]:
    """The code cells of the notebook as it was last saved."""
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_study_notebook_runs_in_the_lab(lab: Lab, root: Path) -> None:
    results = root / "test-results"
    results.mkdir(exist_ok=True)
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(f"{lab.url}/lab/tree/studies/hpo.ipynb?token={TOKEN}")
        page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
        wait_until(lambda: lab.idle("studies/hpo.ipynb"), 60, "the kernel starts")
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()

        def finished() -> bool:
            if not lab.idle("studies/hpo.ipynb"):
                return False
            page.keyboard.press("Control+s")
            page.wait_for_timeout(1000)
            outputs = [output for cell in code_cells(lab.notebook) for output in cell["outputs"]]
            assert not [output for output in outputs if output["output_type"] == "error"]
            return all(cell["execution_count"] for cell in code_cells(lab.notebook))

        try:
            wait_until(finished, 60 * MINUTES_AT_MOST, "every cell has run")
        finally:
            page.screenshot(path=results / "lab.png")
        panel = page.locator(".jp-WindowedPanel-outer")
        page.set_viewport_size({"width": 1400, "height": 200 + panel.evaluate("panel => panel.scrollHeight")})
        panel.evaluate("panel => panel.scrollTo(0, 0)")
        page.wait_for_timeout(2000)
        page.screenshot(path=results / "lab_whole.png")
        assert page.locator(".jp-Notebook img").count() >= 3, "the plots are on the page"
        stderr = page.locator('[data-mime-type="application/vnd.jupyter.stderr"]')
        assert stderr.count() == 0, f"red output: {stderr.all_inner_texts()}"
        browser.close()
    assert {"manifest.json", "study.db", "plots"} <= {path.name for path in (lab.folder / "studies" / "smoke").iterdir()}


def test_a_figure_in_the_lab_has_no_button_that_sends_it_away(lab: Lab) -> None:
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        page.goto(
            f"{lab.url}/lab/workspaces/figure/tree/figure.ipynb?token={TOKEN}"
        )  # its own: the other test left a notebook open
        page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
        wait_until(lambda: lab.idle("figure.ipynb"), 60, "the kernel starts")
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        outputs = page.locator(".jp-OutputArea-output")
        for number in (0, 1):
            outputs.nth(number).locator(".modebar-btn").first.wait_for(state="attached", timeout=60_000)
        ours, naive = (
            [button.get_attribute("data-title") or "" for button in outputs.nth(number).locator(".modebar-btn").all()]
            for number in (0, 1)
        )
        browser.close()
    assert any("share" in title.lower() for title in naive), "a renderer without the button: this test proves nothing now"
    assert len(ours) > 3 and not [title for title in ours if "share" in title.lower()]
