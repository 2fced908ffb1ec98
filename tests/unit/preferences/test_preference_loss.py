"""The loss of DPO in numbers that were worked out by hand."""

import math

import pytest
import torch

from fgaif_ray.preferences.loss import batch_metrics, log_ratio, preference_loss, summed

POLICY = torch.tensor([[-1.0, -2.0, 0.0], [-0.5, -0.5, -1.0]])
REFERENCE = torch.tensor([[-1.5, -2.0, 0.0], [-0.5, -1.0, -1.5]])
LENGTHS = torch.tensor([2, 3])


def test_a_ratio_is_the_sum_over_tokens_or_their_mean() -> None:
    assert log_ratio(POLICY, REFERENCE, LENGTHS, normalise=False).tolist() == [0.5, 1.0]
    assert log_ratio(POLICY, REFERENCE, LENGTHS, normalise=True).tolist() == pytest.approx([0.25, 1 / 3])


def test_the_loss_is_that_of_the_paper() -> None:
    """beta 0.5: log(1 + exp(-0.5 (0.6 + 0.4))) = 0.474077, log(1 + exp(-0.5 (0 - 1))) = 0.974077."""
    found = preference_loss(torch.tensor([0.6, 0.0]), torch.tensor([-0.4, 1.0]), 0.5, 2)
    assert found.losses.tolist() == pytest.approx([0.474077, 0.974077], abs=1e-6)
    assert float(found.loss) == pytest.approx(0.724077, abs=1e-6)
    assert found.chosen.tolist() == pytest.approx([0.3, 0.0])
    assert found.rejected.tolist() == pytest.approx([-0.2, 0.5])


def test_before_learning_a_pair_costs_the_logarithm_of_two() -> None:
    assert float(preference_loss(torch.zeros(3), torch.zeros(3), 0.1, 3).loss) == pytest.approx(math.log(2))


def test_the_gradient_is_largest_where_the_order_is_wrong() -> None:
    """d loss / d chosen = -beta sigmoid(-beta (chosen - rejected)); that of the rejected is its opposite."""
    chosen = torch.tensor([0.6, 0.0], requires_grad=True)
    rejected = torch.tensor([-0.4, 1.0], requires_grad=True)
    preference_loss(chosen, rejected, 0.5, 2).loss.backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-0.5 * 0.377541 / 2, -0.5 * 0.622459 / 2], abs=1e-6)
    assert torch.equal(rejected.grad, -chosen.grad)


def test_parts_add_up_to_the_batch() -> None:
    chosen, rejected = torch.tensor([0.6, 0.0, 1.0]), torch.tensor([-0.4, 1.0, -2.0])
    whole = preference_loss(chosen, rejected, 0.5, 3)
    parts = [preference_loss(chosen[part], rejected[part], 0.5, 3) for part in (slice(2), slice(2, 3))]
    assert float(sum(part.loss for part in parts)) == pytest.approx(float(whole.loss))
    assert batch_metrics(sum(map(summed, parts), torch.zeros(5))) == pytest.approx(batch_metrics(summed(whole)))


def test_metrics_of_a_batch() -> None:
    metrics = batch_metrics(summed(preference_loss(torch.tensor([0.6, 0.0]), torch.tensor([-0.4, 1.0]), 0.5, 2)))
    assert metrics == pytest.approx(
        {
            "dpo/loss": 0.724077,
            "dpo/chosen_reward": 0.15,
            "dpo/rejected_reward": 0.15,
            "dpo/margin": 0.0,
            "dpo/told_apart": 0.5,
        },
        abs=1e-6,
    )


@pytest.mark.parametrize(("chosen", "beta"), [(torch.zeros(2), 0.0), (torch.zeros(3), 0.1), (torch.zeros(2, 1), 0.1)])
def test_what_cannot_be_meant_is_refused(chosen: torch.Tensor, beta: float) -> None:
    with pytest.raises(ValueError):
        preference_loss(chosen, torch.zeros(2), beta, 2)
