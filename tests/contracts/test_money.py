"""Amounts: every spelling a person may write, every one that is refused, and no loss on the way back."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contracts.address import parse_address
from contracts.errors import UsageError
from contracts.money import AMOUNT_ATOMIC_MAX, Asset, format_amount, parse_amount

TOKEN = parse_address("0x036CbD53842c5426634e7929541eC2318f3dCF7e")
USDC = Asset(TOKEN, "USDC", "2", 6, "USDC")
DAI = Asset(TOKEN, "Dai Stablecoin", "1", 18, "DAI")
WHOLE = Asset(TOKEN, "Ticket", "1", 0, "TIX")
TENTH = Asset(TOKEN, "Tenth", "1", 1, "TEN")


@pytest.mark.parametrize(
    ("text", "amount_atomic"),
    [
        ("0.01", 10_000),
        ("$0.01", 10_000),
        ("0.01 USDC", 10_000),
        ("$0.01 USDC", 10_000),
        (" 0.01 ", 10_000),
        ("1", 1_000_000),
        ("1.5", 1_500_000),
        ("001.50", 1_500_000),
        ("0.000001", 1),
        ("1000 atomic", 1000),
        ("0010 atomic", 10),
        ("123456789.654321", 123_456_789_654_321),
        (f"{AMOUNT_ATOMIC_MAX} atomic", AMOUNT_ATOMIC_MAX),
    ],
)
def test_every_spelling_of_an_amount_becomes_its_atomic_units(text: str, amount_atomic: int) -> None:
    assert parse_amount(text, USDC) == amount_atomic


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "0,01",
        "1.000,00",
        "1,000",
        "-1",
        "+1",
        "-1 atomic",
        "1e3",
        "1E-2",
        "NaN",
        "nan",
        "inf",
        "Infinity",
        ".5",
        "5.",
        "0x10",
        "1_000",
        "1 000",
        "$",
        "$ 1",
        "1$",
        "€1",
        "$$1",
        "1.2.3",
        "0.0000001",
        "0.0100000",
        "1USDC",
        "1  USDC",
        "1 usdc",
        "1 USDT",
        "1 ATOMIC",
        "1.5 atomic",
        "1\natomic",
        "\u0661",
        "\uff11",
        "²",
        "one",
        f"{AMOUNT_ATOMIC_MAX + 1} atomic",
        "9" * 61,
        "1" * 100_000,
    ],
)
def test_any_other_spelling_is_refused_with_the_fields_name(text: str) -> None:
    with pytest.raises(UsageError, match=r"^price: ") as refused:
        parse_amount(text, USDC, "price")
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("value", [0.01, 1, True, None, b"1", ["1"]])
def test_only_text_is_an_amount(value: object) -> None:
    with pytest.raises(UsageError, match="in quotes"):
        parse_amount(value, USDC)


@pytest.mark.parametrize("text", ["0", "0.00", "$0", "0 atomic"])
def test_zero_is_refused_unless_it_is_allowed(text: str) -> None:
    with pytest.raises(UsageError, match="more than zero"):
        parse_amount(text, USDC)
    assert parse_amount(text, USDC, zero_allowed=True) == 0


def test_a_dollar_sign_names_only_dollar_tokens() -> None:
    assert parse_amount("$1", DAI) == 10**18
    with pytest.raises(UsageError, match="not a dollar token"):
        parse_amount("$1", WHOLE)


def test_an_amount_has_at_most_the_tokens_own_decimals() -> None:
    assert parse_amount("0.000000000000000001", DAI) == 1
    assert parse_amount("3", WHOLE) == 3
    with pytest.raises(UsageError, match="TIX has 0 decimals"):
        parse_amount("3.0", WHOLE)
    with pytest.raises(UsageError, match="USDC has 6 decimals"):
        parse_amount("0.1234567", USDC)


def test_a_limit_that_is_finer_than_a_token_is_never_rounded_up() -> None:
    assert parse_amount("0.0019999999", USDC, rounds_down=True) == 1_999
    assert parse_amount("2.9", WHOLE, rounds_down=True) == 2
    assert parse_amount("0.0000009", USDC, zero_allowed=True, rounds_down=True) == 0
    assert parse_amount("0.0000009", DAI, rounds_down=True) == 900_000_000_000
    with pytest.raises(UsageError, match="more than zero"):
        parse_amount("0.0000009", USDC, rounds_down=True)


@pytest.mark.parametrize(
    ("amount_atomic", "asset", "text"),
    [
        (1000, USDC, "0.001 USDC"),
        (0, USDC, "0.00 USDC"),
        (1_000_000, USDC, "1.00 USDC"),
        (1_500_000, USDC, "1.50 USDC"),
        (1, USDC, "0.000001 USDC"),
        (-2_500, USDC, "-0.0025 USDC"),
        (1, DAI, "0.000000000000000001 DAI"),
        (7, WHOLE, "7 TIX"),
        (15, TENTH, "1.5 TEN"),
    ],
)
def test_a_shown_amount_is_exact(amount_atomic: int, asset: Asset, text: str) -> None:
    assert format_amount(amount_atomic, asset) == text
    assert format_amount(amount_atomic, asset, symbol=False) == text.rpartition(" ")[0]


@given(amount_atomic=st.integers(0, AMOUNT_ATOMIC_MAX), decimals=st.integers(0, 40), symbol=st.booleans())
@example(amount_atomic=AMOUNT_ATOMIC_MAX, decimals=18, symbol=True)
def test_a_shown_amount_reads_back_as_itself(amount_atomic: int, decimals: int, symbol: bool) -> None:
    asset = Asset(TOKEN, "Any", "1", decimals, "ANY")
    shown = format_amount(amount_atomic, asset, symbol=symbol)
    whole_digits = len(shown.partition(".")[0].partition(" ")[0])
    if whole_digits <= 60:
        assert parse_amount(shown, asset, zero_allowed=True) == amount_atomic
    assert parse_amount(f"{amount_atomic} atomic", asset, zero_allowed=True) == amount_atomic


@given(text=st.text(max_size=40))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    try:
        amount_atomic = parse_amount(text, USDC)
    except UsageError:
        return
    assert 0 < amount_atomic <= AMOUNT_ATOMIC_MAX
