"""The pool's books against themselves and against the chain. Reads only; asks, decides nothing.

What the chain is ahead with (a transfer the pool has yet to notice) is a note. What the books say and the chain or
another row contradicts is a difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from buyer.budgets import counted, read_budgets, shown_units
from buyer.claim import receipt_id
from buyer.pool import Pool, count_states
from buyer.purchase import Purchase
from buyer.rows import PURCHASE_QUERY, authorization_from_row, purchase_from_row
from contracts.address import Address, address_text
from contracts.audit import Finding
from contracts.errors import FareboxError
from contracts.evm.evidence import Fate, Shown, read_fates, read_permit2_fates
from contracts.evm.rpc import Rpc
from contracts.evm.token import Head, chain_id_of, read_head
from contracts.money import Asset, format_amount
from contracts.networks import PERMIT2
from contracts.schemes.authorization import Authorization
from contracts.storage import Connection

__all__ = ["audit_chain", "audit_pool"]

# States in which an authorization was, or may have been, in a seller's hands for its request.
_LEFT = "('claimed', 'sent', 'unknown', 'spent')"
# States of which the books say that no money moved and none will.
_COSTS_NOTHING = {"expired": "expired unused", "cancelled": "revoked"}


@dataclass(frozen=True, slots=True)
class _Entry:
    """One authorization as the books have it."""

    id: int
    state: str
    chain_id: int
    token: Address
    registry: Address
    authorization: Authorization
    from_block: int
    transaction: str | None
    charged_atomic: int | None = None
    charge_proven: bool = False

    @property
    def name(self) -> str:
        """The name of its receipt."""
        return receipt_id(self.chain_id, self.authorization.payer, self.authorization.nonce)

    @property
    def cost_atomic(self) -> int:
        """What the books count as its cost, once it is spent."""
        proven = self.charged_atomic if self.charge_proven else None
        return self.authorization.value_atomic if proven is None else proven


def audit_pool(pool: Pool) -> list[Finding]:
    """Return, for every purchase ever made, whether its rows agree with its counters and with each other."""

    def examine(connection: Connection) -> list[Finding]:
        purchases = [purchase_from_row(row) for row in connection.execute(f"{PURCHASE_QUERY} ORDER BY purchases.id")]
        return [
            *(_audit_purchase(connection, purchase) for purchase in purchases),
            _audit_requests(connection),
            _audit_budgets(connection),
        ]

    # Inside a write transaction, so that nobody writes between two of its questions.
    return pool.database.transact(examine, durable=False)


async def audit_chain(pool: Pool, rpc_urls: Sequence[str]) -> list[Finding]:
    """Compare every authorization with the chain, one finding a purchase. `rpc_urls` serve those that name none."""
    findings = []
    for purchase in pool.database.read(_all_purchases):
        finding = Finding(f"purchase {purchase.name} against the chain")
        findings.append(finding)
        urls = list(purchase.rpc_urls) or list(rpc_urls)
        if not urls:
            finding.found = "not compared: no endpoint is known"
            finding.notes.append("name an endpoint of its chain with --rpc")
            continue
        try:
            await _compare(pool, purchase, urls, finding)
        except FareboxError as error:
            finding.differ(f"could not be compared: {error.message}")
    return findings


def _all_purchases(connection: Connection) -> list[Purchase]:
    rows = connection.execute(f"{PURCHASE_QUERY} ORDER BY purchases.id")
    return [purchase_from_row(row) for row in rows]


def _audit_purchase(connection: Connection, purchase: Purchase) -> Finding:
    counts = count_states(connection, purchase.id)
    finding = Finding(
        f"purchase {purchase.name}",
        f"{counts.signed} signed = {counts.ready} ready + {counts.claimed} claimed + {counts.sent} sent"
        f" + {counts.unknown} unknown + {counts.spent} spent + {counts.expired} expired + {counts.cancelled} cancelled",
    )
    here = (purchase.id,)
    (counted,) = connection.execute("SELECT signed_count FROM purchases WHERE id = ?", here).fetchone()
    if counted != counts.signed:
        finding.differ(f"{counted} authorizations were signed, and {counts.signed} rows are there")
    _audit_rows(connection, purchase, finding)
    return finding


def _audit_rows(connection: Connection, purchase: Purchase, finding: Finding) -> None:
    here = (purchase.id,)
    contradictions = {
        "is free and belongs to a request": "state = 'ready' AND request_key IS NOT NULL",
        "is on its way for no request": "state IN ('claimed', 'sent') AND request_key IS NULL",
        "is on its way and held by no process": "state IN ('claimed', 'sent') AND lease IS NULL",
        "is held by a process that is not in the books": "lease IS NOT NULL AND NOT EXISTS"
        " (SELECT 1 FROM workers WHERE workers.id = authorizations.lease)",
        "is signed and still intended": "EXISTS (SELECT 1 FROM intents WHERE intents.nonce = authorizations.nonce"
        " AND intents.payer = authorizations.payer AND intents.token = authorizations.token"
        " AND intents.chain_id = authorizations.chain_id)",
    }
    for words, condition in contradictions.items():
        query = f"SELECT * FROM authorizations WHERE purchase_id = ? AND {condition} ORDER BY id"  # noqa: S608 - constants
        for row in connection.execute(query, here).fetchall():
            name = receipt_id(row["chain_id"], row["payer"], row["nonce"])
            finding.differ(f"{name} ({row['state']}) {words}")


def _audit_requests(connection: Connection) -> Finding:
    """One logical request, one authorization."""
    finding = Finding("requests")
    (left,) = connection.execute(f"SELECT count(*) FROM authorizations WHERE state IN {_LEFT}").fetchone()  # noqa: S608 - constants
    doubled = connection.execute(
        f"""SELECT request_key, count(*) AS times FROM authorizations
            WHERE state IN {_LEFT} AND request_key IS NOT NULL GROUP BY request_key HAVING count(*) > 1"""  # noqa: S608 - constants
    ).fetchall()
    for row in doubled:
        finding.differ(f"request {row['request_key'][:80]} took {row['times']} authorizations")
    finding.found = f"{left} requests took one authorization each"
    return finding


def _audit_budgets(connection: Connection) -> Finding:
    """What is taken of a budget is what the authorizations say; more taken than that only spends less."""
    budgets = read_budgets(connection)
    finding = Finding("budgets", f"{len(budgets)} limits are set")
    for budget in budgets:
        total, on_day = counted(connection, budget.scope, budget.day)
        for word, taken, is_so in (("in total", budget.taken_total, total), ("a day", budget.taken_day, on_day)):
            text = f"{budget.scope} {word}: {shown_units(taken)} are noted as taken, the authorizations say "
            if taken < is_so:
                finding.differ(text + shown_units(is_so))
            elif taken > is_so:
                finding.notes.append(text + shown_units(is_so))
        if budget.max_total is not None and total > budget.max_total and budget.taken_total > budget.max_total:
            finding.notes.append(f"{budget.scope}: more was taken than the limit, which was set later or lowered")
    return finding


async def _compare(pool: Pool, purchase: Purchase, urls: Sequence[str], finding: Finding) -> None:
    entries = pool.database.read(lambda connection: _entries(connection, purchase.id))
    async with Rpc(urls) as rpc:
        chain_id = await chain_id_of(rpc)
        if any(entry.chain_id != chain_id for entry in entries):
            finding.differ(f"could not be compared: the endpoint is of chain {chain_id}")
            return
        head = await read_head(rpc)
        shown: dict[int, Shown] = {}
        for token, registry in {(entry.token, entry.registry) for entry in entries}:
            alike = [entry for entry in entries if (entry.token, entry.registry) == (token, registry)]
            read = read_permit2_fates if registry == PERMIT2 else read_fates
            fates = await read(rpc, token, [(entry.authorization, entry.from_block) for entry in alike])
            shown.update((entry.id, fate) for entry, fate in zip(alike, fates, strict=True))
    # A row may have moved on since it was read, and before the chain was.
    later = {
        entry.id: entry.state for entry in pool.database.read(lambda connection: _entries(connection, purchase.id))
    }
    settled = [entry for entry in entries if later.get(entry.id) == entry.state]
    _judge(purchase.offer.asset, settled, shown, head, finding)


def _judge(asset: Asset, entries: list[_Entry], shown: dict[int, Shown], head: Head, finding: Finding) -> None:
    paid_atomic = sum(_moved_atomic(one, shown[one.id]) for one in entries)
    spent_atomic = sum(one.cost_atomic for one in entries if one.state == "spent")
    finding.found = (
        f"{len(entries)} authorizations: {format_amount(spent_atomic, asset)} spent by the books, "
        f"{format_amount(paid_atomic, asset)} transferred on chain"
    )
    pending_atomic = late_atomic = unnoticed = 0
    for entry in entries:
        what = shown[entry.id]
        if what.fate is not Fate.UNUSED:
            unnoticed += entry.state == "unknown"
            _judge_used(entry, what, finding)
        elif entry.state == "spent" and entry.authorization.valid_before_s < head.timestamp_s:
            late_atomic += entry.cost_atomic
        elif entry.state == "spent":
            pending_atomic += entry.cost_atomic
    _note(finding, asset, pending_atomic=pending_atomic, late_atomic=late_atomic, unnoticed=unnoticed)


def _moved_atomic(entry: _Entry, what: Shown) -> int:
    if what.fate is not Fate.PAID:
        return 0
    return entry.authorization.value_atomic if what.amount_atomic is None else what.amount_atomic


def _judge_used(entry: _Entry, what: Shown, finding: Finding) -> None:
    state, name = entry.state, entry.name
    where = f" in {what.transaction}" if what.transaction else ""
    if state in ("ready", "claimed"):
        finding.differ(f"{name} is {state}: this pool never sent it, and the chain shows it {what.fate.value}{where}")
    elif state in _COSTS_NOTHING and what.fate is Fate.PAID:
        moved = f"{_moved_atomic(entry, what)} atomic units to {address_text(entry.authorization.payee)}"
        finding.differ(f"{name} is booked as {_COSTS_NOTHING[state]}; the chain shows {moved}{where}")
    elif state == "spent" and what.fate is Fate.PAID and entry.charged_atomic is not None:
        _judge_charge(entry, what, finding)
    elif state == "spent" and what.fate in (Fate.CANCELLED, Fate.BURNT):
        finding.notes.append(f"{name} was served and cost nothing: the chain shows it {what.fate.value}{where}")
    elif state == "spent" and what.transaction and entry.transaction not in (None, what.transaction):
        finding.notes.append(f"{name}: the seller named transaction {entry.transaction}; it is {what.transaction}")


def _judge_charge(entry: _Entry, what: Shown, finding: Finding) -> None:
    """Compare what is noted as charged of a ceiling with what moved: a seller may have lied, our books may not."""
    moved_atomic, name = _moved_atomic(entry, what), entry.name
    if entry.charged_atomic == moved_atomic:
        return
    if entry.charge_proven:
        finding.differ(f"{name} is booked at {entry.charged_atomic} atomic units; the chain shows {moved_atomic}")
    else:
        finding.notes.append(f"{name}: the seller said {entry.charged_atomic} atomic units and took {moved_atomic}")


def _note(finding: Finding, asset: Asset, *, pending_atomic: int, late_atomic: int, unnoticed: int) -> None:
    if pending_atomic:
        finding.notes.append(f"{format_amount(pending_atomic, asset)} were served and are not transferred yet")
    if late_atomic:
        finding.notes.append(f"{format_amount(late_atomic, asset)} were served and never charged in time")
    if unnoticed:
        finding.notes.append(f"{unnoticed} of unknown fate are on the chain; `farebox process --all` books them")


def _entries(connection: Connection, purchase_id: int) -> list[_Entry]:
    rows = connection.execute("SELECT * FROM authorizations WHERE purchase_id = ? ORDER BY id", (purchase_id,))
    return [
        _Entry(
            row["id"],
            row["state"],
            row["chain_id"],
            Address(row["token"]),
            Address(row["registry"]),
            authorization_from_row(row),
            row["from_block"],
            row["transaction_hash"],
            None if row["charged_atomic"] is None else int(row["charged_atomic"]),
            bool(row["charge_proven"]),
        )
        for row in rows
    ]
