"""Start JupyterLab at the index and tell what happens: `make lab`, with options `make lab ARGS="--port 9999"`.

Its root is the repository, so that every link of a notebook opens in it. Each kernel has one thread, as when the
notebooks were run. Nothing is asked of the network: no news, no look for updates. What JupyterLab logs is kept in
runs/lab.log; warnings that matter, and errors, are shown.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
INDEX, LOG = "nbs/index.ipynb", ROOT / "runs" / "lab.log"
SHOWN = re.compile(r"^\[[EW] ")  # errors and warnings of the log, but for those that tell a user nothing
USUAL = re.compile(r"web browser|deprecat|not trusted|Extension package|node", re.IGNORECASE)


def command(args: list[str], root_user: bool) -> list[str]:
    """The command line of JupyterLab; options of the user come last, so that they win."""
    line = [sys.executable, "-m", "jupyterlab", str(ROOT / INDEX), f"--ServerApp.root_dir={ROOT}",
            f"--LabApp.app_settings_dir={ROOT / 'tools' / 'lab_settings'}",  # nobody is asked for news
            f"--FileCheckpoints.checkpoint_dir={ROOT / 'runs' / 'checkpoints'}",  # no copies among the notebooks
            "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    return [*line, *(["--allow-root"] if root_user else []), *args]


def environment(before: dict[str, str]) -> dict[str, str]:
    """The environment of JupyterLab: one thread for each kernel, unless the user has said another number."""
    return {"OMP_NUM_THREADS": "1"} | before


def address(server: dict) -> str:
    """The address of the index on a running server (its own description)."""
    token = f"?token={server['token']}" if server["token"] else ""
    return f"{server['url']}lab/tree/{INDEX}{token}"


def described(pid: int) -> dict | None:
    """What a server has written about itself; None as long as it has not."""
    from jupyter_core.paths import jupyter_runtime_dir

    file = Path(jupyter_runtime_dir()) / f"jpserver-{pid}.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def watch(log: TextIO) -> None:
    """Keep the lines of a log in a file, and show those that matter."""
    with open(LOG, "w", encoding="utf-8") as kept:
        for line in log:
            kept.write(line)
            kept.flush()
            if SHOWN.match(line) and not USUAL.search(line):
                print(line, end="", file=sys.stderr, flush=True)


def begin(args: list[str]) -> subprocess.Popen:
    """Start JupyterLab; its log goes into a file, and what matters of it to the console."""
    LOG.parent.mkdir(exist_ok=True)
    root_user = hasattr(os, "geteuid") and os.geteuid() == 0
    return subprocess.Popen(command(args, root_user), env=environment(dict(os.environ)), cwd=ROOT, text=True,
                            stderr=subprocess.PIPE, encoding="utf-8", errors="replace")


def wait_until_ready(server: subprocess.Popen, begun: float, browser: bool) -> bool:
    """Tell how long it takes, and where the index is as soon as the server answers; False where it ends before."""
    told, opens = 0, "Your browser opens the index. If it does not, open" if browser else "Open"
    while server.poll() is None:
        if (found := described(server.pid)) is not None:
            print(f"JupyterLab is ready after {time.monotonic() - begun:.0f} s. {opens}\n    {address(found)}\n"
                  "Ctrl-C and y end it. Its log is runs/lab.log.", flush=True)
            return True
        if (gone := int(time.monotonic() - begun) // 10) > told:
            told = gone
            print(f"    {10 * gone} s: still starting (the first start reads much from the disk)", flush=True)
        time.sleep(0.1)
    return False


def main(args: list[str]) -> int:
    if {"-h", "--help", "--help-all", "--version", "list", "stop"} & {*args}:  # nothing is started
        return subprocess.call([sys.executable, "-m", "jupyterlab", *args])
    begun = time.monotonic()
    print(f"Starting JupyterLab at {INDEX}: 3 to 20 seconds", flush=True)
    server = begin(args)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # JupyterLab gets it, too, and asks whether to end
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    watcher = threading.Thread(target=watch, args=[server.stderr], daemon=True)
    watcher.start()
    ready = wait_until_ready(server, begun, "--no-browser" not in args)
    status = server.wait()
    watcher.join(5)
    if not ready:
        print("JupyterLab did not start. runs/lab.log tells why; its last lines:", file=sys.stderr)
        print(*LOG.read_text(encoding="utf-8").splitlines()[-5:], sep="\n", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
