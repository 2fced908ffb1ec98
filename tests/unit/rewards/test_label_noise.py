"""Wrong labels are found without a truth, and verdicts pay what the truth is worth."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.reward_helpers import PROMPT, picture
from support.reward_training import CHECKPOINT, OPTIONS, feedback_rows, silent, train

from fgaif_ray.images import decode_image
from fgaif_ray.records import ABSENT, CONSISTENT, FACT_TYPES, HALLUCINATED
from fgaif_ray.rewards import label_noise
from fgaif_ray.rewards.card import model_card
from fgaif_ray.rewards.data import RewardData, from_feedback, prepare_data
from fgaif_ray.rewards.encoding import ScoringItem
from fgaif_ray.rewards.files import read_folder
from fgaif_ray.rewards.label_noise import NO_NOISE, LabelNoise, estimate_label_noise
from fgaif_ray.rewards.model_files import load_reward_model, save_reward_model
from fgaif_ray.vlm.backbone import load_backbone

MIX = (0.3, 0.55, 0.15)
SPREAD = 0.6
"""Of a feature around its class's corner: classes overlap a little."""
VERDICTS = 8_000
NOISES = {"even": LabelNoise(0.2, 0.2), "too lenient": LabelNoise(0.05, 0.3), "too strict": LabelNoise(0.3, 0.1)}

Drawn = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]


def drawn(noise: LabelNoise) -> Drawn:
    """What Bayes gives for the labels ``[verdicts, 3]``, the labels ``[verdicts]`` and the truth ``[verdicts]``."""
    generator = np.random.default_rng(0)
    truth = generator.choice(3, size=VERDICTS, p=MIX)
    features = np.eye(3)[truth] + generator.normal(0, SPREAD / 2, (VERDICTS, 3))
    distances = ((features[:, None, :] - np.eye(3)) ** 2).sum(axis=2)
    posterior = np.array(MIX) * np.exp(-2 * distances / SPREAD**2)
    posterior /= posterior.sum(axis=1, keepdims=True)
    labels, chance = truth.copy(), generator.random(VERDICTS)
    labels[(truth == CONSISTENT) & (chance < noise.of_consistent)] = HALLUCINATED
    labels[(truth == HALLUCINATED) & (chance < noise.of_hallucinated)] = CONSISTENT
    change = np.eye(3)
    change[CONSISTENT, [CONSISTENT, HALLUCINATED]] = 1 - noise.of_consistent, noise.of_consistent
    change[HALLUCINATED, [HALLUCINATED, CONSISTENT]] = 1 - noise.of_hallucinated, noise.of_hallucinated
    return (posterior @ change).astype(np.float32), labels, truth


@pytest.mark.parametrize("noise", NOISES.values(), ids=list(NOISES))
def test_the_shares_of_wrong_labels_are_found(noise: LabelNoise) -> None:
    probabilities, labels, _ = drawn(noise)
    found = estimate_label_noise(probabilities, labels)
    assert found.of_consistent == pytest.approx(noise.of_consistent, abs=0.04)
    assert found.of_hallucinated == pytest.approx(noise.of_hallucinated, abs=0.06)


def test_hardly_any_is_found_in_clean_labels() -> None:
    probabilities, labels, _ = drawn(NO_NOISE)
    found = estimate_label_noise(probabilities, labels)
    assert max(found.of_consistent, found.of_hallucinated) < 0.03


@pytest.mark.parametrize("noise", NOISES.values(), ids=list(NOISES))
@pytest.mark.parametrize(("truly", "worth"), [(CONSISTENT, 1), (HALLUCINATED, -1)])
def test_verdicts_pay_what_the_truth_is_worth(noise: LabelNoise, truly: int, worth: int) -> None:
    probabilities, labels, truth = drawn(noise)
    clean, _, _ = drawn(NO_NOISE)
    taken_out = estimate_label_noise(probabilities, labels).taken_out(torch.from_numpy(probabilities)).numpy()

    def paid(given: NDArray[np.float32]) -> float:
        return float((given[:, CONSISTENT] - given[:, HALLUCINATED])[truth == truly].mean())

    shrunk, left = (abs(paid(given) - paid(clean)) for given in (probabilities, taken_out))
    assert worth * paid(probabilities) < worth * paid(clean)
    assert left < 0.12  # what shares that are off by 0.03 leave
    assert left < shrunk


def test_few_verdicts_prove_no_label_wrong() -> None:
    probabilities, labels, _ = drawn(NOISES["even"])
    assert estimate_label_noise(probabilities[:100], labels[:100]) == NO_NOISE


SHARES = st.floats(0, label_noise.MOST_NOISE)


@given(st.tuples(*[st.floats(0.001, 1)] * 3), SHARES, SHARES)
def test_distributions_stay_distributions(weights: tuple[float, float, float], first: float, second: float) -> None:
    before = torch.tensor(weights) / sum(weights)
    after = LabelNoise(first, second).taken_out(before)
    assert float(after.sum()) == pytest.approx(1, abs=1e-5)
    assert float(after.min()) >= 0
    assert float(after[ABSENT]) == float(before[ABSENT])


# In a reward model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RewardData:
    responses = from_feedback(feedback_rows(tmp_path_factory.mktemp("images")), FACT_TYPES)
    return prepare_data(load_backbone(CHECKPOINT, "float32"), responses, 0.25, 0, silent)


@pytest.fixture
def few_are_enough() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_noise, "FEWEST_ANCHORS", 1)
        patch.setattr(label_noise, "ANCHORS", 0.5)
        yield


def scores(folders: dict[str, str]) -> NDArray[np.float32]:
    model = load_reward_model(load_backbone(CHECKPOINT, "float32"), folders)
    item = ScoringItem([decode_image(picture())], PROMPT, ["It is red. ", "It is large."])
    return model.score("existence", [item])[0]


@pytest.mark.usefixtures("few_are_enough")
def test_a_reward_model_is_saved_with_the_noise_that_its_verdicts_are_without(data: RewardData, tmp_path: Path) -> None:
    # Hardly trained, so that labels at both ends are of both classes.
    plain, kept = train(data, epochs=1, learning_rate=1e-9)
    model, metrics = train(data, epochs=1, learning_rate=1e-9, label_noise="taken_out")
    assert "label_noise" not in kept
    noise = LabelNoise(**metrics["label_noise"])
    assert max(noise.of_consistent, noise.of_hallucinated) > 0
    folders = {name: {"existence": str(tmp_path / name)} for name in ("kept", "taken_out")}
    save_reward_model(plain, "existence", tmp_path / "kept")
    save_reward_model(model, "existence", tmp_path / "taken_out")
    np.testing.assert_allclose(
        scores(folders["taken_out"]), noise.taken_out(torch.from_numpy(scores(folders["kept"]))).numpy(), atol=1e-6
    )
    assert read_folder(str(tmp_path / "kept")).version != read_folder(str(tmp_path / "taken_out")).version


@pytest.mark.usefixtures("few_are_enough")
def test_the_card_says_what_was_taken_out(data: RewardData) -> None:
    options = OPTIONS.model_copy(update={"label_noise": "taken_out"})
    _, metrics = train(data, epochs=1, label_noise="taken_out")
    assert "rewards.label_noise: taken_out" in model_card(metrics, options)
