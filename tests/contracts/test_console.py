"""What every command prints: one document, or one readable line, and the exit code that goes with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from contracts.console import exit_on_error, out, print_document, printable, progress
from contracts.errors import NameUnknown, OutcomeUnknown, PriceAboveCap, SellerUnreachable
from tests.patience import PATIENCE_S


def never() -> None:
    raise AssertionError("nobody asked for the human form")


def test_with_json_stdout_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    print_document({"amount_atomic": 10**20, "note": "0.01 \u2192 \x1b[2J"}, as_json=True, human=never)
    progress("signing")
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"amount_atomic": 10**20, "note": "0.01 \u2192 \x1b[2J"}
    assert "\x1b" not in printed.out
    assert printed.err == "signing\n"


def test_without_json_a_person_is_spoken_to(capsys: pytest.CaptureFixture[str]) -> None:
    print_document({}, as_json=False, human=lambda: print("hello"))  # noqa: T201 - stands for a command's own text
    assert capsys.readouterr().out == "hello\n"


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (NameUnknown("no purchase named qwen"), 2),
        (PriceAboveCap("the price is 1.00 USDC, the cap 0.01 USDC"), 4),
        (SellerUnreachable("http://127.0.0.1:9: no connection"), 5),
        (OutcomeUnknown("paid, but no answer"), 6),
    ],
)
def test_an_error_is_a_line_with_advice_or_a_document_and_its_exit_code(
    capsys: pytest.CaptureFixture[str], error: NameUnknown, exit_code: int
) -> None:
    with pytest.raises(SystemExit) as exited, exit_on_error(as_json=False):
        raise error
    assert exited.value.code == exit_code
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"{error.code}: {error.message}\n{error.remedy}\n")

    with pytest.raises(SystemExit) as exited, exit_on_error(as_json=True):
        raise error
    assert exited.value.code == exit_code
    document = json.loads(capsys.readouterr().out)
    assert document == {
        "ok": False,
        "error": {"code": error.code, "message": error.message, "remedy": error.remedy},
    }


def test_a_sellers_text_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), exit_on_error(as_json=False):
        raise NameUnknown("[bold]no[/] \x1b[2J\x1b]0;owned\x07 \u202ereversed \r hidden")
    shown = capsys.readouterr().err
    assert shown.startswith("not_found: [bold]no[/] ")
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(shown)


def test_no_text_in_a_line_or_a_table_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "one \x1b[2J\x1b]0;owned\x07 \u202etwo\x9b"
    table = Table(hostile)
    table.add_row(hostile)
    out.print(hostile, markup=False)
    out.print(f"[bold]{hostile}[/]")
    out.print(table)
    shown = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\u202e", "\x9b"} & set(shown)
    assert shown.count("one") == shown.count("two") == 4


def test_several_lines_stay_several_lines() -> None:
    assert printable("a.yaml:1: x\na.yaml:2: y\u00e9\u4e2d") == "a.yaml:1: x\na.yaml:2: y\u00e9\u4e2d"


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), exit_on_error(as_json=True):
        1 / 0  # noqa: B018 - stands for a bug


def test_an_interrupt_exits_as_shells_expect() -> None:
    with pytest.raises(SystemExit) as exited, exit_on_error(as_json=False):
        raise KeyboardInterrupt
    assert exited.value.code == 130


def test_a_reader_that_goes_away_causes_no_traceback() -> None:
    program = (
        "from contracts.console import exit_on_error, print_document\n"
        "with exit_on_error(as_json=True):\n"
        "    while True: print_document(['x' * 1000], as_json=True, human=lambda: None)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.readline()
        command.stdout.close()
        assert command.stderr.read() == ""
        assert command.wait(PATIENCE_S) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk without room is Linux' own device")
@pytest.mark.parametrize("as_json", [True, False])
def test_an_output_that_cannot_be_written_is_told_without_a_traceback(as_json: bool) -> None:
    program = (
        "from contracts.console import exit_on_error, out, print_document\n"
        f"with exit_on_error(as_json={as_json}):\n"
        f"    print_document([], as_json={as_json}, human=lambda: out.print('x'))\n"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "output: no space left on device")
