"""A tiny model made here, and `mtnlg serve` with it as a process of its own."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import httpx

KEYS = ("the-key-of-one-tenant", "the-key-of-another-one")
NAME = "soak"
ROWS, QUEUE = 8, 100
END_IDS = (0, 1, 2, 3)  # of its tokenizer, as ids that are no text
ENDLESS = {"slide": True, "max_tokens": 60_000, "logit_bias": dict.fromkeys(map(str, END_IDS), -100)}
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


@dataclasses.dataclass
class Server:
    process: subprocess.Popen
    url: str
    log: pathlib.Path  # what it writes to standard error
    http: httpx.Client  # with the first key
    room: int  # texts that are written or wait at once

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def rss_bytes(self) -> int:
        content = pathlib.Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(content.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def measure(self, name: str) -> float:
        """A line of /metrics."""
        lines = self.http.get("/metrics").text.splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))

    def num_under_way(self) -> float:
        return self.measure("mtnlg_running") + self.measure("mtnlg_queued")


def write_model(folder: pathlib.Path) -> pathlib.Path:
    """A run with random weights that have an opinion, a tokenizer and a chat template."""
    from tests.test_lm import CONFIG, write_run

    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, init_std=1.0, seq_len=512))
    path, _ = write_run(folder / NAME, config)
    (path / "tokenizer" / "chat_template.jinja").write_text(TEMPLATE)
    return path


@contextlib.contextmanager
def serving(model: pathlib.Path, *options: str, queue: int = QUEUE) -> Iterator[Server]:
    """The command, ready to be asked; ended afterwards, if it has not ended by then."""
    with tempfile.TemporaryDirectory() as folder:
        keys, log = pathlib.Path(folder) / "keys", pathlib.Path(folder) / "log"
        keys.write_text("\n".join(KEYS))
        command = [sys.executable, "-m", "mtnlg", "serve", f"--model={model}", "--port=0", f"--key_file={keys}"]
        command += [f"--rows={ROWS}", f"--queue={queue}", *options]
        environment = {name: value for name, value in os.environ.items() if name != "MTNLG_API_KEY"} | {"JAX_PLATFORMS": "cpu"}
        with (
            open(log, "wb") as written,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=written, text=True, env=environment, start_new_session=True
            ) as process,
        ):
            try:
                line = process.stdout.readline()
                if "/v1" not in line:
                    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")
                url = line.split("the page is ")[1].split("/ ")[0]
                with client(url, KEYS[0]) as http:
                    yield Server(process, url, log, http, ROWS + queue)
            finally:
                process.terminate()
                try:
                    process.wait(40)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


def client(url: str, key: str, timeout_secs: float = 30.0) -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.Client(base_url=url, headers=headers, timeout=timeout_secs, limits=httpx.Limits(max_connections=None))


def until(condition, secs: float) -> float | None:
    """Seconds until it came true; None if it did not in time."""
    begin = time.monotonic()
    while time.monotonic() - begin < secs:
        if condition():
            return time.monotonic() - begin
        time.sleep(0.01)
    return None


def bar(total: int, what: str):
    """Of tqdm; nothing where there is no terminal."""
    from tqdm import tqdm

    return tqdm(total=total, desc=what, disable=None, leave=False, dynamic_ncols=True)
