"""Break AgentWallet on purpose, one known way at a time, and see that the forge tests notice: `make test-mutants`.

A mutant is an exact replacement in the source. One that the tests do not catch, that does not compile, or whose text is
no longer in the source, fails the run.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from contracts.errors import LocalError
from contracts.foundry.project import PROJECT, forge, lay_out

__all__ = ["MUTANTS", "Mutant", "main"]

# A failed invariant stands on a line of its own below what broke it.
_FAILED = re.compile(r"^(?:\[FAIL.*\])? (\w+)\([^()]*\) \((?:gas|runs)", re.MULTILINE)
_WORKSHOP = PROJECT.with_name("mutants")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One known mistake: in AgentWallet.sol `old` becomes `new`, and so does each further pair."""

    name: str
    old: str
    new: str
    more: tuple[tuple[str, str], ...] = ()


MUTANTS = (
    Mutant("slot bound removed", "payment.slot >= policy_.slots || ", ""),
    Mutant("unit bound removed", " || payment.value > policy_.unit", ""),
    Mutant("same-day policy change", "            ++fromDay;\n", ""),
    Mutant("no suspension after a change", "payment.day < policy_.fromDay || ", ""),
    Mutant(
        "free nonce bits",
        "payment.slot >= policy_.slots",
        "uint16(payment.slot) >= policy_.slots",
        (
            (
                "bytes32 nonce = nonceOf(policy_.id, uint24(payment.day), uint16(payment.slot));",
                "bytes32 nonce = bytes32(uint256(nonceOf(policy_.id, uint24(payment.day), 0)) | payment.slot);",
            ),
        ),
    ),
    Mutant(
        "unchecked token",
        "address token = address(uint160(payment.token));",
        "uint256 named = payment.facilitator != 0 && kind != KIND_UPTO ? payment.facilitator : payment.token;\n"
        "        address token = address(uint160(named));",
    ),
    Mutant(
        "a token's own word for its domain",
        "domain = Messages.tokenDomain(token);\n"
        "        require(domain == IERC3009(token).DOMAIN_SEPARATOR(), UnknownDomain(token));",
        "domain = IERC3009(token).DOMAIN_SEPARATOR();",
    ),
    Mutant(
        "65-byte signature",
        "        bool allowed = false;\n",
        "        bool allowed = false;\n"
        "        if (signature.length == 65 && _isApproved(hash, signature)) return 0x1626ba7e;\n",
    ),
    Mutant("payments may start before their day", "if (payment.validAfter < _startOf(payment.day)) return 0;", ""),
    Mutant("payments may end after their day", "if (payment.validBefore >= _startOf(payment.day + 1)) return 0;", ""),
    Mutant(
        "both rails for a token",
        "if (policy_.rail == Rail.Eip3009) return",
        "if (policy_.rail == Rail.Eip3009 && kind <= KIND_RECEIVE) return",
        (("if (policy_.rail == Rail.Permit2) return", "if (policy_.rail != Rail.None) return"),),
    ),
    Mutant(
        "approval not bound to the wallet",
        "bytes32 digest = _hashTypedDataV4(keccak256(abi.encode(APPROVE_TYPEHASH, hash)));",
        "bytes32 digest = keccak256(abi.encode(APPROVE_TYPEHASH, hash));",
    ),
    Mutant("any key approves", "failure == ECDSA.RecoverError.NoError && signer == agent", "signer != address(1)"),
    Mutant("a frozen wallet takes no signature for one", "failure == ECDSA.RecoverError.NoError && ", ""),
    Mutant("reserved payments uncounted", "        _use(token, value, policy_.reserveCap);\n", ""),
    Mutant("a reservation outlives its day", "return reservation.day == today && ", "return reservation.day != 0 && "),
    Mutant(
        "a reservation may reach into tomorrow", "require(validBefore < _startOf(today + 1)", "require(validBefore > 0"
    ),
    Mutant("drips uncounted", "        _use(token, value, limit);\n", ""),
    Mutant("anybody is the agent", "require(caller == agent && caller != address(0)", "require(caller != address(0)"),
    Mutant("the agent is the owner, too", ") external payable onlyOwner returns", ") external payable returns"),
    Mutant(
        "a suffix speaks for everybody",
        "return ERC2771Context._msgSender();",
        "bytes calldata data = msg.data;\n"
        "        if (data.length % 32 == 24) return address(bytes20(data[data.length - 20:]));\n"
        "        return ERC2771Context._msgSender();",
    ),
    Mutant("the right to cancel stays", "        _cancelling = 0;\n", ""),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try every mutant, or those whose names contain an argument, print a table, and return the exit code."""
    wanted = sys.argv[1:] if arguments is None else list(arguments)
    chosen = [mutant for mutant in MUTANTS if not wanted or any(word in mutant.name for word in wanted)]
    try:
        _prepare()
        width = max(len(mutant.name) for mutant in MUTANTS)
        survivors = 0
        for mutant in chosen:
            caught_by = _try(mutant)
            survivors += not caught_by
            print(f"{mutant.name:<{width}}  {'caught by ' + caught_by if caught_by else 'SURVIVED'}", flush=True)
    except LocalError as error:
        print(f"{error.message}\n{error.advice}", file=sys.stderr)
        return error.exit_code
    print(f"mutants: {len(chosen) - survivors} of {len(chosen)} caught")
    return 1 if survivors else 0


def _prepare() -> None:
    """Lay the project out, take over what forge compiled for the sources as they are, and see that they pass."""
    lay_out(_WORKSHOP)
    for name in ("cache", "out"):
        if (PROJECT / name).is_dir() and not (_WORKSHOP / name).exists():
            shutil.copytree(PROJECT / name, _WORKSHOP / name)
    if failed := _try(Mutant("nothing changed", "contract AgentWallet", "contract AgentWallet")):
        raise LocalError(f"{failed} fails without any mutant", remedy="run `make test-contracts`")


def _try(mutant: Mutant) -> str:
    """Return the name of the first test that fails for `mutant`, or nothing when none does."""
    source = lay_out(_WORKSHOP) / "src" / "AgentWallet.sol"
    text = source.read_text()
    for old, new in ((mutant.old, mutant.new), *mutant.more):
        if text.count(old) != 1:
            raise LocalError(
                f"mutant {mutant.name!r}: AgentWallet.sol does not have its text just once",
                remedy="correct it in mutants.py",
            )
        text = text.replace(old, new)
    source.write_text(text)
    done = forge(_WORKSHOP, ["test", "--fail-fast"], quiet=True)
    failed = _FAILED.findall(done.stdout)
    if done.returncode != 0 and not failed:
        raise LocalError(
            f"mutant {mutant.name!r} does not compile:\n{(done.stdout + done.stderr)[-2000:]}",
            remedy="correct it in mutants.py",
        )
    return failed[0] if failed else ""


if __name__ == "__main__":
    sys.exit(main())
