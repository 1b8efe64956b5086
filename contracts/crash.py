"""Named steps at which a test can end this process as `kill -9` would.

Every step of a payment at which something has just become durable, or is just about to leave the machine, is named
here and called in the code at that very place. Nothing happens unless `FAREBOX_CRASH_AT` names the step: then the
process kills itself there, with no clean-up, no flush and no goodbye. The fault suite does so at every step in turn.
"""

from __future__ import annotations

import os
import signal

__all__ = ["STEPS", "VARIABLE", "arm", "checkpoint"]

VARIABLE = "FAREBOX_CRASH_AT"

# Step -> what is true when the process dies there.
STEPS: dict[str, str] = {
    "buyer.intended": "the nonces to sign are on disk, and their money is reserved",
    "buyer.signed": "the signer has signed, and the signatures are in memory only",
    "buyer.stored": "the signatures are in the pool",
    "buyer.leased": "this process holds a share of the pool, and no request has taken one",
    "buyer.claimed": "a request has its authorization",
    "buyer.sent": "the authorization is on disk as sent, and no byte has left",
    "buyer.called_in": "the other workers' notes are called in, and the books do not have them",
    "buyer.posted": "what a worker had noted beside the books is in them",
    "buyer.presented_again": "an authorization of unknown fate is about to be presented once more",
    "buyer.answered": "the head of the seller's answer is here, and nothing of it is on disk",
    "buyer.recorded": "the authorization is on disk as spent, and the client has no byte",
    "buyer.lost": "the authorization is on disk as unknown, and the client has not been told",
    "buyer.reconciled": "the chain's word about one authorization is on disk",
    "gateway.started": "the head of the answer has left for the client",
    "gateway.whole": "every byte of the answer has left for the client, the end of it has not",
    "gateway.answered": "the client has the whole answer",
    "delegator.intended": "the intent of a call is on disk, and nothing is paid",
    "delegator.answered": "a paid answer is here, and nothing of it is on disk",
    "delegator.recorded": "a paid answer is on disk, and nobody has been told",
    "seller.verified": "the signature is good, and nothing is on disk",
    "seller.reserved": "the payment's key is taken by one request",
    "seller.begun": "the work is on disk as begun, and the application has not run",
    "seller.first_byte_held": "the application has answered, and its answer is held back",
    "seller.queued": "the payment is due before its goods leave",
    "seller.settled": "the money has moved, and the goods are held back",
    "seller.delivered": "the goods are on disk as delivered, and no byte has left",
    "seller.started": "the head of the answer has left",
    "seller.given_up": "the claim has ended without goods",
    "seller.piece_kept": "a later piece of a streamed answer is on disk",
    "seller.charged": "what a streamed answer came to is on disk as due, and its end has not left",
    "seller.replaying": "a kept answer is counted as given once more, and no byte has left",
    "settle.simulated": "the chain would settle, and nothing is signed",
    "settle.stored": "the signed transaction is on disk, and was never sent",
    "settle.sent": "the node has the transaction, and nobody knows here",
    "settle.receipt_seen": "the transaction is mined, and the books do not say so",
    "settle.concluded": "the books say what the chain says",
    "settle.raised": "the same payments are signed at a higher fee, and not sent so",
    "settle.given_away": "the payment is on disk as given to a facilitator, and was not sent there",
    "settle.judged": "the facilitator's answer was weighed, and nothing of it is on disk",
}

_armed: str | None = None
_passages_left = 0


def arm(text: str | None) -> None:
    """Choose where to die: `seller.reserved` at its first passage, `seller.reserved:3` at its third; None: nowhere.

    Raises `ValueError` for a step that does not exist.
    """
    global _armed, _passages_left
    step, _, passage = (text or "").partition(":")
    if step and step not in STEPS:
        raise ValueError(f"{VARIABLE}: there is no step {step!r}")
    _armed, _passages_left = step or None, int(passage or 1)


def checkpoint(step: str) -> None:
    """Die here if this is the step that was chosen."""
    if _armed is not None:
        _pass(step)


def _pass(step: str) -> None:
    global _passages_left  # noqa: PLW0603 - one process, one end
    if step == _armed:
        _passages_left -= 1
        if _passages_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


arm(os.environ.get(VARIABLE))
