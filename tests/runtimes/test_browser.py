"""The artifact in onnxruntime-web, in a real Chromium: the page of ``examples/browser``, asked as people ask it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.runtimes.chromium import Page, chromium, page
from tests.runtimes.javascript import installed
from tests.runtimes.served import Served

ANSWERS = "[...document.querySelectorAll('.answer')]"
STATE = "document.body?.dataset.state"


@pytest.fixture(scope="module")
def address(served: Served) -> Iterator[str]:
    """The example's own server, with the base model and the artifact."""
    # The decoding loop is shared.
    installed("node")
    command = ["node", "serve.mjs", "--port", "0", str(served.base), str(served.artifact)]
    server = subprocess.Popen(command, cwd=installed("browser"), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    yield server.stdout.readline().strip()
    server.terminate()
    server.wait()


@pytest.fixture(scope="module")
def browser(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page, with both models loaded."""
    path = chromium()
    if path is None:
        pytest.skip("there is no Chromium here (Debian: apt-get install chromium)")
    with page(path, tmp_path_factory.mktemp("profile")) as opened:
        opened.resize(1100, 760)
        opened.go_to(address)
        opened.wait_for(f"{STATE} === 'ready' || {STATE} === 'failed'")
        assert opened.evaluate(STATE) == "ready", opened.evaluate("document.body.innerText")
        yield opened


@pytest.mark.parametrize("path", ["/%", "/models/base/%2e%2e%2fartifact/config.json", "/nothing", "/models/base/"])
def test_what_is_no_file_of_the_folders_is_not_found(address: str, path: str) -> None:
    with pytest.raises(HTTPError, match="404"):
        urlopen(address + path)
    with urlopen(f"{address}/models/base/config.json") as answer:
        assert answer.status == 200


def heard(browser: Page) -> list[list[int]]:
    """The tokens that the base model and the artifact have just answered."""
    browser.wait_for(f"{STATE} === 'answered'")
    tokens = browser.evaluate(f"{ANSWERS}.map((answer) => answer.dataset.tokens)")
    return [json.loads(one) for one in tokens]


def ask(browser: Page, text: str) -> list[list[int]]:
    browser.evaluate("document.querySelector('#prompt').value = ''; document.querySelector('#prompt').focus()")
    browser.write(text)
    browser.press("Enter", "\r")
    return heard(browser)


def test_both_models_answer_each_prompt(served: Served, browser: Page) -> None:
    for text, base, artifact in zip(served.texts, served.said["base"], served.expected, strict=True):
        assert ask(browser, text) == [base, artifact]
        shown = browser.evaluate(f"{ANSWERS}.map((answer) => answer.textContent)")
        assert shown == [served.text(base), served.text(artifact)]
    assert browser.errors == []


def test_answers_are_streamed(served: Served, browser: Page) -> None:
    browser.evaluate(
        f"""window.seen = {ANSWERS}.map((answer) => {{
            const pieces = [];
            new MutationObserver(() => pieces.push(answer.textContent)).observe(answer, {{ childList: true }});
            return pieces;
        }})"""
    )
    ask(browser, served.texts[0])
    pieces = browser.evaluate("seen[1]")
    said = served.text(served.expected[0])
    assert pieces[-1] == said
    assert len({piece for piece in pieces if piece and piece != said}) > 1


def test_suggestions_ask(browser: Page) -> None:
    browser.evaluate("document.querySelector('.suggestions button').click()")
    heard(browser)
    assert browser.evaluate("document.querySelector('#prompt').value") == browser.evaluate(
        "document.querySelector('.suggestions button').textContent"
    )


def test_nothing_comes_from_elsewhere(address: str, browser: Page) -> None:
    assert browser.requests
    assert all(request.startswith(address) for request in browser.requests)
    policy = browser.evaluate("fetch('/').then((response) => response.headers.get('content-security-policy'))")
    assert policy.startswith("default-src 'self'")


def test_it_can_be_used_by_keyboard_and_read_aloud(browser: Page) -> None:
    """Everything that takes input has a name, answers are announced, and Tab goes through in the order of reading."""
    unnamed = browser.evaluate(
        """[...document.querySelectorAll('input, button')].filter(
            (one) => !one.labels?.length && !one.textContent.trim()).length"""
    )
    assert unnamed == 0
    assert browser.evaluate(f"{ANSWERS}.every((answer) => answer.getAttribute('aria-live') === 'polite')")
    browser.evaluate("document.querySelector('#prompt').focus()")
    visited = []
    for _ in range(2):
        browser.press("Tab")
        visited.append(browser.evaluate("document.activeElement.textContent"))
    assert visited[0] == "Ask"
    assert visited[1] == browser.evaluate("document.querySelector('.suggestions button').textContent")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(browser: Page, dark: bool) -> None:
    browser.resize(360, 780, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    for selector in ("header p", ".card h2", ".answer", ".status", "button[type=submit]", ".suggestions button"):
        assert browser.contrast(selector) >= 4.5, selector
