"""Make the virtual environment that `make` works in, and tell how far it is: python tools/install.py .venv

pip alone is silent for minutes, or prints hundreds of lines. Here one line tells which package it is at, how many there
are, and about how long the rest takes. All that pip prints is kept in .venv/install.log. Only the standard library is
used, since nothing is installed yet.
"""

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FETCHING = 0.25  # the share of the time until all is fetched; unpacking takes the rest
LATE = 2.5  # large packages are unpacked late: half of them take much less than half of that time
# nnU-Net's networks. They ask for timm and torchvision, for transformers that ssl3d does not have; and torchvision for
# CUDA beside PyTorch for CPUs fails when it is imported
ALONE = "dynamic-network-architectures"


class Progress:
    """How far pip is, from the lines that it prints."""

    def __init__(self, expected: int):
        self.expected, self.fetched, self.to_install, self.now = expected, 0, 0, "what is needed"

    def take(self, line: str) -> None:
        """Learn from one line."""
        found = re.match(r"\s*(Collecting|Processing|Downloading|Using cached) (\S+)(?: \(([\d.]+ [kMG]B)\))?", line)
        if found:
            what, name, size = found.groups()
            name = re.split(r"[-=<>!~;\[]", name.rpartition("/")[2])[0]
            self.now = f"{name} ({size})" if size else name
            self.fetched += what in ("Collecting", "Processing")
        if line.startswith("Installing collected packages:"):
            self.to_install = line.count(",") + 1

    def done(self, installed: int) -> float:  # 0 to 1
        """The share of the time that has gone, by the packages that are fetched and installed."""
        if not self.to_install:
            return FETCHING * min(1.0, self.fetched / max(1, self.expected))
        return FETCHING + (1 - FETCHING) * min(1.0, installed / self.to_install) ** LATE

    def told(self, seconds: float, installed: int) -> str:
        """All of it in a line."""
        clock = f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
        if self.to_install:
            text = f"{clock}  unpacked {min(installed, self.to_install)} of {self.to_install} packages"
        else:
            text = f"{clock}  fetched {self.fetched} of about {self.expected} packages: {self.now}"
        done = self.done(installed)
        left = seconds / done - seconds if done > 0.03 else 0
        return text + (f"; about {max(1, round(left / 60))} min left" if left > 0 else "")


def count_installed(venv: Path) -> int:
    """How many packages are unpacked in a virtual environment."""
    return len([*venv.glob("lib/python*/site-packages/*.dist-info")])


def report(progress: Progress, begun: float, ended: threading.Event, count) -> None:
    """Tell how far it is: in place, once a second, on a terminal; a line every 15 seconds elsewhere."""
    screen = sys.stdout.isatty()
    while not ended.wait(1 if screen else 15):
        text = progress.told(time.monotonic() - begun, count())
        print(f"\r\x1b[K    {text}" if screen else f"    {text}", end="" if screen else "\n", flush=True)
    print("\r\x1b[K" if screen else "", end="", flush=True)


def run_pip(venv: Path, log: Path, *what: str) -> int:
    """Install what pip is told, and keep what it says; pip's exit status."""
    expected = sum("==" in line for line in (ROOT / "constraints.txt").read_text().splitlines())
    progress, begun, ended, before = Progress(expected), time.monotonic(), threading.Event(), count_installed(venv)
    line = [str(venv / "bin" / "pip"), "install", "--disable-pip-version-check", "--progress-bar", "off",
            "-c", "constraints.txt", *what]
    teller = threading.Thread(target=report, args=(progress, begun, ended, lambda: count_installed(venv) - before))
    with subprocess.Popen(line, cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace") as pip, open(str(log), "a", errors="replace") as kept:
        teller.start()
        try:
            for said in pip.stdout or ():
                kept.write(said)
                progress.take(said)
        finally:
            ended.set()
            teller.join()
    return pip.returncode


def main(folder: str) -> int:
    venv = Path(folder).resolve()
    print(f"Installing ssl3d and what it needs into {folder}. This is done once. It takes 2 to 8 minutes on 2 cores,\n"
          "and more where PyTorch with CUDA (several GB) has to be fetched first.", flush=True)
    begun = time.monotonic()
    print("    making an empty environment ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    log = venv / "install.log"
    log.unlink(missing_ok=True)
    status = run_pip(venv, log, "-e", ".[dev]") or run_pip(venv, log, "--no-deps", ALONE)
    if status:
        print("pip failed. Its last lines (all of them are in {}):".format(venv / "install.log"), file=sys.stderr)
        print(*(venv / "install.log").read_text(errors="replace").splitlines()[-15:], sep="\n", file=sys.stderr)
        return status
    minutes, seconds = divmod(round(time.monotonic() - begun), 60)
    print(f"Installed in {minutes}:{seconds:02d} minutes.", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except KeyboardInterrupt:
        print("\ninterrupted. The same command goes on; what was fetched is kept by pip.", file=sys.stderr)
        sys.exit(130)
