"""Lookup of a benchmark's images in a user's folder."""

from collections import Counter
from collections.abc import Iterable

from fgaif_ray import storage
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.official_files import DOCUMENTATION


class ImageFolder:
    """A folder of images, looked up by the names of official files."""

    def __init__(self, name: str, folder: str | None) -> None:
        """List the folder.

        Args:
            name: of the benchmark's section, for messages.
            folder: path or URI.

        Raises:
            UserError: it is not configured or there is no such folder.
        """
        if folder is None or not storage.is_folder(folder):
            raise UserError(
                f"Set evaluate.benchmarks.{name}.images to the folder of its images "
                f"({folder or 'nothing'} is not a folder; {DOCUMENTATION})."
            )
        self._name, self._folder = name, folder
        self._files: dict[str, str] = {}
        bases: Counter[str] = Counter()
        for path, uri in storage.list_files(folder).items():
            parts = path.split("/")
            base = parts[-1]
            bases[base] += 1
            ends = ("/".join(parts[start:]) for start in range(len(parts)))
            # The name itself, with its folders or without; without COCO's "COCO_val2014_"; without its ending: a whole
            # name comes first.
            for known in (*ends, base.rsplit("_", 1)[-1], base.rsplit(".", 1)[0]):
                self._files.setdefault(known, uri)
        self._ambiguous = {base for base, count in bases.items() if count > 1}

    @property
    def names(self) -> set[str]:
        """Return all names by which an image can be found."""
        return set(self._files)

    def find_all(self, names: Iterable[str]) -> dict[str, str]:
        """Find the paths or URIs of images by official name.

        Raises:
            UserError: some are missing; the message names the first.
        """
        found = {}
        missing = []
        for name in dict.fromkeys(names):
            if not name:  # a question without an image
                continue
            base = name.rsplit("/", 1)[-1]
            uri = self._files.get(name)
            if base == name or base not in self._ambiguous:  # else the folders tell which of them is meant
                uri = uri or self._files.get(base) or self._files.get(base.rsplit(".", 1)[0])
            if uri is None:
                missing.append(name)
            else:
                found[name] = uri
        if missing:
            raise UserError(
                f"{len(missing)} of {len(missing) + len(found)} images of {self._name} are not in {self._folder}, the "
                f"first: {missing[0]}; correct evaluate.benchmarks.{self._name}.images."
            )
        return found
