"""Import hook that lets a torchvision built for CUDA be imported beside a CPU build of torch.

`scripts/repair_torchvision.py` copies this file into a virtual environment, where a `.pth` file imports it at
every start of Python, so that every process is covered, also those that vLLM and Ray start. Start-up stays
fast: torch is imported only when torchvision is.

Such a torchvision cannot load its compiled operators, and its Python code then fails while it describes two
of them ("operator torchvision::nms does not exist"). Declaring the two is enough; calling them still fails,
as it should. Beside a torch that fits it, the compiled operators load and the hook does nothing.
"""

import sys

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept = []  # a torch.library.Library takes its operators away when it is collected


def declare_operators(package_folder):
    """Declare the operators that `torchvision/__init__.py` refers to, unless its compiled ones load."""
    from pathlib import Path

    import torch

    for library_file in Path(package_folder).glob("_C*.so"):
        try:
            torch.ops.load_library(str(library_file))
            return
        except OSError:
            pass  # built for another torch: its operators are what is declared below
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    _kept.append(library)


class TorchvisionFinder:
    """Finds torchvision as usual, and declares the operators just before its code runs."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Return the spec of the installed torchvision with our own loader, None for any other module."""
        if name != "torchvision":
            return None
        from importlib.machinery import PathFinder, SourceFileLoader

        class Loader(SourceFileLoader):
            def exec_module(self, module):
                declare_operators(module.__path__[0])
                super().exec_module(module)

        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


if TorchvisionFinder not in sys.meta_path:
    sys.meta_path.insert(0, TorchvisionFinder)
