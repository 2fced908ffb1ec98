"""What TensorBoard makes of a run's samples; its own Markdown is the reader."""

import html
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tensorboard.plugin_util import markdown_to_safe_html

from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rl.sample_text import escape_markdown, sample_markdown

HOSTILE = "| <script>x</script> ![i](https://example.org/i.png) [a](javascript:alert(1)) **b** `c` _d_\n# e & \u00e9"


def sample(text: str) -> dict[str, Any]:
    probabilities = dict(zip(FACT_TYPES, ([0.1, 0.2, 0.7], [0.1, 0.8, 0.1], [0.9, 0.1, 0.0]), strict=True))
    segment = {"text": text, "probabilities": probabilities, "rewards": dict.fromkeys(FACT_TYPES, -0.5)}
    return {
        "prompt": text,
        "image": text,
        "response": text,
        "reward": -1.5,
        "reward_failure": None,
        "segments": [segment],
    }


def test_a_sub_sentence_has_the_colour_of_its_worst_verdict_and_a_cell_for_each_type() -> None:
    shown = markdown_to_safe_html(sample_markdown([sample("A red star.")]))
    cells = [html.unescape(cell) for cell in re.findall("<td[^>]*>(.*?)</td>", shown)]
    assert cells == [
        "\U0001f7e5",
        "A red star.",
        "\U0001f7e5 hallucinated 0.70, -0.50",
        "\U0001f7e9 consistent 0.80, -0.50",
        "\u2b1c absent 0.90, -0.50",
        "-1.50",
    ]


def test_a_sample_without_a_reward_says_why() -> None:
    failed = sample("A red star.") | {"segments": [], "reward": None, "reward_failure": "the service is <gone>"}
    shown = markdown_to_safe_html(sample_markdown([failed]))
    assert "no reward: the service is <gone>" in html.unescape(shown) and "<gone>" not in shown


def test_hostile_text_is_shown_as_it_is() -> None:
    shown = markdown_to_safe_html(sample_markdown([sample(HOSTILE)]))
    assert not re.search("<(img|a|script|code|em|h1)", shown)
    assert " ".join(HOSTILE.split()) in html.unescape(shown)
    assert shown.count("<td") == 6


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc"])))
def test_escaped_text_comes_back_as_one_line(text: str) -> None:
    assert html.unescape(escape_markdown(text)) == " ".join(text.split())
