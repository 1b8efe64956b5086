"""Goal: processes that are started side by side never get one another's ports. Method: several choose from a few."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from gateway.demo import ports
from gateway.demo.ports import free_ports
from gateway.demo.processes import DemoFailed
from tests.patience import PATIENCE_S

# Takes ports of a narrow range, says which, and keeps them until its stdin ends.
_NEIGHBOUR = """
import sys
from gateway.demo import ports
ports._PORTS = range(int(sys.argv[1]), int(sys.argv[2]))
print(*ports.free_ports(int(sys.argv[3])), flush=True)
sys.stdin.read()
"""


def test_the_ports_of_one_process_are_different() -> None:
    assert len({*free_ports(20), *free_ports(20)}) == 40


def test_a_port_that_another_process_was_given_is_not_given_again_before_that_process_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As many as nobody else needs: other tests that run now take few, from the same thousands.
    (first,) = free_ports(1)
    narrow = range(first + 1, first + 101)
    command = [sys.executable, "-c", _NEIGHBOUR, str(narrow.start), str(narrow.stop), "40"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as neighbour:
        assert neighbour.stdout is not None
        theirs = {int(port) for port in neighbour.stdout.readline().split()}
        assert len(theirs) == 40
        monkeypatch.setattr(ports, "_PORTS", narrow)
        assert theirs.isdisjoint(free_ports(20))
        with pytest.raises(DemoFailed, match="fewer than 100 free ports"):
            free_ports(100)
        neighbour.communicate(timeout=PATIENCE_S)
    assert theirs & set(free_ports(20))


def test_a_port_on_which_somebody_listens_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(ports, "_PORTS", range(port, port + 1))
        with pytest.raises(DemoFailed):
            free_ports(1)


def test_without_a_place_for_the_locks_ports_are_given_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_register", lambda: None)
    assert len(set(free_ports(20))) == 20
