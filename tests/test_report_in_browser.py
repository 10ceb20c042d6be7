"""The page in Chromium: nothing fails, every control works, everybody can read it."""

import shutil
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.report_pages import HOSTILE, Page

webdriver = pytest.importorskip(
    "selenium.webdriver", reason="selenium is not installed: pip install selenium"
)
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="Chromium is not there: apt install chromium chromium-driver"
)
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
# Every text's contrast with what is behind it, by WCAG 2.2, 1.4.3. Heat on a field of the matrix is a mixed colour.
CONTRASTS = """
const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
const rgba = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data]; };
const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
const light = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => sum + weight * linear(rgb[i] / 255), 0);
const behind = (element) => {
  const colour = rgba(getComputedStyle(element).backgroundColor);
  return colour[3] === 255 ? colour : behind(element.parentElement);
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node; (node = walker.nextNode()); ) {
  const element = node.parentElement, style = getComputedStyle(element);
  if (!node.data.trim() || ["SCRIPT", "TITLE", "OPTION", "NOSCRIPT"].includes(element.tagName)) continue;
  if (!element.getClientRects().length || element.disabled) continue;
  const ink = light(rgba(element.closest("svg") ? style.fill : style.color)), paper = light(behind(element));
  const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${node.data.trim().slice(0, 40)}`);
}
return found;
"""


@pytest.fixture(scope="module")
def browser() -> Iterator:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    chromium.set_script_timeout(30)
    yield chromium
    chromium.quit()


def look_at(
    browser, page: Page, *, width: int = 1280, height: int = 900, scheme: str = "light", media: str = ""
) -> None:
    """Open the page in a window of this size, in pixels; without gliding, which would move what is clicked."""
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    emulated = {"media": media, "features": [{"name": k, "value": v} for k, v in features.items()]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.path.as_uri())


def find(browser, selector: str):
    return browser.find_element(By.CSS_SELECTOR, selector)


def find_all(browser, selector: str) -> list:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def click(browser, element) -> None:
    """As a person does it: with the element in the middle of the window."""
    place = "arguments[0].scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'})"
    browser.execute_script(place, element)
    element.click()


@pytest.fixture(params=["single", "several"])
def page(request: pytest.FixtureRequest) -> Page:
    return request.getfixturevalue(f"{request.param}_report")


def test_it_opens_without_a_complaint_and_without_the_network(browser, page: Page) -> None:
    look_at(browser, page)
    assert browser.get_log("browser") == []
    loaded = "return performance.getEntriesByType('resource').map((each) => each.name.slice(0, 5))"
    assert set(browser.execute_script(loaded)) <= {"data:"}
    assert browser.execute_script("return [...document.images].every((image) => image.naturalWidth > 0)")


def test_names_that_try_to_be_code_are_words(browser, single_report: Page) -> None:
    look_at(browser, single_report)
    headers = [each.text for each in find_all(browser, "table.classes tbody th")]
    assert headers[: len(HOSTILE)] == list(HOSTILE)
    assert not find_all(browser, "img[src='x']")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_can_be_read(browser, page: Page, width: int, scheme: str) -> None:
    look_at(browser, page, width=width, scheme=scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    face = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert face == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 22, 26)")
    browser.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
    assert browser.execute_script(CONTRASTS) == []
    heights = (
        "return [...document.querySelectorAll('svg text')].map((text) => text.getBoundingClientRect().height)"
    )
    assert min(browser.execute_script(heights)) >= 10  # pixels


def test_what_a_screen_reader_is_told(browser, page: Page) -> None:
    look_at(browser, page)
    for landmark in ("main", "nav[aria-label]", "header", "footer"):
        assert len(find_all(browser, landmark)) == 1
    levels = [int(each.tag_name[1]) for each in find_all(browser, "h1, main h2, main h3, main h4")]
    assert len(find_all(browser, "h1")) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert not find_all(browser, "img:not([alt]), img[alt='']")
    assert not find_all(browser, "main table:not(:has(caption)), main table:not(:has(th[scope]))")
    assert not find_all(browser, "section:not([aria-labelledby]), svg:not([role=img]):not([aria-hidden])")
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert len(ids) == len(set(ids))
    for link in find_all(browser, "nav a, a.skip"):
        assert link.get_attribute("hash")[1:] in ids
    named = [each.get_attribute("aria-labelledby") for each in find_all(browser, "[aria-labelledby]")]
    assert set(named) <= set(ids)


def test_the_keyboard_sees_where_it_is(browser, single_report: Page) -> None:
    look_at(browser, single_report)
    browser.switch_to.active_element.send_keys(Keys.TAB)
    first = browser.switch_to.active_element
    assert first.text == "Skip to the content" and first.rect["x"] >= 0
    browser.switch_to.active_element.send_keys(Keys.TAB)
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.execute_script(outline) == "solid"


def test_a_field_of_the_matrix_shows_its_pictures(browser, single_report: Page) -> None:
    look_at(browser, single_report)
    cells = single_report.data["cells"]
    name = next(cell for cell, (n, _, _) in cells.items() if n > 1)
    true, predicted = name.split(",")
    field = find(browser, f"button[data-cell='{name}']")
    click(browser, field)
    there = [index for index in cells[name][2] if str(index) in single_report.data["pictures"]]
    shown = [int(each.get_attribute("data-picture")) for each in find_all(browser, "#cell button.picture")]
    assert shown == there
    assert f"{cells[name][0]:,} of" in find(browser, "#cell").text
    assert find(browser, "#true").get_attribute("value") == true
    assert field.get_attribute("aria-pressed") == "true"
    assert len(find_all(browser, "#matrix button[tabindex='0']")) == 1
    field.send_keys(Keys.ARROW_DOWN if int(true) < 9 else Keys.ARROW_UP)
    moved = browser.switch_to.active_element.get_attribute("data-cell").split(",")
    assert abs(int(moved[0]) - int(true)) == 1 and moved[1] == predicted
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert find(browser, "#true").get_attribute("value") == moved[0]


@pytest.mark.parametrize(("width", "height"), [(390, 700), (800, 600), (1280, 900)])
def test_the_lists_choose_a_field_and_the_unit_changes(
    browser, single_report: Page, width: int, height: int
) -> None:
    look_at(browser, single_report, width=width, height=height)
    Select(find(browser, "#true")).select_by_value("4")
    Select(find(browser, "#predicted")).select_by_value("4")
    assert find(browser, "button[data-cell='4,4']").get_attribute("aria-pressed") == "true"
    field = find(browser, "button[data-cell='4,4']")
    counted = field.text
    click(browser, find(browser, "label:has(input[value=rates])"))
    assert find(browser, "input[value=rates]").is_selected()
    rate = f"{100 * single_report.data['cells'].get('4,4', [0, 0])[1]:.1f}"
    assert field.text == (rate if width < 544 else f"{rate} %")  # a phone has no room for the sign
    assert width >= 544 or find(browser, "#matrix").size["width"] <= width  # all of it is seen
    find(browser, "input[value=rates]").send_keys(Keys.ARROW_LEFT)
    assert find(browser, "input[value=counts]").is_selected()
    assert field.text == counted


def test_a_picture_opens_with_its_heat_maps_steps_on_and_closes(browser, page: Page) -> None:
    look_at(browser, page)
    first, second = [each for each in find_all(browser, "ul.pictures") if each.is_displayed()][
        -1
    ].find_elements(By.CSS_SELECTOR, "button.picture")[:2]
    first.send_keys(Keys.ENTER)
    dialog = find(browser, "dialog")
    assert dialog.get_attribute("open")
    WebDriverWait(browser, 10).until(lambda _: len(find_all(browser, "dialog canvas")) >= 2)
    index = first.get_attribute("data-picture")
    assert f"Picture {index}:" in find(browser, "#picture-title").text
    answers = page.data["pictures"][index]["r"]
    assert len(find_all(browser, "dialog canvas")) == 1 + sum(len(each["m"]) for each in answers)
    assert all(
        "Grad-CAM for" in each.get_attribute("aria-label")
        for each in find_all(browser, "dialog canvas.smooth")
    )
    assert len(find_all(browser, "dialog table")) == len(page.data["runs"])
    dialog.send_keys(Keys.ARROW_RIGHT)
    assert f"Picture {second.get_attribute('data-picture')}:" in find(browser, "#picture-title").text
    click(browser, find(browser, "#before"))
    assert f"Picture {index}:" in find(browser, "#picture-title").text
    assert not find(browser, "#before").is_enabled()
    dialog.send_keys(Keys.ESCAPE)
    assert not dialog.get_attribute("open")
    assert browser.switch_to.active_element == first
    assert browser.get_log("browser") == []


def test_another_pair_of_runs(browser, several_report: Page) -> None:
    look_at(browser, several_report)
    assert [each.is_displayed() for each in find_all(browser, ".pair")] == [True, False, False]
    Select(find(browser, "#pair")).select_by_value("2")
    assert [each.is_displayed() for each in find_all(browser, ".pair")] == [False, False, True]


def test_on_paper_every_number_is_there_and_no_control(browser, single_report: Page) -> None:
    look_at(browser, single_report, media="print", scheme="dark")
    assert (
        browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        == "rgb(255, 255, 255)"
    )
    assert not any(each.is_displayed() for each in find_all(browser, "nav, fieldset, select"))
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert all(each.get_attribute("open") for each in find_all(browser, ".chart details"))
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert not any(each.get_attribute("open") for each in find_all(browser, "details"))
