"""The documentation page of the reward service in a real browser, served by the real gateway over HTTP."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from support.browser import open_browser
from support.local_gateway import TOKEN, WEIGHTS, LocalScorer, local_gateway, served
from support.reward_service_helpers import error_of

from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.serving.api_page import FILE_PATHS

HEADERS = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    scorer = LocalScorer(tmp_path_factory.mktemp("rewards"))
    with served(local_gateway(scorer, RewardOptions(weights=WEIGHTS))) as url:
        yield url


@pytest.mark.slow
def test_the_page_shows_every_route_asks_one_and_loads_nothing_from_elsewhere(url: str, tmp_path: Path) -> None:
    with open_browser(tmp_path) as page:
        page.open(f"{url}/docs")
        page.wait_for("document.querySelectorAll('.opblock').length > 0")
        shown = page.evaluate("[...document.querySelectorAll('.opblock-summary-path')].map((one) => one.textContent)")
        page.click(".btn.authorize")
        page.wait_for("document.querySelector('.auth-container input') !== null")
        page.click(".auth-container input")
        page.type_text(TOKEN)
        page.click(".auth-btn-wrapper .authorize")
        page.click(".auth-btn-wrapper .btn-done")
        models = "#operations-default-models_v1_models_get"
        page.click(f"{models} .opblock-summary-control")
        page.wait_for(f"document.querySelector('{models} .try-out__btn') !== null")
        page.click(f"{models} .try-out__btn")
        page.wait_for(f"document.querySelector('{models} .execute') !== null")
        page.click(f"{models} .execute")
        page.wait_for(
            f"(document.querySelector('{models} .live-responses-table') || {{}}).textContent?.includes('200')"
        )
        asked, problems = list(page.requests), list(page.problems)
    described = httpx2.get(f"{url}/openapi.json").json()["paths"]
    assert {path.replace("\u200b", "") for path in shown} == set(described)
    host = urlsplit(url).netloc
    assert {urlsplit(one).netloc for one in asked if not one.startswith("data:")} == {host}
    assert f"{url}/v1/models" in asked
    assert problems == []


def test_the_page_and_its_files_need_no_token_and_what_is_beside_them_does(url: str) -> None:
    page = httpx2.get(f"{url}/docs")
    assert page.status_code == 200 and "https://" not in page.text
    assert "script-src 'self'" in page.headers["content-security-policy"]
    for path in FILE_PATHS:
        assert httpx2.get(url + path).status_code == 200
    assert error_of(httpx2.get(f"{url}/docs/elsewhere.js")) == (401, "unauthorized")


@pytest.mark.parametrize("path", ["/v1/models/", "/docs/", "/live/"])
def test_nobody_is_redirected_to_a_host_that_the_request_names(url: str, path: str) -> None:
    answer = httpx2.get(url + path, headers=HEADERS | {"host": "elsewhere.example"})
    assert error_of(answer) == (404, "not_found")
    assert "location" not in answer.headers
