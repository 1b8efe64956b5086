"""The committed artifacts are what the committed Solidity compiles to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from contracts.errors import UsageError
from contracts.evm import compile as compiler
from contracts.evm.artifact import ARTIFACTS, SOLIDITY, artifact_names, load_artifact
from contracts.evm.compile import compile_all, main, source_hash

PACKAGES = json.loads((Path(__file__).parents[2] / "config/devnet/package.json").read_text())["dependencies"]


def test_every_solidity_file_has_its_artifact_unless_it_is_only_imported() -> None:
    assert artifact_names() == sorted(path.stem for path in SOLIDITY.glob("*.sol"))


@pytest.mark.parametrize("name", artifact_names())
def test_an_artifact_names_the_sources_compiler_and_library_it_was_made_from(name: str) -> None:
    made = load_artifact(name)
    assert made.contract_name == name
    assert f"{name}.sol" in made.sources
    assert made.sources == {source: source_hash(source) for source in made.sources}
    assert made.compiler.startswith(PACKAGES["solc"] + "+")
    assert made.packages == {"@openzeppelin/contracts": PACKAGES["@openzeppelin/contracts"]}


@pytest.fixture(scope="module")
def compiled() -> dict[str, bytes]:
    """What the committed Solidity compiles to."""
    return compile_all()


def test_compiling_again_gives_the_committed_bytes(compiled: dict[str, bytes]) -> None:
    assert compiled == {path.name: path.read_bytes() for path in ARTIFACTS.glob("*.json")}


def test_an_unknown_contract_is_refused_with_the_known_names() -> None:
    with pytest.raises(UsageError, match="TestEUR") as refused:
        load_artifact("TestEUR")
    assert "TestUSD" in refused.value.advice


def test_the_check_fails_on_one_changed_byte_and_names_the_file(
    compiled: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiler, "compile_all", lambda: compiled)
    copy = tmp_path / "artifacts"
    shutil.copytree(ARTIFACTS, copy)
    monkeypatch.setattr(compiler, "ARTIFACTS", copy)
    changed = copy / "TestWallet.json"
    changed.write_bytes(changed.read_bytes().replace(b"0x6", b"0x7", 1))
    assert main(["--check"]) == 1
    shown = capsys.readouterr().err
    assert "TestWallet.json" in shown
    assert "TestUSD.json" not in shown


def test_a_source_that_does_not_compile_is_shown_with_the_compilers_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "Broken.sol").write_text(
        "// SPDX-License-Identifier: Apache-2.0\npragma solidity 0.8.37;\ncontract Broken { uint x = true; }\n"
    )
    monkeypatch.setattr(compiler, "SOLIDITY", tmp_path)
    assert main(["--check"]) == 1
    assert "Broken.sol:3" in capsys.readouterr().err
