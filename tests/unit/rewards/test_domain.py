"""How far images are from those of training: the distance, its threshold, and its file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fgaif_ray.errors import BrokenFileError
from fgaif_ray.rewards.domain import FEWEST_IMAGES, MOST_IMAGES, ImageDomain, fit_domain
from fgaif_ray.rewards.files import DOMAIN_FILE, read_domain_card


def images(count: int, hidden: int = 32, seed: int = 0) -> Tensor:
    """Features that vary in a few directions, and a little in all."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(3, hidden, generator=torch.Generator().manual_seed(9))
    return torch.randn(count, 3, generator=generator) @ directions + 0.1 * torch.randn(
        count, hidden, generator=generator
    )


def fitted(train: Tensor, held_out: Tensor | None = None) -> ImageDomain:
    domain = fit_domain(train, images(20, train.shape[1], seed=5) if held_out is None else held_out)
    assert domain is not None
    return domain


@pytest.mark.parametrize(("count", "hidden"), [(20, 256), (60, 32), (600, 16)])
def test_images_of_another_kind_are_outside_and_new_ones_of_the_same_are_not(count: int, hidden: int) -> None:
    domain = fitted(images(count, hidden))
    others = torch.randn(20, hidden, generator=torch.Generator().manual_seed(3)) * 2
    assert bool((domain.distances(others) > 1).all())
    assert float((domain.distances(images(400, hidden, seed=1)) > 1).double().mean()) < 0.1


def test_a_distance_does_not_depend_on_the_other_images() -> None:
    domain, some = fitted(images(60)), images(5, seed=2)
    alone = torch.cat([domain.distances(one[None]) for one in some])
    assert domain.distances(some).tolist() == pytest.approx(alone.tolist(), rel=1e-9)


def test_false_alarms_are_the_held_out_images_beyond_the_threshold() -> None:
    held_out = torch.cat([images(9, seed=1), torch.full((3, 32), 50.0)])
    domain = fitted(images(60), held_out)
    expected = int((domain.distances(held_out) > 1).sum())
    assert (domain.held_out, domain.false_alarms, domain.card().false_alarm_rate) == (12, expected, expected / 12)


def test_held_out_images_have_no_part_in_the_threshold() -> None:
    near, far = fitted(images(60), images(9, seed=1)), fitted(images(60), torch.full((9, 32), 50.0))
    assert near.threshold == far.threshold and far.false_alarms == 9


def test_of_few_images_there_is_no_domain() -> None:
    assert fit_domain(images(FEWEST_IMAGES - 1), images(3)) is None
    assert fit_domain(images(FEWEST_IMAGES), images(3)) is not None


def test_images_that_are_all_alike_have_a_domain_too() -> None:
    alike = images(1).repeat(12, 1)
    domain = fitted(alike)
    assert [one > 1 for one in domain.distances(torch.cat([alike[:1], images(2, seed=1)])).tolist()] == [
        False,
        True,
        True,
    ]


def test_of_very_many_images_some_are_taken_and_all_are_counted() -> None:
    domain = fitted(images(MOST_IMAGES + 200, 8))
    assert domain.images == MOST_IMAGES + 200


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    domain = fitted(images(60))
    domain.save(tmp_path)
    card = read_domain_card(str(tmp_path))
    assert card is not None and card == domain.card()
    assert ImageDomain.load(tmp_path, card).equals(domain)


def test_a_folder_without_one_has_no_card(tmp_path: Path) -> None:
    assert read_domain_card(str(tmp_path)) is None


def test_a_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    fitted(images(60)).save(tmp_path)
    file = tmp_path / DOMAIN_FILE
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(BrokenFileError, match=DOMAIN_FILE):
        read_domain_card(str(tmp_path))
