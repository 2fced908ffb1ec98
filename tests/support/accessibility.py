"""What axe-core finds on a page that a browser shows."""

import json
from functools import cache
from importlib.resources import files

from support.browser import Browser

SERIOUS = ("serious", "critical")
"""Impacts that count."""


@cache
def _axe() -> str:
    return (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")


def serious_findings(browser: Browser) -> list[str]:
    """Findings of serious or critical impact as ``rule: element``; the page's policy has to be bypassed."""
    browser.evaluate(_axe() + "; null")
    answer = browser.call(
        "Runtime.evaluate",
        expression="axe.run(document, {resultTypes: ['violations']}).then((found) => JSON.stringify(found.violations))",
        awaitPromise=True,
        returnByValue=True,
    )
    assert "exceptionDetails" not in answer, answer
    return [
        f"{violation['id']}: {node['html'][:200]}"
        for violation in json.loads(answer["result"]["value"])
        if violation["impact"] in SERIOUS
        for node in violation["nodes"]
    ]
