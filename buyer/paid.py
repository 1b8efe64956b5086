"""What `farebox pay` prints: the answer on stdout, everything else on stderr."""

from __future__ import annotations

import base64
import sys
from typing import Any

from buyer.claim import Claim
from buyer.documents import money
from buyer.flow import Outcome
from buyer.policy import describe
from buyer.presign import Plan
from buyer.purchase import Purchase
from contracts.console import printable, progress

__all__ = ["answer_document", "print_announcement", "write_answer"]


def print_announcement(plan: Plan) -> None:
    """Say what is about to be signed."""
    progress(f"paying {describe(plan.draft.terms.offer)}")


def answer_document(outcome: Outcome, claim: Claim, purchase: Purchase) -> dict[str, Any]:
    """Return the answer and its receipt; a body that is not text is base64 in `body_base64`."""
    incoming = outcome.incoming
    assert incoming is not None
    document: dict[str, Any] = {
        "ok": True,
        "status": incoming.status,
        "receipt_id": claim.receipt_id,
        "purchase": purchase.name,
        **money("price", claim.authorization.value_atomic, purchase.offer.asset),
        "network": purchase.offer.network.caip2,
        "transaction": outcome.receipt.transaction or None if outcome.receipt else None,
        "content_type": incoming.headers.get("content-type"),
        "whole": incoming.whole,
    }
    try:
        document["body"] = incoming.body.decode("utf-8")
    except UnicodeDecodeError:
        document["body_base64"] = base64.b64encode(incoming.body).decode()
    return document


def write_answer(outcome: Outcome) -> None:
    """Write the body to stdout, byte for byte; on a terminal as text that cannot steer it."""
    assert outcome.incoming is not None
    body = outcome.incoming.body
    if not outcome.incoming.whole:
        progress("the answer was too long to keep, and is not shown; it was paid for")
    if sys.stdout.isatty():
        sys.stdout.write(printable(body.decode("utf-8", "replace")).rstrip("\n") + "\n")
        sys.stdout.flush()
    else:
        sys.stdout.buffer.write(body)
        sys.stdout.buffer.flush()
