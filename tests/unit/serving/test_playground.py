"""The playground of the reward service in a real browser, served by the real gateway over HTTP."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from support.browser import Browser, open_browser
from support.domains import narrow_domains
from support.local_gateway import TOKEN, WEIGHTS, LocalScorer, local_gateway, served
from support.reward_helpers import PROMPT, picture

from fgaif_ray.fact_types import DEFAULT
from fgaif_ray.records import CLASS_NAMES, FACT_TYPES
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.segments import split_segments
from fgaif_ray.serving.client import RewardClient, reward_item
from fgaif_ray.serving.playground import EXAMPLES, build_playground, example_scenes
from fgaif_ray.serving.wire import ScoredResponse

HOSTILE = (
    "There is a \U0001f600 circle <img src=x onerror=\"document.title='taken'\">. "
    "</script><script>document.title='taken'</script> A red star is left of it &amp; <b>bold</b>."
)
RESPONSE = "There is a red circle. A green star is left of it."
SCORED = "!document.getElementById('result').hidden && !document.getElementById('score').disabled"


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> LocalScorer:
    return LocalScorer(tmp_path_factory.mktemp("rewards"))


@pytest.fixture(scope="module")
def url(scorer: LocalScorer) -> Iterator[str]:
    with served(local_gateway(scorer, RewardOptions(weights=WEIGHTS))) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, url: str) -> Browser:
    """The page, just opened: nothing of the test before is left in it."""
    browser.open("about:blank")
    browser.requests.clear()
    browser.problems.clear()
    browser.open(f"{url}/playground")
    return browser


@pytest.fixture(scope="module")
def artifacts(repository: Path) -> Path:
    """Where screenshots are kept for people to look at; ARTIFACTS names another folder."""
    folder = Path(os.environ.get("ARTIFACTS", repository / "artifacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def give_token(page: Browser, token: str = TOKEN) -> None:
    page.evaluate("document.getElementById('token').value = ''")
    page.click("#token")
    page.type_text(token)


def score(page: Browser) -> None:
    page.wait_for("!document.getElementById('score').disabled")
    page.click("#score")
    page.wait_for(SCORED)


def text_of(page: Browser, selector: str) -> list[str]:
    found: list[str] = page.evaluate(
        f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.textContent)"
    )
    return found


def asked(url: str, image: bytes, prompt: str, response: str) -> ScoredResponse:
    """What the service itself says."""
    with RewardClient(url, token=TOKEN) as client:
        [scored] = client.score([reward_item(image, prompt, response)])
    return scored


def signed(value: float) -> str:
    rounded = f"{value:+.2f}".replace("-", "\u2212")
    return "0.00" if rounded[1:] == "0.00" else rounded


def test_an_example_scene_is_scored_as_the_service_scores_it(page: Browser, url: str, artifacts: Path) -> None:
    page.click("#examples button:nth-child(2)")
    give_token(page)
    score(page)
    example = example_scenes()[1]
    with RewardClient(url, token=TOKEN) as client:
        body = {"image": example["picture"], "prompt": example["prompt"], "response": example["response"]}
        answer = httpx2.post(f"{url}/v1/rewards", json={"items": [body]}, headers={"authorization": f"Bearer {TOKEN}"})
        assert client.models().model_version in text_of(page, "#served")[0]
    scored = ScoredResponse.model_validate(answer.json()["results"][0])
    shown = [float(figure) for figure in text_of(page, "#rows .figures span")]
    expected = [share for segment in scored.segments for kind in FACT_TYPES for share in getattr(segment, kind)]
    assert shown == pytest.approx(expected, abs=0.0051)
    assert text_of(page, "#rows .reward") == [signed(segment.reward) for segment in scored.segments]
    assert text_of(page, ".tile.total .value") == [signed(scored.reward)]
    sums = [sum(segment.rewards[kind] for segment in scored.segments) for kind in FACT_TYPES]
    assert text_of(page, ".tile:not(.total) .value") == [signed(value) for value in sums]
    assert page.problems == []
    page.screenshot(artifacts / "playground.png")
    with Image.open(artifacts / "playground.png") as picture_of_page:
        assert picture_of_page.width > 1000


def test_an_image_unlike_those_of_training_is_said(
    page: Browser, scorer: LocalScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.click("#examples button:nth-child(2)")
    give_token(page)
    score(page)
    assert page.evaluate("document.getElementById('outside').hidden")
    monkeypatch.setattr(scorer.model, "domains", narrow_domains(scorer.model))
    page.evaluate("document.getElementById('result').hidden = true")
    score(page)
    assert not page.evaluate("document.getElementById('outside').hidden")


def test_sub_sentences_are_coloured_by_the_chosen_type(page: Browser, url: str) -> None:
    page.click("#examples button:nth-child(4)")
    give_token(page)
    score(page)
    example = example_scenes()[3]
    item = {"image": example["picture"], "prompt": example["prompt"], "response": example["response"]}
    answer = httpx2.post(f"{url}/v1/rewards", json={"items": [item]}, headers={"authorization": f"Bearer {TOKEN}"})
    segments = ScoredResponse.model_validate(answer.json()["results"][0]).segments
    for place, kind in enumerate(FACT_TYPES):
        page.click(f"#views button:nth-child({place + 2})")
        shown = page.evaluate("[...document.querySelectorAll('#marked .segment')].map((one) => one.className)")
        classes = [max(range(3), key=getattr(segment, kind).__getitem__) for segment in segments]
        assert shown == [f"segment {CLASS_NAMES[best]}" for best in classes]


def test_hostile_text_stays_text_and_offsets_count_characters(page: Browser, url: str, tmp_path: Path) -> None:
    file = tmp_path / "<img src=x onerror=alert(1)>.png"
    file.write_bytes(picture(7))
    page.choose_file("#file", file)
    page.wait_for("document.getElementById('name').textContent !== ''")
    page.evaluate(f"document.getElementById('prompt').value = {json.dumps(PROMPT)}")
    page.click("#response")
    page.type_text(HOSTILE)
    give_token(page)
    score(page)
    assert text_of(page, "#name") == [file.name]
    spans = split_segments(HOSTILE)
    assert len(spans) >= 2
    assert text_of(page, "#rows .said") == [HOSTILE[span.start : span.end].strip() for span in spans]
    page.click("#views button:nth-child(2)")  # without the badges of the first view
    assert text_of(page, "#marked") == [HOSTILE]
    assert page.evaluate("document.title").startswith("Playground")
    assert page.evaluate("document.querySelectorAll('#result img, #result script, #result b').length") == 0
    scored = asked(url, picture(7), PROMPT, HOSTILE)
    assert text_of(page, "#rows .reward") == [signed(segment.reward) for segment in scored.segments]
    assert page.problems == []


def test_a_dropped_image_and_the_keyboard_do_as_well(page: Browser) -> None:
    assert page.evaluate("document.getElementById('score').disabled")
    assert text_of(page, "#missing") == ["Needs an image and a response"]
    data = ",".join(str(byte) for byte in picture(3))
    page.evaluate(
        "(() => { const carried = new DataTransfer(); "
        f"carried.items.add(new File([new Uint8Array([{data}])], 'dropped.png', {{type: 'image/png'}})); "
        "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: carried, bubbles: true, cancelable: true}));"
        " })()"
    )
    page.wait_for("document.getElementById('name').textContent === 'dropped.png'")
    give_token(page)
    page.click("#response")
    page.type_text("A red circle.")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", windowsVirtualKeyCode=13, modifiers=2)
    page.wait_for(SCORED)
    assert len(text_of(page, "#rows tr")) == 1


def test_several_images_are_scored_together_in_their_order(page: Browser, url: str, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.png" for name in "abc"]
    for seed, file in enumerate(files):
        file.write_bytes(picture(seed))
    page.choose_file("#file", *files[:2])
    page.wait_for("document.getElementById('name').textContent === 'a.png, b.png'")
    page.call("Page.setInterceptFileChooserDialog", enabled=True)  # there is nobody to answer one
    page.click("#add")
    page.choose_file("#file", files[2])
    page.wait_for("document.getElementById('name').textContent === 'a.png, b.png, c.png'")
    assert page.evaluate("document.querySelectorAll('#pictures img').length") == len(files)
    page.evaluate(f"document.getElementById('prompt').value = {json.dumps(PROMPT)}")
    page.click("#response")
    page.type_text(RESPONSE)
    give_token(page)
    score(page)
    shown = text_of(page, "#rows .reward")
    with RewardClient(url, token=TOKEN) as client:
        orders = [[file.read_bytes() for file in some] for some in (files, files[::-1])]
        scored = client.score([reward_item(images, PROMPT, RESPONSE) for images in orders])
    expected, other = ([signed(segment.reward) for segment in one.segments] for one in scored)
    assert shown == expected != other
    page.choose_file("#file", files[1])
    page.wait_for("document.getElementById('name').textContent === 'b.png'")


def test_a_wrong_token_is_said_and_nothing_is_kept_of_the_right_one(page: Browser) -> None:
    page.click("#examples button:nth-child(1)")
    give_token(page, "wrong")
    page.click("#score")
    page.wait_for("!document.getElementById('problem').hidden")
    assert "token" in text_of(page, "#problem-text")[0] and "unauthorized" in text_of(page, "#problem-code")[0]
    give_token(page)
    score(page)
    assert page.evaluate("document.getElementById('problem').hidden")
    stored = "JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + document.cookie + location.href"
    assert TOKEN not in page.evaluate(stored)
    assert not any(TOKEN in address for address in page.requests)


def test_what_cannot_be_scored_is_said_in_the_services_words(page: Browser, tmp_path: Path) -> None:
    file = tmp_path / "notes.png"
    file.write_text("no picture")
    page.choose_file("#file", file)
    page.wait_for("document.getElementById('name').textContent === 'notes.png'")
    page.click("#response")
    page.type_text("A red circle.")
    give_token(page)
    page.click("#score")
    page.wait_for("!document.getElementById('problem').hidden")
    assert text_of(page, "#problem-code")[0].startswith("invalid_image · request ")


def test_the_page_asks_for_nothing_from_elsewhere(page: Browser, url: str) -> None:
    assert {address for address in page.requests if not address.startswith("data:")} == {f"{url}/playground"}
    policy = httpx2.get(f"{url}/playground").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    page.evaluate(
        "(() => { window.blocked = []; "
        "document.onsecuritypolicyviolation = (event) => window.blocked.push(event.effectiveDirective); "
        "document.body.append(Object.assign(document.createElement('img'), {src: '/live'})); "
        "fetch('https://example.org/').catch(() => {}); })()"
    )
    page.wait_for("window.blocked.length === 2")
    assert sorted(page.evaluate("window.blocked")) == ["connect-src", "img-src"]


def test_the_page_is_served_without_a_token_and_asks_for_one_only_where_it_is_needed(url: str) -> None:
    answer = httpx2.get(f"{url}/playground")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert 'id="token"' in answer.text
    assert 'id="token"' not in build_playground(DEFAULT, token_needed=False).html
    assert TOKEN not in answer.text


def test_the_root_leads_to_the_playground_of_the_same_host(url: str) -> None:
    answer = httpx2.get(f"{url}/", headers={"host": "elsewhere.example"})
    assert (answer.status_code, answer.headers["location"]) == (307, "playground")
    assert str(httpx2.get(url, follow_redirects=True).url) == f"{url}/playground"


def test_probabilities_stand_below_the_names_of_their_classes(page: Browser) -> None:
    page.click("#examples button:nth-child(1)")
    give_token(page)
    score(page)
    assert text_of(page, "#columns .names span") == list(CLASS_NAMES) * len(FACT_TYPES)
    middles = "one => Math.round(one.getBoundingClientRect().x)"
    heads = page.evaluate(f"[...document.querySelectorAll('#columns .names span:first-child')].map({middles})")
    cells = page.evaluate(
        f"[...document.querySelectorAll('#rows tr:first-child .figures span:first-child')].map({middles})"
    )
    assert heads == cells


def test_arrows_change_the_view(page: Browser) -> None:
    page.click("#examples button:nth-child(1)")
    give_token(page)
    score(page)
    page.click("#views button:nth-child(1)")
    page.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.view") == FACT_TYPES[0]
    page.press("ArrowLeft", "ArrowLeft")
    assert page.evaluate("document.querySelector('#views [aria-checked=true]').dataset.view") == FACT_TYPES[-1]


def test_examples_are_held_out_scenes_with_descriptions() -> None:
    scenes = example_scenes()
    assert len(scenes) == EXAMPLES == len({scene["picture"] for scene in scenes})
    assert all(len(split_segments(scene["response"])) >= 2 for scene in scenes)


def test_the_policy_names_the_script_and_the_style_of_the_page() -> None:
    page: Any = build_playground(DEFAULT, token_needed=True)
    assert len(re.findall(r"'sha256-[A-Za-z0-9+/]{43}='", page.headers["content-security-policy"])) == 2
    assert " style=" not in page.html and " onclick=" not in page.html
