"""Settings files: a person who mistypes is told the file, the line, the key and what to write."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConfigInvalid
from contracts.settings import SettingInvalid, StrictModel, load_settings, parse_settings


class Route(StrictModel):
    match: str
    price: str | None = None
    free: bool = False


class Settler(StrictModel):
    kind: Literal["chain", "facilitator"]
    key_file: str | None = None


class Example(StrictModel):
    pay_to: str
    upstream: str = "http://127.0.0.1:9000"
    port: int = 1
    ratio: float = 0.5
    rpc: list[str] = pydantic.Field(default_factory=list)
    settler: Settler | None = None
    routes: list[Route] = pydantic.Field(default_factory=list)
    models: dict[str, str] = pydantic.Field(default_factory=dict)

    @pydantic.model_validator(mode="after")
    def _no_free_price(self) -> Example:
        for index, route in enumerate(self.routes):
            if route.free and route.price:
                raise SettingInvalid(("routes", index, "price"), "a free route has no price")
        return self


def problem(text: str) -> str:
    with pytest.raises(ConfigInvalid) as refused:
        parse_settings(text, Example, "seller.yaml")
    assert refused.value.exit_code == 2
    return refused.value.message


def test_a_file_with_comments_lists_and_sections_is_read(tmp_path: Path) -> None:
    file = tmp_path / "seller.yaml"
    file.write_text(
        """
        pay_to: "0x12"     # mine
        rpc: ["http://127.0.0.1:8545", http://127.0.0.1:8546]
        settler: {kind: chain, key_file: settler.key}
        routes:
          - {match: "GET /paid", price: "0.01"}
          - match: GET /free
            free: true
        models: {"qwen3.5:9b": "0.01"}
        """
    )
    settings = load_settings(file, Example)
    assert settings.rpc == ["http://127.0.0.1:8545", "http://127.0.0.1:8546"]
    assert settings.settler == Settler(kind="chain", key_file="settler.key")
    assert [route.free for route in settings.routes] == [False, True]
    assert settings.models == {"qwen3.5:9b": "0.01"}


def test_settings_cannot_be_changed_once_read() -> None:
    settings = parse_settings("pay_to: a", Example, "seller.yaml")
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        settings.pay_to = "b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pay_to: a\nupsteam: x", "seller.yaml:2: `upsteam` is not a setting; did you mean `upstream`?"),
        ("pay_to: a\nprice: '1'", "seller.yaml:2: `price` is not a setting here; it belongs under `routes`"),
        ("pay_to: a\nzzzzzz: x", "seller.yaml:2: `zzzzzz` is not a setting"),
        (
            "pay_to: a\nsettler:\n  kind: chain\n  keyfile: k",
            "seller.yaml:4: `settler.keyfile` is not a setting; did you mean `key_file`?",
        ),
        (
            "pay_to: a\nroutes:\n  - {match: x}\n  - match: y\n    prise: '1'",
            "seller.yaml:5: `routes.1.prise` is not a setting; did you mean `price`?",
        ),
        ("upstream: x", "seller.yaml:1: `pay_to` is missing"),
        ("pay_to: a\nroutes:\n  - price: '1'", "seller.yaml:3: `routes.0.match` is missing"),
        ("pay_to: a\nport: '8402'", "seller.yaml:2: `port`: Input should be a valid integer"),
        ("pay_to: a\nport: 1.5", "seller.yaml:2: `port`: Input should be a valid integer"),
        ("pay_to: a\nport: true", "seller.yaml:2: `port`: Input should be a valid integer"),
        ("pay_to: a\nratio: '0.5'", "seller.yaml:2: `ratio`: Input should be a valid number"),
        ("pay_to: a\nrpc: http://x", "seller.yaml:2: `rpc`: Input should be a valid list"),
        ("pay_to: a\nrpc:\n- ok\n- 1", "seller.yaml:4: `rpc.1`: Input should be a valid string"),
        (
            "pay_to: a\nsettler: {kind: chian}",
            "seller.yaml:2: `settler.kind`: Input should be 'chain' or 'facilitator'",
        ),
        (
            "pay_to: a\nroutes:\n  - {match: x}\n  - match: y\n    free: true\n    price: '1'",
            "seller.yaml:6: `routes.1.price`: a free route has no price",
        ),
        ("pay_to: a\npay_to: b", "seller.yaml:2: `pay_to` is set twice"),
        ("pay_to: a\nsettler:\n  kind: chain\n  kind: chain", "seller.yaml:4: `kind` is set twice"),
        ("pay_to: a\nroutes:\n - {match: x, match: y}", "seller.yaml:3: `match` is set twice"),
        ("pay_to: [a", "seller.yaml:1: not YAML"),
        ("pay_to: a\n\tport: 1", "seller.yaml:2: not YAML"),
        ("pay_to: 'a\nport: 1", "seller.yaml:2: not YAML"),
        ("", "seller.yaml: expected `key: value` lines"),
        ("# only a comment", "seller.yaml: expected `key: value` lines"),
        ("just words", "seller.yaml: expected `key: value` lines"),
        ("- a\n- b", "seller.yaml: expected `key: value` lines"),
        ("pay_to: a\n---\npay_to: b", "seller.yaml:2: not YAML"),
        ("pay_to: !!python/object/apply:os.system [id]", "seller.yaml:1: not YAML"),
        ("pay_to: *nobody", "seller.yaml:1: not YAML"),
        ("1: x\npay_to: a", "seller.yaml:1: `1`"),
        ("? [a, b]\n: x", "seller.yaml:1: not YAML"),
        ("pay_to: \x00", "seller.yaml: not YAML"),
        ("pay_to: 2020-13-45", "seller.yaml: not YAML"),
        ("pay_to: " + "1" * 5000, "seller.yaml: not YAML"),
        ("pay_to: a\nrpc: &loop [*loop]", "seller.yaml:2: `rpc.0`"),
        ("pay_to: " + "[" * 20_000, "seller.yaml:1: nested too deeply"),
    ],
    ids=lambda text: text[:40],
)
def test_a_mistake_is_told_with_its_line_and_key(text: str, message: str) -> None:
    assert problem(text).startswith(message)


def test_every_mistake_is_told_at_once() -> None:
    assert problem("upsteam: x\nport: y").splitlines() == [
        "seller.yaml:1: `pay_to` is missing",
        "seller.yaml:2: `port`: Input should be a valid integer",
        "seller.yaml:1: `upsteam` is not a setting; did you mean `upstream`?",
    ]


def test_an_unquoted_address_is_a_number_to_yaml_and_the_advice_is_to_quote_it() -> None:
    assert problem("pay_to: 0x209693Bc6afc0C5328bA36FaF03C514EF312287C") == (
        "seller.yaml:1: `pay_to`: Input should be a valid string; write it in quotes"
    )
    assert problem("pay_to: a\nmodels: {m: 0.01}") == (
        "seller.yaml:2: `models.m`: Input should be a valid string; write it in quotes"
    )


def test_a_file_of_nested_aliases_is_refused_in_good_time() -> None:
    lines = ["pay_to: a", "a0: &a0 [x, x]"]
    lines += [f"a{level}: &a{level} [" + ", ".join([f"*a{level - 1}"] * 10) + "]" for level in range(1, 30)]
    assert "`a29` is not a setting" in problem("\n".join(lines))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"absent.yaml: cannot be read: No such file"):
        load_settings(tmp_path / "absent.yaml", Example)
    with pytest.raises(ConfigInvalid, match=r"cannot be read: Is a directory"):
        load_settings(tmp_path, Example)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"pay_to: \xff\xfe")
    with pytest.raises(ConfigInvalid, match=r"binary.yaml: cannot be read: .*utf-8"):
        load_settings(binary, Example)


def test_a_file_over_the_cap_is_not_read(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_text("pay_to: a\n" + "#" * 1024 * 1024)
    with pytest.raises(ConfigInvalid, match="larger than 1048576 bytes"):
        load_settings(large, Example)


@given(text=st.text(alphabet="ab:-[]{}&*!|>'\"#%@ \n\t0159.,?x", max_size=60))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    try:
        parse_settings(text, Example, "seller.yaml")
    except ConfigInvalid as error:
        refusal = error.message
    else:
        return
    assert refusal.startswith("seller.yaml")
