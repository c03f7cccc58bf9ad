"""The page in a real Chromium: cells open, toggles work, nothing leaves the file, hostile text stays text, axe finds nothing serious."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_report import HOSTILE, frame, row

import ssmax_eval
from ssmax_eval.probes.needle.sections import prompts

pytestmark = pytest.mark.browser
PEERS = Path(__file__).parent.parent / ".ci" / "peers"
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1400,1000"
).split()


@pytest.fixture(scope="module")
def browser():
    """Return a headless Chromium that logs its console and its requests."""
    selenium = pytest.importorskip("selenium", reason="needs: pip install selenium")
    from selenium import webdriver

    assert selenium
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs Chromium and ChromeDriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


def masses(answer, length):
    """Return what an attention run's row has beside a needle run's: one layer of two heads."""
    one = [[answer, 0.05]]
    return {
        "mass_answer": one, "mass_needle": [[answer + 0.02, 0.06]], "log_odds": [[0.1, -2.0]], "mass_answer_mean": one,
        "mass_next": one, "mass_first": [[0.1, 0.5]], "mass_question": one, "entropy": one, "maximum": one,
        "maximum_at": [[4, 0]], "visible_keys": [length], "top_mass_answer": [answer, answer / 2],
        "top_mass_next": [answer, answer / 2], "haystack_nll": 5.0,
    }  # fmt: skip


def rows():
    """Return two models, two tasks, two lengths and depths, three prompts a cell, a failure, and text that must stay text."""
    out = []
    for model in ("plain", HOSTILE):
        for task in ("single", "multikey"):
            for length in (512, 2048):
                for depth in (0.0, 100.0):
                    for trial in range(3):
                        right = model == HOSTILE or (length == 512 and trial < 2)
                        changes = masses(0.9 if right else 0.2, length) if task == "single" else {}
                        tokens = {"expected_tokens": ["810", "6422"], "answer_ranks": [0, 0 if right else 7]}
                        tokens["predicted_tokens"] = ["810", "6422" if right else HOSTILE]
                        out.append(row(model, length, depth, trial, right, task=task, **tokens, **changes))
                        if not right:
                            out[-1]["predicted"] = "810" + HOSTILE
    # an older row of one prompt first, a failure before an answer, and text that a model wrote by itself
    old = {"prompt_sha256": "old", "trial": 4, "answer_ranks": [0, 5]}
    out.append(row("plain", 2048, 100.0, correct=False, **old, predicted="8109"))
    new = {**old, "expected_tokens": ["810", "6422"], "predicted_tokens": ["810", "9"]}
    out.append(row(HOSTILE, 2048, 100.0, correct=False, **new, predicted="8109"))
    wrote = {"prompt_sha256": "wrote", "trial": 5, "answer_ranks": None, "answer_nll": None}
    out.append(row("plain", 2048, 100.0, correct=False, **wrote, predicted="=I do not know", first_correct=False))
    out.append(row(HOSTILE, 2048, 100.0, **{**wrote, "expected_tokens": ["810", "6422"], "answer_ranks": [0, 0]}))
    failed = {"predicted": None, "predicted_tokens": None, "expected_tokens": None}
    out.append(row("plain", 2048, 100.0, 3, None, **failed))
    return out


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return ssmax_eval.report(frame(rows()), tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture
def opened(browser, page):
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(page.as_uri())
    return browser


def some(browser, selector):
    from selenium.webdriver.common.by import By

    return browser.find_elements(By.CSS_SELECTOR, selector)


def unfold(browser):
    """Open the prompts, which are there when they are asked for."""
    assert not some(browser, "#prompts table")[0].is_displayed()
    some(browser, "#all-prompts summary")[0].click()


def requests(browser):
    """Return the addresses of all requests since the log was last read."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def test_a_cell_opens_its_prompts_side_by_side(opened):
    cell = next(
        c for c in some(opened, "button[data-length='2048'][data-depth='100.0']") if "plain" in c.accessible_name
    )
    cell.click()
    assert cell.get_attribute("aria-pressed") == "true"
    assert opened.switch_to.active_element.get_attribute("id") == "prompts"
    lines = some(opened, "#prompts tbody tr")
    assert len(lines) == 6
    head = [each.text for each in some(opened, "#prompts thead th")]
    assert head[-2:] == ["plain", HOSTILE]
    first = [each.text for each in some(opened, "#prompts tbody tr:first-child td.answer")]
    assert "tokens right" in first[0]
    assert "not attended" in first[0]
    assert "r7" in first[0]
    assert "right" in first[1]
    assert "answer 90%" in first[1]
    text = lambda n: [each.text for each in some(opened, f"#prompts tbody tr:nth-child({n}) td.answer")]  # noqa: E731
    assert text(4) == ["out of memory", "–"]
    assert "8109 ranks 0 5" in text(5)[0]  # no tokens are made up for it
    assert "r5" in text(5)[1]
    assert text(6)[0] == "wrong\n=I do not know"


def test_a_link_to_a_cell_opens_it_and_text_is_searched(opened, page):
    chosen = some(opened, "button[data-length='2048']")[0]
    chosen.click()
    link = opened.current_url
    assert link.endswith(f"#cell/{chosen.get_attribute('data-task')}/2048/{chosen.get_attribute('data-depth')}")
    opened.get("about:blank")
    opened.get(link)
    pressed = some(opened, "button[data-length][aria-pressed=true]")
    assert [each.get_attribute("data-length") for each in pressed] == ["2048"]
    assert some(opened, "#all-prompts")[0].get_attribute("open")
    search = some(opened, "#filter-text")[0]
    search.send_keys("no such text")
    assert some(opened, "#count")[0].text.startswith("0 prompts")
    opened.get(page.as_uri())
    unfold(opened)


def test_filters_and_sorting(opened):
    from selenium.webdriver.support.ui import Select

    unfold(opened)
    pick = {name: Select(some(opened, f"#filter-{name}")[0]) for name in ("task", "length", "depth", "result")}
    count = lambda: some(opened, "#count")[0].text  # noqa: E731
    assert count() == "15 prompts"
    pick["length"].select_by_value("512")
    assert count() == "6 prompts"
    pick["result"].select_by_value("differ")
    assert count() == "2 prompts"
    pick["task"].select_by_visible_text("multikey (one of 1 numbers), in generated prose, each prompt its own haystack")
    pick["length"].select_by_value("")
    pick["result"].select_by_value("wrong")
    assert count() == "8 prompts"
    lengths = lambda: [each.text for each in some(opened, "#prompts tbody tr td:first-child")]  # noqa: E731
    assert lengths() == sorted(lengths(), key=lambda text: int(text.replace(",", "")))
    some(opened, "#prompts th button")[0].click()
    assert lengths()[0] == "2,048"
    assert some(opened, "#prompts th")[0].get_attribute("aria-sort") == "descending"


def test_models_can_be_hidden(opened):
    box = some(opened, "input[data-series]")[1]
    key = box.get_attribute("data-series")
    everywhere = some(opened, f".{key}")
    assert {each.tag_name for each in everywhere} >= {"div", "tr", "p", "g"}  # cards, tables, verdict, figures
    unfold(opened)
    box.click()
    assert not any(each.is_displayed() for each in some(opened, f".{key}"))
    assert [each.text for each in some(opened, "#prompts thead th")][-1] == "plain"
    box.click()
    assert some(opened, f".card.{key}")[0].is_displayed()


def test_the_keyboard_reaches_a_cell_and_opens_it(opened):
    from selenium.webdriver.common.keys import Keys

    cell = some(opened, "button[data-length]")[0]
    for _ in range(16):
        opened.switch_to.active_element.send_keys(Keys.TAB)
        if opened.switch_to.active_element == cell:
            break
    assert opened.switch_to.active_element == cell
    cell.send_keys(Keys.ENTER)
    assert len(some(opened, "#prompts tbody tr")) == 3


def test_hostile_text_stays_text_and_nothing_leaves_the_file(opened, page):
    for cell in some(opened, "button[data-length='2048']")[:4]:
        cell.click()
    for details in some(opened, "summary"):
        details.click()
    assert not some(opened, "main img")
    assert opened.execute_script("return document.scripts.length") == 2
    asked = {url for url in requests(opened) if not url.startswith(("blob:", "data:"))}
    assert asked == {page.as_uri()}
    assert [entry for entry in opened.get_log("browser") if entry["level"] != "INFO"] == []


def test_downloads_are_what_they_say(opened):
    opened.execute_script(
        "window.saved = []; URL.createObjectURL = blob => { window.saved.push(blob); return 'blob:none'; };"
        "HTMLAnchorElement.prototype.click = function () {};"
    )
    unfold(opened)
    some(opened, "#csv")[0].click()
    read = "const done = arguments[0]; window.saved.pop().text().then(done)"
    import io

    import pandas as pd

    table = pd.read_csv(io.StringIO(opened.execute_async_script(read)))
    expected = frame(rows())
    assert len(table) == len(expected)
    assert table["correct"].sum() == expected["correct"].sum()
    assert table["correct"].isna().sum() == 1
    assert set(table["series"]) == {"plain", HOSTILE}
    assert "'=I do not know" in set(table["predicted"])  # a spreadsheet does not run it
    assert table["answer_ranks"].isna().sum() == 2
    buttons = some(opened, "figure[data-name='causes-01'] button")
    assert [each.text for each in buttons] == ["SVG", "PNG"]
    buttons[0].click()
    assert opened.execute_async_script(read).startswith("<svg")
    buttons[1].click()
    wait = (
        "const done = arguments[0]; const look = () => window.saved.length ? window.saved.pop().slice(1, 4).text()"
        ".then(done) : setTimeout(look, 50); look()"
    )
    assert opened.execute_async_script(wait) == "PNG"


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, width, scheme):
    axe = PEERS / "axe-core" / "axe.min.js"
    if not axe.is_file():
        pytest.skip("needs axe-core: .ci/fetch-peers")
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    for summary in some(opened, "summary"):
        summary.click()
    # as the debugger, which the page's policy does not bind
    opened.execute_cdp_cmd("Runtime.evaluate", {"expression": axe.read_text()})
    run = "axe.run(document, {resultTypes: ['violations']}).then(r => JSON.stringify([r.violations, r.passes.length]))"
    found = opened.execute_cdp_cmd("Runtime.evaluate", {"expression": run, "awaitPromise": True})
    violations, passes = json.loads(found["result"]["value"])
    assert passes > 20
    serious = [
        (v["id"], [n["html"][:160] + n["failureSummary"][:200] for n in v["nodes"][:3]])
        for v in violations
        if v["impact"] in ("serious", "critical")
    ]
    assert serious == []
    wide = opened.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width  # what is wider scrolls in its own box
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_ten_models_fit_on_a_page_and_open_at_once(browser, tmp_path):
    """Ten models, 20 lengths, 21 depths, 20 prompts a cell: under 15 MB, and there in 2 seconds."""
    cells = [(n, d, t) for n in range(20) for d in range(21) for t in range(20)]
    of_one = frame([
        row(
            "model", 256 * (n + 1), 5.0 * d, t, needle="The special magic Rome number is: 8106422.",
            question="What is the special magic Rome number? The special magic Rome number is:", answer_ranks=[0] * 6 + [4],
            expected_tokens=list("8106422"), predicted_tokens=list("8106429"), prompt_sha256=f"{n:02}{d:02}{t:02}" * 10,
        )
        for n, d, t in cells
    ])  # fmt: skip
    n, d, t = np.array(cells).T
    made = pd.concat([
        of_one.assign(
            model=f"model-{m}", correct=pd.array((m + n + d + t) % 3 > 0, "boolean"),
            predicted=np.where((m + n + d + t) % 3 > 0, "8106422", "8106429"),
            answer_nll=0.001 * (m + 7 * n + 13 * d + 17 * t) + 0.123,
        )
        for m in range(10)
    ], ignore_index=True)  # fmt: skip
    page = ssmax_eval.report(made, tmp_path / "big.html")
    assert page.stat().st_size < 15e6
    loaded = []
    for _ in range(3):  # the best of three: what else the machine does is not the page's
        browser.get(page.as_uri())
        loaded.append(browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd"))
    assert min(loaded) < 2000, loaded
    assert len(some(browser, "button[data-length]")) == 10 * 20 * 21
    unfold(browser)
    assert "8,400 prompts" in some(browser, "#count")[0].text


def test_a_page_of_some_prompts_opens_its_cells_and_says_so(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "BUDGET", 3_000)
    made = [
        row(model, length, depth, trial, trial != 7 or model == "b", prompt_sha256=f"{length}/{depth}/{trial}")
        for length in (512, 2048) for depth in (0.0, 100.0) for trial in range(40) for model in "ab"
    ]  # fmt: skip
    page = ssmax_eval.report(frame(made), tmp_path / "some.html")
    browser.get(page.as_uri())
    said, kept = some(browser, "#prompts strong")[0].text, len(some(browser, "#prompts tbody tr"))
    assert said.startswith(f"{kept} of 160 prompts are on this page")
    assert 8 < kept < 160
    for cell in some(browser, "button[data-length]"):
        cell.click()
        shown = some(browser, "#prompts tbody tr")
        assert len(shown) >= 2
        assert "40 prompts" in cell.accessible_name
        assert some(browser, "#count")[0].text == f"{len(shown)} prompts on this page"
        assert "7" in [
            each.text for each in some(browser, "#prompts tbody td:nth-child(3)")
        ]  # on which the models differ
    assert some(browser, "#csv")[0].text == "Rows on this page as CSV"
