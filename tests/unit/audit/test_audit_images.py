"""Audits of responses about several images."""

import json
from dataclasses import replace

from PIL import Image
from support.audit_data import feedback_row

from fgaif_ray.audit.items import Audit, AuditSampler
from fgaif_ray.audit.page import load_pictures
from fgaif_ray.records import Feedback

ROW = feedback_row(0, "a.png", [("There is a cat.", (1, 0, 0))])
OF_TWO = replace(ROW, response=replace(ROW.response, more_images=("b.png",), image_sha256="ab", sample_id="1"))


def drawn(*rows: Feedback) -> Audit:
    sampler = AuditSampler(len(rows), 0)
    for row in rows:
        sampler.offer(row)
    return sampler.collect(rows)


def test_a_sample_keeps_all_images() -> None:
    audit = drawn(ROW, OF_TWO)
    assert Audit.from_dict(json.loads(json.dumps(audit.to_dict()))) == audit
    assert {item.images for item in audit.items} == {("a.png",), ("a.png", "b.png")}


def test_a_sample_of_single_images_is_written_as_ever() -> None:
    [item] = drawn(ROW).to_dict()["items"]
    assert "more_images" not in item


def test_the_page_shows_all_images_of_a_response() -> None:
    opened: list[str] = []

    def load(path: str) -> Image.Image:
        opened.append(path)
        return Image.new("RGB", (200, 200))

    pictures = load_pictures(drawn(ROW, OF_TWO), load)
    assert sorted(opened) == ["a.png", "a.png", "b.png"]
    assert len({url for url, _ in pictures.values()}) == 2
