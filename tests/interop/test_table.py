"""The matrix that docs/interop.md holds is the whole one, and green."""

from __future__ import annotations

from tests.interop.cells import Server, cells, impossible
from tests.interop.run import Matrix, Result
from tests.interop.table import kept, section


def test_the_kept_matrix_has_every_cell_and_none_is_red() -> None:
    matrix = Matrix(cells())
    matrix.results = {cell: Result(cell, reason=impossible(cell.stall)) for cell in cells()}
    matrix.live = {server: server.is_ours for server in Server}
    assert kept() == section(matrix), "run `make test-interop ARGS=--write`"


def test_a_red_cell_and_a_cell_without_a_result_are_told_apart() -> None:
    good, bad, absent = cells()[:3]
    matrix = Matrix([good, bad, absent], {good: Result(good), bad: Result(bad, problem="the payee got nothing")})
    assert matrix.red == [f"{bad.name}: the payee got nothing", f"{absent.name}: no result"]
    assert "| ✓ | ✗ | ? | ? |" in section(matrix)
