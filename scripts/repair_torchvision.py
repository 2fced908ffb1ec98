"""Make torchvision importable in this Python's environment, where its wheel was built for another torch.

vLLM's LLaVA module imports torchvision (through Pixtral), and on x86-64 the package index holds only its CUDA
build, which fails to import beside a CPU build of torch. Where, and only where, that happens, an import hook
goes into site-packages (see `torchvision_operators.py`). Run by the set-up; a second run finds nothing to do.
"""

import argparse
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HOOK_SOURCE = Path(__file__).with_name("torchvision_operators.py")
HOOK_NAME = "_torchvision_operators"
MISSING_OPERATOR = "operator torchvision::"


def failure_of(statement: str) -> str | None:
    """Run an import in a new process of this Python; the last line of its error, None when it works."""
    done = subprocess.run(
        [sys.executable, "-c", statement],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def install_hook(site_packages: Path) -> None:
    """Put the hook and the `.pth` file that activates it into ``site_packages``."""
    shutil.copyfile(HOOK_SOURCE, site_packages / f"{HOOK_NAME}.py")
    # Written last: from here on every start of this Python imports the hook.
    (site_packages / f"{HOOK_NAME}.pth").write_text(f"import {HOOK_NAME}\n", encoding="utf-8")


def repair(site_packages: Path) -> str:
    """Install the hook where torchvision needs it.

    Returns:
        One sentence that says what was done.

    Raises:
        SystemExit: torchvision fails for a reason that the hook does not repair, or still fails with it.
    """
    failure = failure_of("import torchvision")
    if failure is None:
        return "torchvision imports: nothing to repair"
    if "No module named 'torchvision'" in failure:
        return "torchvision is not installed: nothing to repair"
    if MISSING_OPERATOR not in failure:
        raise SystemExit(f"torchvision cannot be imported ({failure}): delete .venv and run the set-up again.")
    install_hook(site_packages)
    failure = failure_of("import torchvision")
    if failure is not None:
        raise SystemExit(
            f"torchvision cannot be imported even with its operators declared ({failure}): "
            "install a torchvision that was built for this torch."
        )
    return "torchvision was built for another torch: declared its operators by an import hook"


def main() -> None:
    """Repair, then show that what needs torchvision imports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--site-packages",
        type=Path,
        default=Path(sysconfig.get_path("purelib")),
        help="where the hook goes (default: this Python's own)",
    )
    parser.add_argument("--verify", default="import vllm.model_executor.models.llava", help="import that must work")
    arguments = parser.parse_args()
    print(repair(arguments.site_packages), flush=True)
    failure = failure_of(arguments.verify)
    if failure is not None:
        raise SystemExit(f"'{arguments.verify}' fails ({failure}): delete .venv and run the set-up again.")


if __name__ == "__main__":
    main()
