"""Signers, and the policy in front of them."""

from __future__ import annotations

import io
import json
import secrets
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from eth_account import Account

from buyer.bounded import BoundedSigner, Bounds
from buyer.fresh import fresh_authorization
from buyer.home import Home
from buyer.signers import KeySigner, Signer, open_signer, recall_signer, remember_signer
from contracts.address import Address, parse_address
from contracts.errors import (
    BudgetExceeded,
    FareboxError,
    NameUnknown,
    PriceAboveCap,
    SignerFailed,
    TermsNotAllowed,
    UsageError,
)
from contracts.evm.agent_wallet import approval_digest
from contracts.networks import Network
from contracts.offers import PERMIT2
from contracts.schemes.authorization import Authorization
from contracts.schemes.exact_eip3009 import cancel_digest
from contracts.schemes.gas_sponsoring import Permit, permit_digest
from contracts.schemes.rails import rail_of
from contracts.signature import recover
from contracts.typed_data import Domain
from tests.buyer.parts import NOW_S, closed_port_url, offer_of, serving
from tests.buyer.signing_server import SigningServer

SECRET = bytes(range(1, 33))
OFFER = offer_of()
OVER_PERMIT2 = replace(OFFER, method=PERMIT2)
METERED = replace(OVER_PERMIT2, scheme="upto", extra={"facilitatorAddress": "0x" + "99" * 20})
EVERY_WAY = (OFFER, OVER_PERMIT2, METERED)


def authorizations(count: int, payer: Address) -> list[Authorization]:
    return [
        Authorization(payer, OFFER.pay_to, OFFER.amount_atomic, 0, NOW_S + 600, secrets.token_bytes(32))
        for _ in range(count)
    ]


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def check_signs(signer: Signer) -> None:
    for offer in EVERY_WAY:
        wanted = [fresh_authorization(offer, signer.address, secrets.token_bytes(32), NOW_S + 600) for _ in range(3)]
        signatures = signer.sign_authorizations(wanted, offer)
        for authorization, signature in zip(wanted, signatures, strict=True):
            assert recover(rail_of(offer).digest(authorization, offer), signature) == signer.address
    wallet = Domain("AgentWallet", "1", 31337, OFFER.pay_to)
    (approval,) = signer.sign_approvals([b"d" * 32], wallet)
    assert recover(approval_digest(OFFER.pay_to, 31337, b"d" * 32), approval) == signer.address
    permit = Permit(signer.address, OFFER.pay_to, 5, 6, NOW_S)
    assert recover(permit_digest(permit, OFFER.domain), signer.sign_permit(permit, OFFER.domain)) == signer.address
    (cancelled,) = signer.sign_cancellations([bytes(32)], OFFER.domain)
    assert recover(cancel_digest(signer.address, bytes(32), OFFER.domain), cancelled) == signer.address


@pytest.mark.parametrize("text", [SECRET.hex(), "0x" + SECRET.hex() + "\n"])
def test_a_key_file_signs(tmp_path: Path, text: str) -> None:
    signer = open_signer(f"keyfile:{write(tmp_path / 'key', text)}")
    assert signer.address == parse_address(Account.from_key(SECRET).address)
    check_signs(signer)


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "key", SECRET.hex(), 0o640)
    with pytest.raises(SignerFailed, match="other users") as refused:
        open_signer(f"keyfile:{path}")
    assert "chmod 600" in refused.value.advice


@pytest.mark.parametrize("text", ["", "0x12", "not a key", "0" * 64, "f" * 64])
def test_a_key_file_without_a_key_is_refused_without_showing_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(SignerFailed) as refused:
        open_signer(f"keyfile:{write(tmp_path / 'key', text)}")
    assert not text or text not in refused.value.message


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SignerFailed, match="nowhere"):
        open_signer(f"keyfile:{tmp_path / 'nowhere'}")


def test_a_keystore_is_opened_with_the_password_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Account.encrypt(SECRET, "correct horse", kdf="pbkdf2", iterations=2)
    path = write(tmp_path / "store.json", json.dumps(store))
    monkeypatch.setenv("FAREBOX_KEYSTORE_PASSWORD_FILE", str(write(tmp_path / "password", "correct horse\n")))
    check_signs(open_signer(f"keystore:{path}"))
    write(tmp_path / "password", "battery staple\n")
    with pytest.raises(SignerFailed, match="cannot be decrypted"):
        open_signer(f"keystore:{path}")
    write(tmp_path / "password", "correct horse\n", 0o644)
    with pytest.raises(SignerFailed, match="password file"):
        open_signer(f"keystore:{path}")


def test_a_keystore_without_anybody_to_ask_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAREBOX_KEYSTORE_PASSWORD_FILE", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    store = Account.encrypt(SECRET, "x", kdf="pbkdf2", iterations=2)
    with pytest.raises(SignerFailed) as refused:
        open_signer(f"keystore:{write(tmp_path / 'store.json', json.dumps(store))}")
    assert "FAREBOX_KEYSTORE_PASSWORD_FILE" in refused.value.advice


@pytest.mark.parametrize("spec", ["", "keyfile:", "ledger:0", SECRET.hex(), "0x" + SECRET.hex()])
def test_a_mistyped_signer_is_refused_and_a_key_in_it_is_not_shown(spec: str) -> None:
    with pytest.raises(UsageError) as refused:
        open_signer(spec)
    assert SECRET.hex() not in refused.value.message


def test_a_remote_signer_signs_and_keeps_its_key() -> None:
    with serving(SigningServer([SECRET])) as url:
        signer = open_signer(f"remote:{url}")
        check_signs(signer)
        signer.close()


def test_a_remote_signer_with_several_keys_wants_one_named() -> None:
    server = SigningServer([SECRET, bytes(31) + b"\x02"])
    second = Account.from_key(server.keys[1]).address
    with serving(server) as url:
        with pytest.raises(UsageError, match="several keys"):
            open_signer(f"remote:{url}")
        signer = open_signer(f"remote:{url}#{second}")
        assert signer.address == parse_address(second)
        signer.close()
        with pytest.raises(SignerFailed, match="does not hold"):
            open_signer(f"remote:{url}#0x{'44' * 20}")


@pytest.mark.parametrize("misbehave", ["error", "html", "wrong key", "no signature"])
def test_a_remote_signer_that_fails_or_lies_is_a_named_failure(misbehave: str) -> None:
    server = SigningServer([SECRET])
    with serving(server) as url:
        signer = open_signer(f"remote:{url}")
        server.misbehave = misbehave
        with pytest.raises(SignerFailed):
            bounded(signer).sign_authorizations(authorizations(2, signer.address), OFFER)
        signer.close()


def test_a_remote_signer_without_a_key_is_a_named_failure() -> None:
    with serving(SigningServer([])) as url, pytest.raises(SignerFailed, match="holds no key"):
        open_signer(f"remote:{url}")


def test_a_remote_signer_with_v_of_0_or_1_is_understood() -> None:
    server = SigningServer([SECRET], misbehave="v is 0 or 1")
    with serving(server) as url:
        signer = open_signer(f"remote:{url}")
        (signature,) = bounded(signer).sign_authorizations(authorizations(1, signer.address), OFFER)
        assert signature[64] in (27, 28)
        signer.close()


def test_a_remote_signer_that_is_down_or_in_the_open_is_refused() -> None:
    with pytest.raises(SignerFailed, match="does not answer"):
        open_signer(f"remote:{closed_port_url()}")
    with pytest.raises(UsageError, match="plain http"):
        open_signer("remote:http://signer.example:9000")


class Watched(KeySigner):
    """A key signer that counts what it is asked for."""

    asked = 0

    def sign_authorizations(self, authorizations: object, offer: object) -> list[bytes]:
        self.asked += 1
        return super().sign_authorizations(authorizations, offer)  # type: ignore[arg-type]


def bounded(signer: Signer, count: int = 2) -> BoundedSigner:
    return BoundedSigner(signer, Bounds(OFFER, count, OFFER.amount_atomic, NOW_S + 600))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"value_atomic": 1001}, PriceAboveCap),
        ({"payee": parse_address("0x" + "44" * 20)}, TermsNotAllowed),
        ({"payer": parse_address("0x" + "44" * 20)}, TermsNotAllowed),
        ({"valid_before_s": NOW_S + 601}, TermsNotAllowed),
    ],
)
def test_the_signer_is_not_even_asked_for_what_was_not_agreed(
    change: dict[str, object], error: type[FareboxError]
) -> None:
    signer = Watched(SECRET)
    good, bad = authorizations(2, signer.address)
    with pytest.raises(error):
        bounded(signer).sign_authorizations([good, msgspec.structs.replace(bad, **change)], OFFER)
    assert signer.asked == 0


def test_the_signer_is_not_asked_to_let_another_facilitator_charge() -> None:
    signer = Watched(SECRET)
    front = BoundedSigner(signer, Bounds(METERED, 1, METERED.amount_atomic, NOW_S + 600))
    agreed = fresh_authorization(METERED, signer.address, bytes(32), NOW_S + 600)
    for facilitator in (None, OFFER.pay_to):
        with pytest.raises(TermsNotAllowed, match="facilitator"):
            front.sign_authorizations([msgspec.structs.replace(agreed, facilitator=facilitator)], METERED)
    assert signer.asked == 0
    assert len(front.sign_authorizations([agreed], METERED)) == 1


def test_the_signer_is_not_asked_for_another_token_chain_or_way_of_paying() -> None:
    signer = Watched(SECRET)
    others = (
        replace(OFFER, network=Network(1)),
        replace(OFFER, asset=replace(OFFER.asset, address=OFFER.pay_to)),
        OVER_PERMIT2,
    )
    for offer in others:
        with pytest.raises(TermsNotAllowed):
            bounded(signer).sign_authorizations(authorizations(1, signer.address), offer)
    assert signer.asked == 0


def test_the_signer_is_not_asked_for_more_than_the_agreed_count_over_several_calls() -> None:
    signer = Watched(SECRET)
    front = bounded(signer, count=3)
    front.sign_authorizations(authorizations(2, signer.address), OFFER)
    with pytest.raises(BudgetExceeded):
        front.sign_authorizations(authorizations(2, signer.address), OFFER)
    assert signer.asked == 1


def test_a_signer_that_leaves_signatures_out_is_believed_none() -> None:
    class Forgetful(KeySigner):
        def sign_authorizations(self, authorizations: object, offer: object) -> list[bytes]:
            return super().sign_authorizations(authorizations, offer)[:1]  # type: ignore[arg-type]

    signer = Forgetful(SECRET)
    with pytest.raises(SignerFailed, match="1 signatures for 2"):
        bounded(signer).sign_authorizations(authorizations(2, signer.address), OFFER)


def test_the_signer_of_a_purchase_is_remembered_beside_the_pool(home: Home) -> None:
    with pytest.raises(NameUnknown):
        recall_signer(home, "p")
    remember_signer(home, "p", "keyfile:/somewhere/key")
    assert recall_signer(home, "p") == "keyfile:/somewhere/key"
