"""What `ray job submit` uploads of this repository."""

import zipfile
from pathlib import Path

MAXIMUM_UPLOAD = 32 * 1024**2
"""Bytes; two thirds of it are the three checkpoints of the embedded world."""


def test_an_upload_holds_what_nodes_need_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    target = tmp_path / "package.zip"
    create_package(str(repository), target, include_gitignore=True, excludes=[])
    with zipfile.ZipFile(target) as package:
        names = package.namelist()
    assert {name.partition("/")[0] for name in names if "/" in name} == {"actors", "configs", "fgaif_ray", "jobs"}
    assert {"cluster.yaml", "jobs/pipeline.py", "configs/shapes.yaml"} <= set(names)
    assert not any(name.endswith((".pyc", ".env", ".pem", ".key")) for name in names)
    assert target.stat().st_size < MAXIMUM_UPLOAD
