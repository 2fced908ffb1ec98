"""What stands for the images of a row: one is what it always was, several are told apart by their order."""

import hashlib

from fgaif_ray.records import ImageRow, image_fields, images_digest, images_key

ONE, TWO = hashlib.sha256(b"one").hexdigest(), hashlib.sha256(b"two").hexdigest()


def test_the_digest_of_one_image_is_its_own() -> None:
    assert images_digest([ONE]) == ONE


def test_the_digest_of_several_covers_each_in_order() -> None:
    expected = hashlib.sha256(bytes.fromhex(ONE) + bytes.fromhex(TWO)).hexdigest()
    assert images_digest([ONE, TWO]) == expected != images_digest([TWO, ONE])


def test_one_image_stands_in_fingerprints_as_its_path() -> None:
    assert images_key(("a.png",)) == "a.png"
    assert images_key(("a.png", "b.png")) == ["a.png", "b.png"]


def test_fields_and_images_are_the_same() -> None:
    for images in (("a.png",), ("a.png", "b.png", "c.png")):
        assert ImageRow(**image_fields(images)).images == images
