"""What is shipped: locks, wheel, image, compose file and units. No container is started; what can be read is read."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import pytest
import typer
import yaml

from gateway.cli import app

ROOT = Path(__file__).parents[1]
ROOMS = ("contracts", "registry", "buyer", "seller", "gateway")
LOCKS = sorted((ROOT / "config/locks").glob("*.txt"))


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution and not from the repository."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (built,) = folder.glob("farebox-*-py3-none-any.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and, through a path file, our dependencies, but not the repository."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-qq", "--no-deps", "--no-index", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", dockerfile.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_wheel_carries_every_file_of_every_room(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    expected = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and path.suffix in {".py", ".sql", ".json", ".sol", ".cjs", ".typed"}
    }
    assert {"contracts/evm/artifacts/TestUSD.json", *(f"{room}/py.typed" for room in ROOMS)} <= expected
    assert expected <= names


def test_the_wheel_installs_the_rooms_and_nothing_else(wheel: Path) -> None:
    tops = {PurePosixPath(name).parts[0] for name in ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(ROOMS)


def test_a_seller_runs_from_the_wheel_without_the_heavy_libraries(installed: Path) -> None:
    program = (
        "import sys, seller, contracts.evm.artifact as a;"
        "a.load_artifact('TestUSD');"
        "print(seller.__file__);"
        "print(sorted({'web3', 'litellm', 'lightgbm'} & set(sys.modules)))"
    )
    where, heavy = run(installed, "-I", "-c", program).splitlines()
    assert Path(where).is_relative_to(installed.parents[1])
    assert heavy == "[]"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_pins_every_package_by_version_and_hash_and_names_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    requirements = re.findall(r"^[a-zA-Z0-9][^\n]*(?:\n    [^\n]*)*", text, re.MULTILINE)
    assert requirements
    for requirement in requirements:
        assert re.match(r"[\w.\[\],-]+==\S+", requirement), requirement.splitlines()[0]
        assert "--hash=sha256:" in requirement


def test_the_image_runs_the_versions_the_tests_ran() -> None:
    tested = pins(ROOT / "config/locks/dev.txt")
    for lock in ("gateway.txt", "build.txt"):
        shipped = pins(ROOT / "config/locks" / lock)
        assert shipped
        assert shipped <= tested


def pins(lock: Path) -> set[str]:
    return set(re.findall(r"^[\w.\[\]-]+==[^\s;]+", lock.read_text(), re.MULTILINE))


def test_the_npm_lock_names_no_address_and_pins_what_this_project_asks_for() -> None:
    lock = json.loads((ROOT / "config/devnet/package-lock.json").read_text())
    asked = json.loads((ROOT / "config/devnet/package.json").read_text())["dependencies"]
    assert not [name for name, entry in lock["packages"].items() if "resolved" in entry]
    for name, version in asked.items():
        entry = lock["packages"][f"node_modules/{name}"]
        assert entry["version"] == version
        assert entry["integrity"].startswith("sha512-")


def test_the_image_is_built_from_the_lock_and_runs_as_nobody_special() -> None:
    steps = instructions(ROOT / "Dockerfile")
    installs = [rest for word, rest in steps if word == "RUN" and "pip install" in rest]
    assert installs
    assert all("--require-hashes" in rest or "--no-index" in rest for rest in installs)
    last_stage = steps[max(index for index, (word, _) in enumerate(steps) if word == "FROM") :]
    final = dict(last_stage)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", final["USER"])
    assert "FAREBOX_HEALTH_URL" in final["HEALTHCHECK"]
    assert json.loads(final["ENTRYPOINT"]) == ["farebox"]
    assert [word for word, _ in last_stage].index("USER") < [word for word, _ in last_stage].index("ENTRYPOINT")


def test_everything_the_image_copies_exists_and_is_let_through() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        source
        for word, rest in instructions(ROOT / "Dockerfile")
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert set(ROOMS) <= set(copied)
    assert set(copied) == let_through
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_the_health_check_of_the_image_is_python_that_fails_when_nobody_answers(unused_tcp_port: int) -> None:
    check = dict(instructions(ROOT / "Dockerfile"))["HEALTHCHECK"]
    words = json.loads(check[check.index("[") :])
    url = f"http://127.0.0.1:{unused_tcp_port}/healthz"
    done = subprocess.run(
        [sys.executable, *words[1:]], env={"FAREBOX_HEALTH_URL": url}, capture_output=True, check=False
    )
    assert done.returncode != 0
    assert b"URLError" in done.stderr


def test_compose_starts_three_roles_and_only_the_settler_has_the_key() -> None:
    compose = yaml.safe_load((ROOT / "config/compose.yaml").read_text())
    services = compose["services"]
    assert {name: service["command"][0] for name, service in services.items()} == {
        "gateway": "serve",
        "seller": "sell",
        "settle": "settle",
    }
    assert [name for name, service in services.items() if "secrets" in service] == ["settle"]
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True
    assert all(port.startswith("127.0.0.1:") for port in services["gateway"]["ports"])
    named = {volume.split(":")[0] for service in services.values() for volume in service["volumes"]}
    files = {name for name in named if name.startswith("./")}
    assert named - files == set(compose["volumes"])
    assert [name for name in files if not (ROOT / "config" / name).is_file()] == []


def unit(name: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(ROOT / "config/systemd" / name)
    return parsed


@pytest.mark.parametrize("name", ["farebox-serve.service", "farebox-process.service", "farebox-sell.service"])
def test_a_unit_types_a_command_that_exists_and_runs_as_nobody_special(name: str) -> None:
    service = unit(name)["Service"]
    program, command, *words = service["ExecStart"].split()
    assert program == "/opt/farebox/bin/farebox"
    known = {option for each in _command(command).params for option in each.opts}
    assert {word for word in words if word.startswith("--")} <= known
    assert service["User"].startswith("farebox")
    assert service["NoNewPrivileges"] == "yes"


def test_the_gateways_unit_hides_the_key_that_the_refill_reads() -> None:
    key = unit("farebox-process.service")["Service"]["ExecStart"].partition("keyfile:")[2]
    assert unit("farebox-serve.service")["Service"]["InaccessiblePaths"] == f"-{key}"
    assert unit("farebox-process.timer")["Timer"]["OnUnitInactiveSec"]


def _command(name: str) -> typer.core.TyperCommand:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    command = group.commands[name]
    assert isinstance(command, typer.core.TyperCommand)
    return command
