"""The gateway over a pool that was put back from a backup: it notices, pays with nothing, and goes on once it is asked.

The store's files are copied while the gateway uses them, and put back after it has spent more, as a restored disk or
home folder would. The note of the generation stays, which is how it shows.
"""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from buyer.home import Home
from contracts.evm.devnet import Devnet
from tests.buyer.test_restored_pool import Backup
from tests.faults.asking import body_of, repeat_until_final
from tests.faults.audit import read_books
from tests.faults.place import check_books, paid_for
from tests.faults.town import Town, town
from tests.warm import Warm

SIGNED = 12
BEFORE = 2
SINCE = 4


@pytest.mark.slow
@pytest.mark.parametrize("trusted", [False, True], ids=["nothing is known of the rest", "nothing else was sent"])
def test_the_gateway_pays_with_nothing_that_a_restored_pool_may_have_spent_since(
    tmp_path: Path, chain: Devnet, warm: Warm, trusted: bool
) -> None:
    with town(tmp_path, chain, warm) as here:
        here.start_all(SIGNED)
        before_atomic = here.earned_atomic()
        for number in range(BEFORE):
            assert repeat_until_final(here, f"before {number}", body_of(f"before {number}")).status == 200
        backup = Backup(Home.open(here.home), tmp_path / "backup")
        for number in range(SINCE):
            assert repeat_until_final(here, f"since {number}", body_of(f"since {number}")).status == 200
        settle_all(here)
        here.kill("serve")
        backup.restore()

        here.start("serve")
        for _ in range(2):
            answer = ask(here, "too early")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "pool_restored")
            assert "retry-after" in answer.headers
        assert "too early" not in here.runs_by_prompt()
        here.farebox("process", "--all", *(["--trust-unused"] if trusted else []))
        answer = ask(here, "afterwards")
        if trusted:
            assert answer.status_code == 200, answer.text
        else:
            # Whatever the chain does not show used may be in a seller's hands, so it is nobody's to hand out.
            assert (answer.status_code, answer.json()["error"]["code"]) == (402, "authorizations_exhausted")
            here.buy(3)
            assert repeat_until_final(here, "afterwards", body_of("afterwards")).status == 200
        check_books(here, SIGNED if trusted else SIGNED + 3)
        assert paid_for(here, before_atomic) == BEFORE + SINCE + 1


def settle_all(here: Town) -> None:
    settle = here.running["settle"]
    here.wait_for(lambda: not read_books(here).outstanding_atomic, settle, "payments are outstanding")


def ask(here: Town, name: str) -> httpx.Response:
    headers = {"x-farebox-request-id": name}
    return httpx.post(f"{here.gateway_url}/v1/chat/completions", json=body_of(name), headers=headers, timeout=60)
