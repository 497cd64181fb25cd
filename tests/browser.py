"""Open pages from files in a real browser: Chromium, driven by Playwright."""
import contextlib
import shutil
from pathlib import Path

import pytest

NAMES = 'chromium', 'chromium-browser', 'google-chrome'
# Let Chromium run as root, and let it not connect to anything by itself.
FLAGS = ('--no-sandbox --disable-gpu --disable-quic --no-first-run '
         '--disable-background-networking --disable-component-update --disable-sync '
         '--autoplay-policy=no-user-gesture-required').split()
PHONE = {'width': 360, 'height': 740}
DESKTOP = {'width': 1200, 'height': 900}


@contextlib.contextmanager
def launched():
    """Start Chromium, and end it after the block. Skip the test if there is none."""
    playwright = pytest.importorskip('playwright.sync_api', reason='Playwright is not installed')
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if not program:
        pytest.skip('there is no Chromium: apt-get install chromium')
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


class Tabs:
    """Opens pages. Notes the addresses that they ask for, and their errors."""

    def __init__(self, browser):
        self.browser, self.opened, self.asked, self.errors = browser, [], [], []

    def open(self, path, size=DESKTOP):
        """Open a file as a page, and wait until it is loaded."""
        tab = self.browser.new_page(viewport=size)
        self.opened.append(tab)
        tab.on('request', lambda request: self.asked.append(request.url))
        tab.on('pageerror', lambda error: self.errors.append(str(error)))
        tab.on('console', lambda message: self.errors.append(message.text)
               if message.type == 'error' else None)
        tab.on('dialog', lambda dialog: (self.errors.append(dialog.message), dialog.dismiss()))
        tab.goto(Path(path).absolute().as_uri())
        return tab

    def close(self):
        """Close the pages. Fail if one of them has asked the network for anything."""
        for tab in self.opened:
            tab.close()
        assert not [url for url in self.asked if not url.startswith(('file:', 'data:'))]


def wait_for_sound(tab, number=0):
    """Wait until a page's player of this number has read its sound; return the seconds of sound."""
    tab.wait_for_function('n => document.querySelectorAll("audio")[n].readyState > 0', arg=number)
    return tab.evaluate('n => document.querySelectorAll("audio")[n].duration', number)
