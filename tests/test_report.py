"""The report and the plots of a study: valid, self-contained, the same numbers on a page and in a picture, drawn in time."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from html import escape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from bleach._vendor import html5lib
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from criteria_hpo.benchmark.report import profile_chart, ratios_chart
from criteria_hpo.comparing.compare import compare
from criteria_hpo.comparing.examples import store_examples
from criteria_hpo.config.load import identity_settings, load_config
from criteria_hpo.config.paths import study_dir
from criteria_hpo.config.schema import Config
from criteria_hpo.core.figures import embedded_library
from criteria_hpo.drawing.charts import Chart, Line, Points
from criteria_hpo.drawing.palette import DARK, LIGHT
from criteria_hpo.drawing.print import print_figure
from criteria_hpo.drawing.web import web_figure
from criteria_hpo.paper.examples import example_tables, store_evaluated
from criteria_hpo.paper.facts import read_facts
from criteria_hpo.paper.study_figures import write_figures
from criteria_hpo.plotting.plot_data import PLOTS
from criteria_hpo.plotting.plots import save_chart, save_plots, study_charts
from criteria_hpo.plotting.score_charts import four_scores_chart, reliability_chart
from criteria_hpo.pruner_lab.compare import choice_chart
from criteria_hpo.pruner_lab.simulation import ASKED, AT, DISTANCES, patience_chart
from criteria_hpo.reporting.study_report import write_report
from criteria_hpo.reporting.tables import evaluation_charts
from criteria_hpo.results.stored import stored_study

ROOT = Path(__file__).resolve().parent.parent
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TABLE = ROOT / "studies" / "gallery" / "replay_table"
SHARES = {"weight_decay": 0.1, "warmup_ratio": 0.2, "hidden_dropout": 0.3, "attention_dropout": 0.3, "classifier_dropout": 0.5}
RANGES: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-6, 1e-1, log=True),
    "batch_size": CategoricalDistribution([16, 32, 64, 128]),
    "focal_gamma": CategoricalDistribution([0.0, 1.0, 2.0, 3.0]),
    "aug_enable": CategoricalDistribution([False]),
    **{name: FloatDistribution(0.0, high) for name, high in SHARES.items()},
}
MORE: dict[str, BaseDistribution] = {"aug_prob": FloatDistribution(0.1, 0.5)}


def recorded_study(n_trials: int) -> optuna.Study:
    """A study of settings and fold scores that were really trained (150 of them, varied a little), with pruning invented."""
    settings = [json.loads(line) for line in (TABLE / "settings.jsonl").read_text().splitlines()]
    rows = [line.split(",") for line in (TABLE / "folds.csv").read_text().splitlines()[1:]]
    scores = {(int(row[0]), int(row[2])): float(row[4]) for row in rows if row[1] == "0"}  # the last epoch stays
    first, rng, trials = min(fold for _, fold in scores), np.random.default_rng(0), []
    for number in range(n_trials):
        row = int(rng.integers(len(settings)))
        params = {name: settings[row][name] for name in RANGES}
        for name, high in SHARES.items():
            params[name] = float(np.clip(params[name] + 0.02 * high * rng.normal(), 0, high))
        ranges = RANGES | (MORE if number % 4 == 0 else {})
        params |= {"aug_prob": float(rng.uniform(0.1, 0.5))} if number % 4 == 0 else {}
        folds = [scores[row, first + fold] + 0.002 * rng.normal() for fold in range(5)]
        stop = 1 if number > 30 and folds[0] < 0.69 else 5
        trials.append(
            create_trial(
                params=params,
                distributions=ranges,
                value=float(np.mean(folds[:stop])),
                state=TrialState.COMPLETE if stop == 5 else TrialState.PRUNED,
                intermediate_values={fold: float(np.mean(folds[:fold])) for fold in range(1, stop + 1)},
                user_attrs={"fold_scores": folds[:stop], "slot": number, "seconds": 30.0}
                | ({"prune_reason": "Hyperband at fold 1"} if stop == 1 else {}),
            )
        )
    study = optuna.create_study(direction="maximize", study_name="recorded")
    study.set_user_attr("metric", "average_precision")
    study.add_trials(trials)
    return study


@pytest.fixture(scope="module")
def study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return recorded_study(200)


@pytest.fixture(scope="module")
def charts(study: optuna.Study) -> dict[str, Chart]:
    made, notes = study_charts(study)
    assert not notes
    return made


def config_of(place: Path) -> Config:
    return load_config([f"studies_dir={place}", "hpo.study_name=recorded", "n_trials=200", "hpo.metric=average_precision"])


@pytest.fixture(scope="module")
def report(study: optuna.Study, charts: dict[str, Chart], tmp_path_factory: pytest.TempPathFactory) -> Path:
    cfg = config_of(tmp_path_factory.mktemp("studies"))
    study.set_user_attr("identity", identity_settings(cfg))
    study_dir(cfg).mkdir()
    machine = {"cpu_count": 2, "machine": "x86_64", "gpus": []}
    about = {
        "config": cfg.model_dump(mode="json"),
        "hardware": machine,
        "threads": 2,
        "seed": 42,
        "packages": {},
        "git_commit": "0",
    }
    (study_dir(cfg) / "manifest.json").write_text(json.dumps(about))
    (study_dir(cfg) / "evaluation").mkdir()
    for name, table in example_tables("average_precision").items():
        table.to_csv(study_dir(cfg) / "evaluation" / f"{name}.csv", index=False)
    save_plots(study, study_dir(cfg) / "plots", (charts, {}))
    return write_report(cfg, study, charts)


class Outline(HTMLParser):
    """What a screen reader goes through: elements with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def checked(path: Path) -> Outline:
    """Fail unless a page parses strictly, with title, language, ids used once, headings in order, and headers with a scope."""
    text = path.read_text(encoding="utf-8").replace(embedded_library(), "")
    html5lib.HTMLParser(strict=True).parse(text)
    page = Outline(text)
    assert (
        page.named("html") == [{"lang": "en"}]
        and len(page.named("title")) == len(page.named("h1")) == len(page.named("main")) == 1
    )
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.named("th"))
    assert all(attributes.get("alt") for attributes in page.named("img"))
    drawn = [attributes for attributes in page.named("div") if attributes.get("class") == "chart"]
    assert drawn and all(a["role"] == "img" and re.search(r"\d", a["aria-label"] or "") and a["tabindex"] == "0" for a in drawn)
    targets = [(a["href"] or "").removeprefix("#") for a in page.named("a")]
    assert set(targets) <= set(ids)
    return page


def test_a_strict_parser_sees_an_error() -> None:
    with pytest.raises(html5lib.html5parser.ParseError):
        html5lib.HTMLParser(strict=True).parse(
            "<!DOCTYPE html><html lang='en'><head><title>a</title></head><body><p><table></p></body></html>"
        )


def test_pages_are_valid_and_accessible(report: Path) -> None:
    page = checked(report)
    assert len([a for a in page.named("div") if a.get("class") == "chart"]) == len(PLOTS) + 1  # and the reliability
    checked(report.parent / "plots" / "history.html")
    for plot in PLOTS:
        sentence = (report.parent / "plots" / f"{plot}.txt").read_text().strip()
        assert re.search(r"\d", sentence) and sentence in report.read_text().replace("&lt;", "<").replace("&#x27;", "'")


def test_the_report_is_one_small_file_that_sends_nothing(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert report.stat().st_size < 15_000_000 and text.count(embedded_library()) == 1
    assert not re.search(r"plotly\.com|chart-studio|cdn\.plot\.ly", text) and '"showSendToCloud": false' in text
    page = checked(report)
    assert not [a for _, a in page.elements if (a.get("src") or "#").startswith("http") or (a.get("href") or "#")[0] != "#"]
    (policy,) = [a["content"] or "" for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "form-action 'none'" in policy and "connect-src" not in policy
    assert "@media print" in text and "prefers-color-scheme: dark" in text


def test_page_and_picture_have_the_same_numbers(charts: dict[str, Chart]) -> None:
    for name, chart in charts.items():
        web, drawn = web_figure(chart), print_figure(chart)
        traces = iter(web.data)
        for panel, axes in zip(chart.panels, drawn.axes):
            mine = [next(traces) for _ in panel.marks]
            lines = [t for t, mark in zip(mine, panel.marks) if isinstance(mark, Line)]
            points = [t for t, mark in zip(mine, panel.marks) if isinstance(mark, Points)]
            for trace, line in zip(lines, axes.lines, strict=name != "importances"):
                np.testing.assert_array_equal(np.array([trace.x, trace.y], dtype=float), np.array(line.get_data(), dtype=float))
            dots = [c.get_offsets() for c in axes.collections if type(c).__name__ == "PathCollection"]
            for trace, there in zip(points, dots, strict=True):
                np.testing.assert_array_equal(np.column_stack([trace.x, trace.y]).astype(float), np.asarray(there))
            bars = [value for t in mine if t.type == "bar" for value in (t.y if t.orientation == "v" else t.x)]
            sizes = [patch.get_height() if mine[0].orientation == "v" else patch.get_width() for patch in axes.patches]
            np.testing.assert_allclose(bars, sizes)
            assert axes.get_xscale() == ("log" if panel.x.log else "linear")


def test_rates_are_logarithmic_and_constants_left_out(charts: dict[str, Chart]) -> None:
    axes = {panel.x.title: panel.x.log for panel in charts["slice"].panels}
    assert axes["learning rate"] and not axes["hidden dropout"] and "augmentation" not in axes
    assert "learning_rate" not in str([chart.alt for chart in charts.values()])


def texts_of(chart: Chart) -> Iterator[str]:
    """Everything that a reader sees or hears of a chart."""
    yield from (chart.title, chart.alt, chart.note, *(name for name, _ in chart.named))
    for panel in chart.panels:
        yield panel.title
        for axis in (panel.x, panel.y):
            yield from (axis.title, *(label for _, label in axis.ticks))
        for mark in panel.marks:
            yield from (str(text) for text in getattr(mark, "hover", getattr(mark, "labels", ())))


def other_charts() -> dict[str, Chart]:
    """The charts that are not of a study's search, of invented numbers."""
    four = [
        ("winner", "search", 0.7, np.nan, np.nan),
        ("winner", "test", 0.6, 0.5, 0.7),
        ("default setting", "test", 0.5, 0.4, 0.6),
    ]
    bins = {"probability": [0.1, 0.9], "positive": [0.2, 0.8], "low": [0.1, 0.7], "high": [0.3, 0.9], "pairs": [30, 10]}
    ratios = pd.DataFrame({"ratio": [1.5], "low": [1.4], "high": [1.6]}, index=["Trainer"])
    rules = {"folds_saved": [0.0, 0.7], "regret": [0.0, 0.001], "expected_low": 0.0, "expected_high": 0.002, "lost": [0.0, 0.02]}
    return {
        "four_scores": four_scores_chart(pd.DataFrame(four, columns=["model", "score", "estimate", "low", "high"]), "macro_f1"),
        "reliability": reliability_chart(pd.DataFrame(bins).assign(model="winner", runs=1)),
        "ratios": ratios_chart({"deberta_base": ratios}),
        "profile": profile_chart({"deberta_base": {"now": {"forward": 0.3, "backward": 0.6, "optimiser": 0.1, "rest": 0.2}}}),
        "patience": patience_chart({(kind, n): np.linspace(0, 1, len(DISTANCES)) for kind in ASKED for n in AT}),
        "pruners": choice_chart(pd.DataFrame(rules, index=["none", "racing"])),
    }


def test_no_name_of_a_variable_reaches_a_reader(charts: dict[str, Chart], report: Path) -> None:
    for name, chart in (charts | other_charts()).items():
        assert not [text for text in texts_of(chart) if "_" in text], name
        assert re.search(r"\d", chart.alt), name
    shown = re.sub(r"<(script|style|pre).*?</\1>|<[^>]*>", " ", report.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.findall(r"\b(?:average_precision|learning_rate|p_holm|batch_size|\w+_dropout)\b", shown)


def test_all_colours_are_of_the_palette_and_so_have_a_dark_side(charts: dict[str, Chart]) -> None:
    """Their contrast and distance are checked beside the palette."""
    for name, chart in (charts | other_charts()).items():
        found = set(re.findall(r"#[0-9a-f]{6}\b|rgba?\([^)]*\)", str(web_figure(chart).to_json())))
        assert found and found <= set(LIGHT.values()), (name, found - set(LIGHT.values()))
    assert len(set(LIGHT.values())) == len(LIGHT) and LIGHT.keys() == DARK.keys()


def test_only_one_folder_draws() -> None:
    package, library = ROOT / "criteria_hpo", re.compile(r"^(?:from|import) (?:matplotlib|plotly)", re.MULTILINE)
    drawing = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if library.search(path.read_text())}
    assert drawing == {"core/figures.py", *(f"drawing/{name}.py" for name in ("picture_files", "print", "web"))}


def test_every_picture_has_its_sentence(report: Path, tmp_path: Path) -> None:
    """Of a search, of an evaluation, of a paper and of a comparison."""
    folder = report.parent / "plots"
    for name in (drawn := evaluation_charts(report.parent, "average_precision")):
        save_chart(drawn[name], folder, name)
    cfg = load_config([f"studies_dir={tmp_path}", "command=compare", "studies=[plain,augmented]"])
    store_examples(cfg)
    compare(cfg)
    evaluated = load_config([f"studies_dir={tmp_path}/paper"])
    store_evaluated(evaluated)
    write_figures(read_facts(evaluated), stored_study(evaluated), tmp_path / "paper" / "figures")
    pictures = [*folder.glob("*.png"), *tmp_path.rglob("*.png")]
    assert len(pictures) >= len(PLOTS) + len(drawn) + 1 + 4 and drawn
    for picture in pictures:
        sentence = picture.with_suffix(".txt").read_text(encoding="utf-8").strip()
        assert re.search(r"\d.*\.$", sentence), picture
        page = picture.with_suffix(".html")
        if page.exists():
            assert f"<figcaption>{escape(sentence)}</figcaption>" in page.read_text(encoding="utf-8"), picture
            checked(page)


def photograph(tab: Any) -> None:
    """Leave pictures of the report in test-results/, for somebody to look at: its top and the whole of it, light and dark."""
    folder = Path(__file__).resolve().parent.parent / "test-results"
    folder.mkdir(exist_ok=True)
    for look in ("light", "dark"):
        tab.evaluate("scrollTo(0, 0)")
        tab.set_viewport_size({"width": 1200, "height": 900})
        tab.screenshot(path=folder / f"report_{look}_top.png")
        tab.set_viewport_size({"width": 1200, "height": tab.evaluate("document.documentElement.scrollHeight")})
        tab.wait_for_function(f"[...document.querySelectorAll('.chart')].every((chart) => chart.dataset.drawn === '{look}')")
        tab.screenshot(path=folder / f"report_{look}_whole.png")
        tab.locator("#theme").click()


@pytest.mark.skipif(BROWSER is None, reason="no browser on the path")
def test_a_browser_draws_it_light_and_dark(report: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page(color_scheme="dark")
        problems: list[str] = []
        asked: list[str] = []
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(report.as_uri())
        tab.emulate_media(media="screen", color_scheme="dark")
        first = tab.locator("#chart_history")
        first.scroll_into_view_if_needed()
        first.locator(".modebar-btn").first.wait_for(state="attached", timeout=60_000)
        assert first.get_attribute("data-drawn") == "dark"
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
        buttons = [button.get_attribute("data-title") or "" for button in tab.locator(".modebar-btn").all()]
        tab.locator("#theme").click()
        assert first.get_attribute("data-drawn") == "light"
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        tab.set_viewport_size({"width": 360, "height": 700})  # a telephone: the panels stand below each other
        panels = tab.locator("#chart_slice")
        panels.scroll_into_view_if_needed()
        panels.locator(".main-svg").first.wait_for(state="attached", timeout=60_000)
        tab.wait_for_function("chart_slice._fullLayout.xaxis2.domain[1] === 1")
        assert tab.evaluate("chart_slice._fullLayout.yaxis2.domain[1] < chart_slice._fullLayout.yaxis.domain[0]")
        assert (
            tab.evaluate("chart_slice._fullLayout[`yaxis${chart_slice.dataset.panels}`].domain[0]") == 0
        )  # no empty panel below
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        names = tab.locator("#chart_importances")
        names.scroll_into_view_if_needed()
        names.locator(".ytick").first.wait_for(state="attached", timeout=60_000)
        boxes = [tick.bounding_box() for tick in names.locator(".ytick text").all()]
        lines = sorted((box["y"], box["y"] + box["height"]) for box in boxes)
        assert len(lines) > 3 and all(low <= below + 1 for (_, low), (below, _) in pairwise(lines))  # no name over another
        tab.set_viewport_size({"width": 688, "height": 900})  # A4 without its margins
        tab.emulate_media(media="print")
        tab.evaluate("dispatchEvent(new Event('beforeprint'))")
        tab.wait_for_function("document.querySelectorAll('.chart .main-svg').length > 0 && chart_timeline._fullLayout")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 688  # wider, and the browser shrinks the page
        tab.emulate_media(media="screen")
        photograph(tab)
        browser.close()
    assert not problems and buttons and not any("share" in title.lower() or "cloud" in title.lower() for title in buttons)
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)


@pytest.mark.parametrize(
    ("n_trials", "seconds"), [pytest.param(200, 40), pytest.param(2_000, 120, marks=pytest.mark.slow)], ids=["200", "2000"]
)
def test_all_is_drawn_in_time(n_trials: int, seconds: int, tmp_path: Path) -> None:
    """Processor seconds, since other work may share the cores."""
    study, cfg = recorded_study(n_trials), config_of(tmp_path)
    study.set_user_attr("identity", identity_settings(cfg))
    begin = time.process_time()
    charts, notes = study_charts(study)
    assert (save_plots(study, tmp_path / "plots", (charts, notes))["note"] == "").all() and not notes
    path = write_report(cfg, study, charts)
    spent = time.process_time() - begin
    print(f"{n_trials:,} trials: {spent:.1f} s of CPU, {path.stat().st_size / 1e6:.1f} MB")
    assert spent < seconds and path.stat().st_size < 15_000_000
