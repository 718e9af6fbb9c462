"""What tests ask of a page in the browser, without importing Selenium."""

import time
from collections.abc import Callable
from typing import Any


def wait(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Return what the condition gives as soon as it holds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)
    return value


def drawn_card(page: Any, number: int = 1) -> str:
    """Bring a card into sight, and return its selector once it is drawn."""
    card = f"#cards > li:nth-child({number})"
    page.execute_script("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", card)
    wait(lambda: texts(page, f"{card}[data-drawn]"))
    return card


def texts(page: Any, selector: str) -> list[str]:
    """The texts of all elements that a CSS selector finds."""
    return page.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((found) => found.textContent.trim())", selector
    )
