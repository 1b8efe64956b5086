"""Goal: what the documentation tells a reader to type, works. Method: type it.

A page is a story: its blocks run in order, in one folder, in one shell. `sh` blocks must succeed; `sh service=PORT`
blocks stay running, and the story goes on once the port answers; `yaml file=…`, `python file=…` and `js file=…` blocks
become files; `text` blocks are for what cannot run here, and say so. A page that `continues:` another begins where that
one ended. The npm packages that a page says to install are those of config/interop.
The ports of the text are replaced by free ones, so that stories may be told side by side. What stays running starts
cold, as at a reader's; what is typed and ends is forked from a warm process.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.demo.ports import free_ports
from tests.docs.warm_shell import warm_farebox
from tests.patience import PATIENCE_S
from tests.warm import Warm

REPO = Path(__file__).parents[2]
PORTS = ("8545", "9000", "8402", "8403", "8405", "9402", "9403", "4021")

_BLOCK = re.compile(
    r"^```(?P<language>\w+)(?: (?P<key>file|service)=(?P<value>\S+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_CONTINUES = re.compile(r"<!-- continues: (\S+) -->")


@dataclass(frozen=True)
class Block:
    language: str
    key: str | None
    value: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of the pages this one continues, then its own."""
    text = page.read_text()
    before = [block for name in _CONTINUES.findall(text) for block in blocks_of(page.parent / name)]
    found = [Block(m["language"], m["key"], m["value"] or "", m["text"]) for m in _BLOCK.finditer(text)]
    assert text.count("```") == 2 * len(found), (
        f"{page.name}: a block is not closed, or its first line is not understood"
    )
    return before + found


class Stage:
    """One reader's folder and shell."""

    def __init__(self, folder: Path, warm_commands: Path) -> None:
        self.folder = folder
        self.warm_commands = warm_commands
        self.services: list[tuple[str, subprocess.Popen[bytes], Path]] = []
        self.ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FAREBOX_")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "FAREBOX_HOME": str(folder / "home"),
            "FAREBOX_SELL_ADMIN_LISTEN": f"127.0.0.1:{self.ports['9402']}",
            "FAREBOX_SERVE_LISTEN": f"127.0.0.1:{self.ports['8403']}",
            "FAREBOX_SERVE_ADMIN_LISTEN": f"127.0.0.1:{self.ports['9403']}",
            "NO_COLOR": "1",
        }

    def play(self, block: Block) -> None:
        text = re.sub(r"\b(" + "|".join(PORTS) + r")\b", lambda match: self.ports[match[1]], block.text)
        if block.key == "file":
            (self.folder / block.value).write_text(text)
        elif block.key == "service":
            self._serve(text, self.ports[block.value])
        elif block.language == "sh":
            self._type(text)
        else:
            assert block.language == "text", f"a {block.language} block that nothing runs:\n{block.text}"

    def _type(self, text: str) -> None:
        """Run one block in bash; what it exports is there for the next, but for where the warm commands are."""
        keep = "declare -px | grep -v '^declare -x PATH=' > .env.sh"
        script = f"[ -f .env.sh ] && source .env.sh\nset -euo pipefail\n{text}\n{keep}\n"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env={**self.environment, "PATH": f"{self.warm_commands}{os.pathsep}{self.environment['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, (
            f"exit {done.returncode} from:\n{text}\n{done.stdout}\n{done.stderr}\n{self._service_logs()}"
        )

    def _serve(self, text: str, port: str) -> None:
        log = self.folder / f"service-{port}.log"
        script = f"[ -f .env.sh ] && source .env.sh\n{text}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", script],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.services.append((text.strip(), process, log))
        deadline = time.monotonic() + PATIENCE_S
        # A service says that it is there when it is; its port may answer a moment earlier.
        while not (_answers(int(port)) and log.stat().st_size):
            assert process.poll() is None, f"ended at once: {text}\n{log.read_text()}"
            assert time.monotonic() < deadline, f"nothing listens on {port}: {text}\n{log.read_text()}"
            time.sleep(0.1)

    def _service_logs(self) -> str:
        return "\n".join(f"--- {text}\n{log.read_text()[-3000:]}" for text, _, log in self.services)

    def close(self) -> None:
        for _, process, _ in reversed(self.services):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture
def stage(tmp_path: Path, warm: Warm) -> Iterator[Stage]:
    (tmp_path / "node_modules").symlink_to(REPO / "config" / "interop" / "node_modules")
    with warm_farebox(warm) as commands:
        stage = Stage(tmp_path, commands)
        yield stage
        stage.close()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _last_of_each_story() -> list[Path]:
    """Return the pages that no other continues; the stories they end contain all others."""
    pages = sorted((REPO / "docs").glob("*.md"))
    continued = {name for page in pages for name in _CONTINUES.findall(page.read_text())}
    return [page for page in pages if page.name not in continued and blocks_of(page)]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", _last_of_each_story(), ids=lambda page: page.stem)
def test_every_block_of_the_page_does_what_it_says(page: Path, stage: Stage) -> None:
    for block in blocks_of(page):
        stage.play(block)


def test_the_readme_asks_for_two_commands_and_the_demo_runs(tmp_path: Path) -> None:
    assert [block.text.strip() for block in blocks_of(REPO / "README.md") if block.language == "sh"] == [
        "make demo",
        "make test",
    ]
    done = subprocess.run(
        ["make", "--no-print-directory", "demo"],
        cwd=REPO,
        env={**os.environ, "NO_COLOR": "1", "FAREBOX_HOME": str(tmp_path / "home")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for figure in ("5", "15"):
        assert re.search(rf"\b{figure}\b", done.stdout), "the books name what was spent and what is left"


def test_every_link_between_pages_leads_somewhere() -> None:
    pages = [*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md")]
    broken = [
        f"{page.relative_to(REPO)} -> {target}"
        for page in pages
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []
