"""A real browser without a screen, and a page that it has opened."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tools.reporting.drawn import drawn_pictures, write_drawn


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Chromium under Selenium; tests that ask for it are skipped where one of them is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs Selenium: pip install selenium")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1400,1000"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))  # with its path, Selenium asks the net for none
    chrome.set_page_load_timeout(60)
    yield chrome
    chrome.quit()


@pytest.fixture
def clean(chromium: Any) -> Iterator[Any]:
    """The browser; in the end the test fails if the page logged an error, or asked for anything but itself."""
    for kind in ("browser", "performance"):
        chromium.get_log(kind)
    yield chromium
    logged = [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    assert not logged, logged
    messages = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    pages = {url for url in asked if not url.startswith("data:")}
    assert len(pages) == 1 and all(url.startswith("file:") for url in pages), pages


@pytest.fixture(scope="session")
def drawn_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return write_drawn(folder / "report.html", drawn_pictures(folder))


@pytest.fixture
def page(clean: Any, drawn_page: Path) -> Any:
    """The browser with the drawn page, opened anew."""
    clean.get(drawn_page.as_uri())
    return clean
