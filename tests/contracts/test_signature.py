"""Signatures: made like everybody else's, recovered exactly, and refused in every form a token would refuse."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from eth_account import Account
from eth_keys.datatypes import PrivateKey, Signature
from hypothesis import given
from hypothesis import strategies as st

from contracts.address import address_text
from contracts.errors import InvalidSignature, MalformedMessage, SignerFailed
from contracts.limits import SIGNATURE_BYTES_MAX
from contracts.signature import SigningKey, parse_signature, recover, vrs

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
DIGEST = bytes.fromhex("1fa5e4084f29eaf2860e833fc8e4ac3c6ee3c3ff9b6d846d9ebd3eeeb1ca9645")
KEY = SigningKey(b"\x01" * 32)

secrets = st.integers(1, ORDER - 1).map(lambda secret: secret.to_bytes(32, "big"))
digests = st.binary(min_size=32, max_size=32)


def signature_of(r: int, s: int, v: int) -> bytes:
    return r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes((v,))


def parts(signature: bytes) -> tuple[int, int, int]:
    return int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big"), signature[64]


def test_the_published_vector_is_reproduced() -> None:
    assert address_text(KEY.address) == "0x1a642f0E3c3aF545E7AcBD38b07251B3990914F1"
    assert KEY.sign(DIGEST).hex() == (
        "315c08885b03e81d10316766e11343297379f9fc75707d951b4debbd66e3425e"
        "169321c9532c7a6cf873606e3dbaf804c8319689eba46356bb06fd3024f8f5951b"
    )


@given(secret=secrets, digest=digests)
def test_a_signature_is_low_s_deterministic_and_recovers_to_its_maker(secret: bytes, digest: bytes) -> None:
    key = SigningKey(secret)
    signature = key.sign(digest)
    _, s, v = parts(signature)
    assert len(signature) == 65
    assert 0 < s <= ORDER // 2
    assert v in (27, 28)
    assert key.sign(digest) == signature
    assert recover(digest, signature) == key.address


@given(secret=secrets, digest=digests)
def test_key_address_and_signature_equal_those_of_eth_account(secret: bytes, digest: bytes) -> None:
    account = Account.from_key(secret)
    assert account.address == address_text(SigningKey(secret).address)
    assert bytes(account.unsafe_sign_hash(digest).signature) == SigningKey(secret).sign(digest)


@given(
    digest=digests,
    r=st.integers(0, 2**256 - 1),
    s=st.integers(0, ORDER // 2 + 2),
    v=st.sampled_from([0, 1, 2, 26, 27, 28, 29, 255]),
)
def test_arbitrary_signatures_recover_as_eth_keys_does_or_are_refused(digest: bytes, r: int, s: int, v: int) -> None:
    try:
        signer = recover(digest, signature_of(r, s, v))
    except InvalidSignature:
        return
    peer = Signature(vrs=(v % 27, r, s)).recover_public_key_from_msg_hash(digest)
    assert signer == peer.to_canonical_address()


def test_v_may_be_written_in_both_customs() -> None:
    r, s, v = parts(KEY.sign(DIGEST))
    assert recover(DIGEST, signature_of(r, s, v - 27)) == KEY.address
    assert vrs(signature_of(r, s, v - 27)) == vrs(signature_of(r, s, v)) == (v, r.to_bytes(32, "big"), s.to_bytes(32))


R, S, V = parts(KEY.sign(DIGEST))


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (signature_of(R, ORDER - S, 55 - V), "upper half"),
        (signature_of(R, ORDER // 2 + 1, V), "upper half"),
        (signature_of(R, ORDER, V), "upper half"),
        (signature_of(R, 0, V), "must not be zero"),
        (signature_of(0, S, V), "must not be zero"),
        (signature_of(0, 0, V), "must not be zero"),
        (signature_of(ORDER, S, V), "no public key"),
        (signature_of(2**256 - 1, S, V), "no public key"),
        (signature_of(5, S, V), "no public key"),
        (signature_of(R, S, 26), "v must be"),
        (signature_of(R, S, 29), "v must be"),
        (signature_of(R, S, 2), "v must be"),
        (signature_of(R, S, 37), "v must be"),
        (b"", "expected 65 bytes, got 0"),
        (KEY.sign(DIGEST)[:64], "expected 65 bytes, got 64"),
        (KEY.sign(DIGEST) + b"\x00", "expected 65 bytes, got 66"),
        (b"\x00" * 4096, "expected 65 bytes, got 4096"),
    ],
)
def test_a_signature_that_no_token_takes_is_refused_with_the_reason(signature: bytes, reason: str) -> None:
    with pytest.raises(InvalidSignature, match=reason):
        recover(DIGEST, signature)


def test_the_largest_low_s_is_not_refused_for_being_high() -> None:
    # With r = 1 a point exists, so this is some stranger's valid signature.
    assert recover(DIGEST, signature_of(1, ORDER // 2, 27)) != KEY.address


def test_a_signature_of_other_terms_recovers_to_somebody_else() -> None:
    assert recover(bytes(32), KEY.sign(DIGEST)) != KEY.address


@pytest.mark.parametrize(
    "secret", [b"", b"\x01" * 31, b"\x01" * 33, bytes(32), ORDER.to_bytes(32, "big"), b"\xff" * 32]
)
def test_what_is_no_secret_key_is_refused_and_never_shown(secret: bytes) -> None:
    with pytest.raises(SignerFailed) as refused:
        SigningKey(secret)
    assert "not a valid secp256k1 secret" in refused.value.message
    assert not secret or secret.hex() not in refused.value.message


def test_a_key_shows_its_address_and_not_its_secret() -> None:
    assert repr(KEY) == "SigningKey(0x1a642f0e3c3af545e7acbd38b07251b3990914f1)"
    assert not hasattr(KEY, "__dict__")


@pytest.mark.parametrize("size", [0, 1, 64, 65, 97, SIGNATURE_BYTES_MAX])
def test_hex_signatures_of_any_length_up_to_the_cap_are_read(size: int) -> None:
    assert parse_signature("0x" + "aB" * size) == b"\xab" * size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ab" * 65,
        "0xabc",
        "0X" + "ab" * 65,
        "0x" + "zz" * 65,
        "0x" + "ab" * 65 + "\n",
        "0x ab",
        "0x" + "\uff41\uff42" * 65,
        "0x" + "ab" * (SIGNATURE_BYTES_MAX + 1),
        b"0xab",
        None,
        1,
    ],
    ids=lambda text: repr(text)[:12],
)
def test_other_spellings_of_a_signature_are_refused(text: object) -> None:
    with pytest.raises(MalformedMessage, match=r"^payload\.signature: ") as refused:
        parse_signature(text)
    assert len(refused.value.message) < 120


def test_threads_that_recover_at_once_find_each_their_own_signer() -> None:
    keys = [SigningKey(bytes([number]) * 32) for number in range(1, 9)]
    signed = [(key.address, key.sign(DIGEST)) for key in keys]

    def recovered(case: tuple[bytes, bytes]) -> bool:
        signer, signature = case
        return all(recover(DIGEST, signature) == signer for _ in range(500))

    with ThreadPoolExecutor(len(keys)) as threads:
        assert all(threads.map(recovered, signed))


def test_eth_keys_accepts_what_we_sign() -> None:
    r, s, v = parts(KEY.sign(DIGEST))
    peer = PrivateKey(b"\x01" * 32).public_key
    assert peer.verify_msg_hash(DIGEST, Signature(vrs=(v - 27, r, s)))
