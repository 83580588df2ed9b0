"""Chromium (Debian's, headless), as the tests and `tests.screenshots` drive it, and what they measure in a page."""

import shutil
from typing import Any

import pytest
from selenium import webdriver

_CONTRAST = """
const channels = text => (text.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => {
    const part = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
};
const over = (front, back) => front.slice(0, 3).map((c, i) => c * (front[3] ?? 1) + back[i] * (1 - (front[3] ?? 1)));
const behind = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
        const style = getComputedStyle(at), colour = channels(style.backgroundColor);
        if (style.backgroundImage !== 'none') return null;
        layers.push(colour);
        if ((colour[3] ?? 1) === 1) break;
    }
    return layers.reverse().reduce((back, front) => over(front, back), [255, 255, 255]);
};
const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
let count = 0;
while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, style = getComputedStyle(element);
    if (!walker.currentNode.data.trim() || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    if (['STYLE', 'SCRIPT'].includes(element.tagName) || element.closest('[disabled], .hidden')) continue;
    const back = behind(element);
    if (!back) continue;
    const ink = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(over(channels(ink), back)), light(back)].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
    count += 1;
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)}: ${walker.currentNode.data.trim().slice(0, 60)} (${ink} on ${back})`);
}
return [count, found];
"""


def open_browser(width: int, height: int, dark: bool = False) -> webdriver.Chrome:
    """Chromium with a window of so many pixels; below 600 it is a phone. The test is skipped where it is not installed."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    words = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars")
    for word in (*words, f"--window-size={width},{height}"):
        options.add_argument(word)
    driver = shutil.which("chromedriver")
    if not options.binary_location or not driver:
        pytest.skip("Chromium is not installed: apt-get install chromium chromium-driver")
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    resize(browser, width, height)
    if dark:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    return browser


def resize(browser: webdriver.Chrome, width: int, height: int) -> None:
    """Set the window's size, pixels; a window alone is never narrower than 500."""
    metrics: dict[str, Any] = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def low_contrast(browser: webdriver.Chrome) -> tuple[int, list[str]]:
    """How many visible texts were measured, and those whose contrast with what is behind them is below 4.5 (WCAG 2, AA)."""
    count, found = browser.execute_script(_CONTRAST)
    return int(count), list(found)
