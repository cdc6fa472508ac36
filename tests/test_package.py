"""What is installed where the project is not a checkout: in an image, or from an index."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from harness.base.version import __version__
from tests.helpers import ROOT

PARTS = ("harness", "scenarios", "runtimes", "cluster", "reports")
CODE = (".py", ".yaml", ".json", ".txt", ".j2", ".proto", ".binpb")


def test_wheel_has_its_version_and_every_file_that_code_reads(tmp_path: Path) -> None:
    source = tmp_path / "source"
    files = [
        str(path.relative_to(ROOT)) for part in PARTS for path in sorted((ROOT / part).rglob("*")) if path.is_file()
    ]
    tracked = [name for name in files if "__pycache__" not in name]
    for name in [*tracked, "pyproject.toml", "README.md", "LICENSE"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"servecert-{__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert [name for name in tracked if name.endswith(CODE) and name not in names] == []
