"""Figures stay on this machine: no page and no notebook shows plotly's button that sends their data to a cloud."""

import ast
import re
import shutil
from pathlib import Path

import optuna
import pytest

from criteria_hpo.core.figures import Figure
from criteria_hpo.drawing.charts import Axis, Bars, Chart, Panel
from criteria_hpo.plotting.plot_data import PLOTS
from criteria_hpo.plotting.plots import save_chart, save_plots

ROOT = Path(__file__).resolve().parent.parent
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SENT = re.compile(r'"showSendToCloud":\s*false')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every plot of a small study, a figure that is no study's, and one as plotly writes it unasked."""
    plots, study = tmp_path_factory.mktemp("plots"), optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(6):
        trial = study.ask()
        value = trial.suggest_float("learning_rate", 1e-6, 1e-4, log=True) * 1e4
        if number % 2:
            value += trial.suggest_float("aug_prob", 0.1, 0.5)
        trial.report(value, 1)
        study.tell(trial, value)
    assert (save_plots(study, plots).note == "").all()
    figure = Figure({"data": [{"type": "bar", "y": [1, 2]}]})
    save_chart(
        Chart("Data", "1 and 2 pairs.", (Panel(Axis(), Axis("pairs"), (Bars([0, 1], [1, 2], upright=True),)),)), plots, "data"
    )
    (plots / "naive.html").write_text(figure.to_html(include_plotlyjs="directory"))
    return plots


def test_every_page_that_is_written_says_no(folder: Path) -> None:
    pages = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.html")}
    assert set(pages) == {*PLOTS, "data", "naive"}
    assert {name for name, text in pages.items() if not SENT.search(text)} == {"naive"}


@pytest.mark.skipif(BROWSER is None, reason="no browser on the path")
def test_no_page_shows_the_button(folder: Path) -> None:
    """The naive page does, or this test would prove nothing."""
    playwright = pytest.importorskip("playwright.sync_api")
    shown = {}
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page()
        asked = []
        tab.on("request", lambda request: asked.append(request.url))
        for path in sorted(folder.glob("*.html")):
            tab.goto(path.as_uri())
            tab.locator(".modebar-btn").first.wait_for(state="attached", timeout=60_000)
            shown[path.stem] = [button.get_attribute("data-title") for button in tab.locator(".modebar-btn").all()]
        browser.close()
    assert {name for name, titles in shown.items() if any("share" in (title or "").lower() for title in titles)} == {"naive"}
    assert all(len(titles) > 3 for titles in shown.values()) and all(url.startswith("file:") for url in asked)


def calls_and_imports(source: str) -> set[str]:
    """Names of methods that are called, and what is imported from plotly."""
    nodes = list(ast.walk(ast.parse(source)))
    called = {node.func.attr for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("plotly")]
    return called | {f"{node.module}.{alias.name}" for node in froms for alias in node.names}


@pytest.mark.parametrize("module", sorted(ROOT.glob("criteria_hpo/**/*.py")), ids=lambda path: path.stem)
def test_only_one_module_decides_how_a_figure_leaves(module: Path) -> None:
    found = calls_and_imports(module.read_text(encoding="utf-8"))
    leaving = {"to_html", "write_html", "get_plotlyjs", "plotly.graph_objects.Figure", "plotly.offline.get_plotlyjs", "plotly.io"}
    assert module.stem == "figures" or not found & leaving
