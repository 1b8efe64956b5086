"""`farebox wallet`: a contract wallet whose agent can spend a day's money and no more. All but `show` cost gas."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from buyer.options import DryRun, Json, RpcOption, SignerOption, Yes
from buyer.wiring import closing, confirm, given_signer
from contracts.console import exit_on_error, given_rpc_urls, print_document

if TYPE_CHECKING:
    from buyer.wallet import Act, Hands, Place
    from contracts.address import Address

__all__ = ["wallet_commands"]

wallet_commands = typer.Typer(
    no_args_is_help=True, help="A contract wallet whose agent can spend a day's money, and no more."
)

Wallet = Annotated[str, typer.Argument(metavar="WALLET", help="The wallet's address.")]
Token = Annotated[str, typer.Option("--token", metavar="ADDRESS", help="The token's address.")]
Relay = Annotated[
    str | None,
    typer.Option(
        "--relay", metavar="KIND:PLACE", help="Who sends it and pays the gas. The wallet needs a forwarder; see create."
    ),
]


@wallet_commands.command()
def create(
    *,
    agent: Annotated[str, typer.Option("--agent", metavar="ADDRESS", help="Whose signatures spend.")],
    salt: Annotated[
        str, typer.Option("--salt", metavar="TEXT", help="Tells wallets of one owner and agent apart.")
    ] = "",
    forwarder: Annotated[
        str | None,
        typer.Option(
            "--forwarder", metavar="own|ADDRESS", help="Lets others pay the owner's gas; trusted as much as the owner."
        ),
    ] = None,
    relay: Relay = None,
    signer: SignerOption = None,
    rpc: RpcOption = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Create a wallet that the signer owns. Its address is known before, and the same on every chain."""

    async def plan(place: Place, who: Hands) -> Act:
        from buyer.wallet import plan_creation

        return await plan_creation(place, who, agent, salt, forwarder)

    _do(plan, signer, rpc, relay=relay, dry_run=dry_run, yes=yes, as_json=as_json)


@wallet_commands.command()
def fund(
    wallet: Wallet,
    *,
    amount: Annotated[str, typer.Option("--amount", metavar="AMOUNT", help='How much to send, as "25" or "0.5".')],
    token: Token,
    signer: SignerOption = None,
    rpc: RpcOption = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Send tokens of the signer's account to the wallet."""

    async def plan(place: Place, who: Hands) -> Act:
        from buyer.wallet import plan_funding

        return await plan_funding(place, who.signer, _address(wallet), token, amount)

    _do(plan, signer, rpc, dry_run=dry_run, yes=yes, as_json=as_json)


@wallet_commands.command()
def policy(
    wallet: Wallet,
    *,
    token: Token,
    unit: Annotated[str, typer.Option("--unit", metavar="AMOUNT", help="Most that one payment moves.")],
    slots: Annotated[int, typer.Option("--slots", min=0, max=65_535, help="Payments a day.")],
    rail: Annotated[
        str, typer.Option("--rail", help="eip3009; permit2, also for upto; drip: to the agent's account; none.")
    ] = "eip3009",
    reserve: Annotated[
        str, typer.Option("--reserve", metavar="AMOUNT", help="A day's payments with nonces that others dictate.")
    ] = "0",
    allowance: Annotated[
        str | None, typer.Option("--allowance", metavar="AMOUNT", help="Most that Permit2 may move in all.")
    ] = None,
    relay: Relay = None,
    signer: SignerOption = None,
    rpc: RpcOption = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Set what the agent may spend of a token per day (UTC). The first policy holds at once, a change from tomorrow."""

    async def plan(place: Place, who: Hands) -> Act:
        from buyer.wallet import PolicyTerms, plan_policy

        return await plan_policy(
            place, who, _address(wallet), token, PolicyTerms(rail, unit, slots, reserve, allowance)
        )

    _do(plan, signer, rpc, relay=relay, dry_run=dry_run, yes=yes, as_json=as_json)


@wallet_commands.command()
def freeze(
    wallet: Wallet,
    *,
    agent: Annotated[
        str | None, typer.Option("--agent", metavar="ADDRESS", help="Thaw it: this key signs from now on.")
    ] = None,
    relay: Relay = None,
    signer: SignerOption = None,
    rpc: RpcOption = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Stop every payment of the wallet at once, signed or not. Or name another agent, which thaws it."""

    async def plan(place: Place, who: Hands) -> Act:
        from buyer.wallet import plan_agent

        return await plan_agent(place, who, _address(wallet), agent)

    _do(plan, signer, rpc, relay=relay, dry_run=dry_run, yes=yes, as_json=as_json)


@wallet_commands.command()
def revoke(
    wallet: Wallet,
    *,
    token: Token,
    day: Annotated[str, typer.Option("--day", metavar="DAY", help="today, tomorrow or a date (UTC).")] = "today",
    slots: Annotated[
        str | None, typer.Option("--slots", metavar="FROM-TO", help="Which of the day, as 0-99. \\[all]")
    ] = None,
    relay: Relay = None,
    signer: SignerOption = None,
    rpc: RpcOption = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Burn slots of one day, so that what was signed for them pays nothing. For the owner and the agent."""

    async def plan(place: Place, who: Hands) -> Act:
        from buyer.wallet import plan_revocation

        return await plan_revocation(place, who, _address(wallet), token, day=day, slots=slots)

    _do(plan, signer, rpc, relay=relay, dry_run=dry_run, yes=yes, as_json=as_json)


@wallet_commands.command("show")
def show_(wallet: Wallet, token: Token, rpc: RpcOption = None, as_json: Json = False) -> None:
    """Show owner, agent, balance and policy, as the chain has them."""
    with exit_on_error(as_json=as_json):
        from buyer.wallet import place_of, show
        from buyer.wallet_documents import print_wallet, wallet_document

        async def read() -> dict[str, object]:
            return wallet_document(await show(await place_of(given_rpc_urls(rpc)), _address(wallet), token))

        document = asyncio.run(read())
        print_document(document, as_json=as_json, human=lambda: print_wallet(document))


def _do(
    plan: Callable[[Place, Hands], Awaitable[Act]],
    signer: str | None,
    rpc: list[str] | None,
    *,
    relay: str | None = None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Plan an act, ask, carry it out, and print what was done."""
    with exit_on_error(as_json=as_json):
        from buyer.signers import open_signer
        from buyer.wallet import Hands, carry_out, place_of
        from buyer.wallet_documents import act_document, print_act, question

        with ExitStack() as stack:
            owner = stack.enter_context(closing(open_signer(given_signer(signer))))
            payer = None if relay is None else stack.enter_context(closing(open_signer(relay)))
            who = Hands(owner, payer)

            async def planned() -> Act:
                return await plan(await place_of(given_rpc_urls(rpc)), who)

            act = asyncio.run(planned())
            sent = None
            if not dry_run:
                if act.transactions:
                    confirm(question(act), yes=yes)
                sent = asyncio.run(carry_out(act, who))
        document = act_document(act, sent)
        print_document(document, as_json=as_json, human=lambda: print_act(document))


def _address(text: str) -> Address:
    from contracts.address import parse_address

    return parse_address(text, "WALLET")
