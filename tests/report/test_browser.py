"""The page in a real browser: pictures load, nothing is asked for, nothing is complained of."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
# Relative luminance and contrast as WCAG 2.2 defines them, over every element with text of its own.
LOW_CONTRAST = """
const channel = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const numbers = text => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const ground = element => {
  for (let each = element; each; each = each.parentElement) {
    const colour = numbers(getComputedStyle(each).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
};
const owns = element => [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
const read = [...document.querySelectorAll('body *')].filter(owns);
return read.flatMap(element => {
  const style = getComputedStyle(element);
  const ink = element.closest('svg') ? style.fill : style.color;
  const [a, b] = [light(numbers(ink)), light(ground(element))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  return ratio < 4.5 ? [`${element.textContent.trim()}: ${ratio.toFixed(2)}`] : [];
});
"""


def _installed(*names: str) -> str:
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail(f"{names[0]} is not installed; run: apt-get install chromium chromium-driver")
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A fresh headless Chromium that logs its console and every request."""
    options = ChromeOptions()
    options.binary_location = _installed("chromium", "chromium-browser", "google-chrome")
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(_installed("chromedriver")))
    yield driver
    driver.quit()


def _open(browser: Chrome, page: Path, width: int = 1280, theme: str = "light") -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    browser.get(page.as_uri())


def _requests(browser: Chrome) -> list[str]:
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event for event in events if event["method"] == "Network.requestWillBeSent"]
    return [event["params"]["request"]["url"] for event in sent]


@pytest.mark.parametrize(("fixture", "pictures"), [("image_page", 3), ("plane_page", 0)])
def test_pictures_load_and_no_request_leaves(browser: Chrome, fixture: str, pictures: int, request):
    page = request.getfixturevalue(fixture)
    _open(browser, page)
    verdict = json.loads((page.parent / "certificate.json").read_text())["verdict"]
    assert verdict in browser.execute_script("return document.body.textContent")
    widths = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert len(widths) == pictures and all(widths)
    assert browser.execute_script("return document.querySelectorAll('svg').length") >= 7
    others = [url for url in _requests(browser) if not url.startswith("data:")]
    assert others == [page.as_uri()]
    fetched = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert not [url for url in fetched if not url.startswith("data:")]
    assert browser.get_log("browser") == []


def test_points_inside_figures_load(browser: Chrome, plane_page: Path):
    _open(browser, plane_page)
    sizes = browser.execute_async_script("""
        const done = arguments[0];
        const sources = [...document.querySelectorAll('svg image')].map(i => i.href.baseVal);
        Promise.all(sources.map(source => {
            const image = new Image();
            image.src = source;
            return image.decode().then(() => image.naturalWidth);
        })).then(done, error => done(String(error)));
    """)
    assert len(sizes) == 2 and all(size > 200 for size in sizes)


def test_the_policy_stops_what_a_page_might_ask_for(
    browser: Chrome, image_page: Path, tmp_path: Path
):
    page, other = tmp_path / "page.html", tmp_path / "other.png"
    other.write_bytes(b"")
    text = image_page.read_text()
    hostile = f'<script>document.title = "run"</script><img src="{other.as_uri()}">'
    page.write_text(text.replace("<main>", f"<main>{hostile}"))
    _open(browser, page)
    assert browser.title != "run"
    complaints = " ".join(entry["message"] for entry in browser.get_log("browser"))
    assert "script-src" in complaints and "img-src" in complaints


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("fixture", ["image_page", "plane_page"])
def test_text_stands_out_from_its_ground(browser: Chrome, fixture: str, theme: str, request):
    _open(browser, request.getfixturevalue(fixture), theme=theme)
    assert browser.execute_script(LOW_CONTRAST) == []


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_never_scrolls_sideways(browser: Chrome, image_page: Path, width: int):
    _open(browser, image_page, width=width)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_figures_and_pictures_have_names_and_ids_are_unique(browser: Chrome, image_page: Path):
    _open(browser, image_page)
    unnamed = browser.execute_script(
        "return [...document.querySelectorAll('img:not([alt]), svg:not([aria-label])')].length"
    )
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    levels = browser.execute_script(
        "return [...document.querySelectorAll('h1,h2,h3')].map(h => h.tagName)"
    )
    assert unnamed == 0
    assert ids and len(ids) == len(set(ids))
    assert levels == ["H1", *["H2"] * 8]
