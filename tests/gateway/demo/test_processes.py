"""The demo's processes are ready when they answer, explain themselves when they die, and never outlive the demo."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import UsageError
from gateway.demo.ports import free_ports
from gateway.demo.processes import (
    Child,
    Crew,
    DemoFailed,
    demo_folder,
    interrupt_on_termination,
    wait_until,
)
from tests.patience import PATIENCE_S

SERVER = """
import http.server, sys
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler)
print("serving", flush=True)
server.serve_forever()
"""
# Ignores SIGTERM, and starts a child that does the same.
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(600)
"""


@pytest.fixture
def quick_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.demo.processes._STOP_TIMEOUT_S", 0.3)


def python(source: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", source, *arguments]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_child_is_ready_once_it_answers_and_gone_after_the_context(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with Crew(tmp_path, {}) as crew:
        child = crew.start("server", python(SERVER, str(port)))
        crew.wait_ready(child, f"http://127.0.0.1:{port}/")
        crew.check_alive()
    assert child.process.poll() is not None


def test_a_child_that_dies_before_it_is_ready_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with Crew(tmp_path, {}) as crew:
        child = crew.start("server", python("print('no model found'); raise SystemExit(3)"))
        with pytest.raises(DemoFailed, match=r"server: ended with code 3.*\n  no model found"):
            crew.wait_ready(child, "http://127.0.0.1:9/")
        with pytest.raises(DemoFailed, match="code 3"):
            crew.check_alive()


def test_a_wait_ends_when_its_time_is_over(tmp_path: Path) -> None:
    with Crew(tmp_path, {}) as crew:
        child = crew.start("sleeper", python("import time; time.sleep(600)"))
        with pytest.raises(DemoFailed, match="sleeper: it did not wake within 0 s"):
            wait_until(lambda: False, child, "it did not wake", timeout_s=0.1)


@pytest.mark.usefixtures("quick_stop")
def test_a_child_that_ignores_the_request_to_stop_is_killed_with_its_own_child(tmp_path: Path) -> None:
    with Crew(tmp_path, {}) as crew:
        child = crew.start("stubborn", python(STUBBORN))
        wait_until(lambda: child.log_file.read_text().endswith("\n"), child, "it said nothing")
        grandchild = int(child.log_file.read_text())
        assert is_running(grandchild)
    assert child.process.poll() == -signal.SIGKILL
    # It was killed with its group; the kernel ends it in its own time.
    deadline = time.monotonic() + PATIENCE_S
    while is_running(grandchild):
        assert time.monotonic() < deadline, "the grandchild lives on"
        time.sleep(0.01)


def test_children_end_when_the_story_fails(tmp_path: Path) -> None:
    started: list[Child] = []

    def story() -> None:
        with Crew(tmp_path, {}) as crew:
            started.append(crew.start("sleeper", python("import time; time.sleep(600)")))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        story()
    assert started[0].process.poll() is not None


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Strike with Ctrl-C at the moment a child exists and nobody has written down that it does; list those children."""
    children: list[subprocess.Popen[bytes]] = []

    class InterruptedPopen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            children.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", InterruptedPopen)
    return children


def test_an_interrupt_while_a_child_starts_does_not_lose_the_child(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    with pytest.raises(KeyboardInterrupt), Crew(tmp_path, {}) as crew:
        crew.start("sleeper", python("import time; time.sleep(600)"))
    assert [child.poll() for child in started] == [-signal.SIGTERM]


def test_an_interrupt_while_a_command_starts_does_not_lose_the_command(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    with pytest.raises(KeyboardInterrupt), Crew(tmp_path, {}) as crew:
        crew.run("sleeper", python("import time; time.sleep(600)"))
    assert [child.poll() for child in started] == [-signal.SIGTERM]


def test_a_second_interrupt_does_not_cut_the_ending_of_children_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []

    def interrupted_wait(child: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        signal.raise_signal(signal.SIGINT)
        ended.append(wait(child, timeout))
        return ended[-1]

    wait = subprocess.Popen.wait
    crew = Crew(tmp_path, {}).__enter__()
    children = [crew.start(name, python("import time; time.sleep(600)")) for name in ("one", "two")]
    monkeypatch.setattr(subprocess.Popen, "wait", interrupted_wait)
    with pytest.raises(KeyboardInterrupt):
        crew.stop()
    assert ended
    assert [child.process.returncode for child in children] == [-signal.SIGTERM] * 2


def test_children_end_with_python_where_an_interrupt_kept_the_context_from_ending(tmp_path: Path) -> None:
    story = """
import sys
from pathlib import Path
from gateway.demo.processes import Crew
crew = Crew(Path(sys.argv[1]), {}).__enter__()
print(crew.start("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"]).process.pid)
"""
    done = subprocess.run(python(story, str(tmp_path)), capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert not is_running(int(done.stdout))


def test_a_command_that_fails_is_reported_with_what_it_said(tmp_path: Path) -> None:
    with Crew(tmp_path, {}) as crew, pytest.raises(DemoFailed, match=r"buy: exit code 4\nprice_above_cap: too dear"):
        crew.run("buy", python("import sys; sys.exit(sys.stderr.write('price_above_cap: too dear') and 4)"))


def test_a_command_that_hangs_is_given_up(tmp_path: Path) -> None:
    with Crew(tmp_path, {}) as crew, pytest.raises(DemoFailed, match="buy: not done after 0 s"):
        crew.run("buy", python("import time; time.sleep(600)"), timeout_s=0.2)


def test_children_see_no_farebox_setting_and_no_proxy_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAREBOX_SIGNER", "keyfile:/home/me/real.key")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("FAREBOX_ANVIL", "/opt/anvil")
    with Crew(tmp_path, {"FAREBOX_HOME": "/here"}) as crew:
        seen = crew.run("env", python("import os; print(sorted(os.environ.items()))"))
    assert "real.key" not in seen
    assert "proxy:3128" not in seen
    assert "('FAREBOX_ANVIL', '/opt/anvil')" in seen
    assert "('FAREBOX_HOME', '/here')" in seen


def test_the_folder_is_the_users_alone_and_goes_with_the_demo() -> None:
    with demo_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


def test_the_folder_stays_when_the_demo_failed_because_its_logs_explain() -> None:
    with pytest.raises(DemoFailed), demo_folder() as folder:
        raise DemoFailed("it broke")
    assert folder.is_dir()
    folder.rmdir()


def test_a_refused_option_leaves_no_folder_behind() -> None:
    with pytest.raises(UsageError), demo_folder() as folder:
        raise UsageError("--model: no such thing")
    assert not folder.exists()


def test_a_request_to_terminate_runs_the_same_clean_up_as_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interrupt_on_termination():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_only_the_first_request_to_end_interrupts() -> None:
    with interrupt_on_termination():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_popen_leaves_the_log_where_the_message_says(tmp_path: Path) -> None:
    with Crew(tmp_path, {}) as crew:
        child = crew.start("talker", python("print('one'); print('two')"))
        child.process.wait(PATIENCE_S)
        assert child.last_words() == "  one\n  two"
        assert str(child.failed("stopped").message).startswith(f"talker: stopped. The end of {child.log_file}")
    assert subprocess.run(["cat", str(child.log_file)], capture_output=True, check=True).stdout == b"one\ntwo\n"
