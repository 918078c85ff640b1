"""Export the notebooks into an emptied ssl3d/, so that nothing is left over from a notebook that was moved or removed.

What is written by hand there (KEPT) is put aside meanwhile and back again.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("__init__.py", "__init__.pyi", "__main__.py", "py.typed", "games")  # the face; the games in the browser


def main(root: Path = ROOT) -> None:
    """Empty `root`/ssl3d but for what is written by hand, and export `root`/nbs into it."""
    package = root / "ssl3d"
    with tempfile.TemporaryDirectory(dir=root) as aside:
        old = Path(aside) / "ssl3d"
        package.rename(old)
        package.mkdir()
        for name in KEPT:
            if (old / name).exists():
                (old / name).rename(package / name)
        try:
            subprocess.run([str(Path(sys.executable).parent / "nbdev_export")], cwd=root, check=True)
        except BaseException:  # whatever it is, the package stays as it was
            for name in KEPT:
                if (package / name).exists():
                    (package / name).rename(old / name)
            shutil.rmtree(package)
            old.rename(package)
            raise


if __name__ == "__main__":
    main()
