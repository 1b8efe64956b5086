"""`farebox register`: the ERC-8004 registration of a seller, made from its `seller.yaml`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from buyer.options import DryRun, Json, RpcOption, SignerOption, Yes
from contracts.console import exit_on_error, given_rpc_urls, out, print_document, printable

if TYPE_CHECKING:
    from gateway.registering import Done
    from registry.registration import Seller

__all__ = ["register_commands"]

register_commands = typer.Typer(
    help="Register a seller where buyers look: the ERC-8004 registry of its chain.", no_args_is_help=True
)

SellerFile = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The seller's settings.")]
AgentNumber = Annotated[int, typer.Argument(metavar="ID", min=0, help="Your agent's id on the chain.")]
OutFolder = Annotated[
    Path, typer.Option("--out", metavar="FOLDER", help="Where to put .well-known/agent-registration.json.")
]
Name = Annotated[
    str | None, typer.Option("--name", help="What to call the seller; else as its settings say, or by its host.")
]
Description = Annotated[
    str | None,
    typer.Option("--description", help="What it offers, for people and for search; else as its settings say."),
]
Image = Annotated[str | None, typer.Option("--image", metavar="URL", help="A picture of it; else as its settings say.")]
_SELLER = Path("seller.yaml")
_HERE = Path("public")


@register_commands.command()
def ensure(
    *,
    config: SellerFile = _SELLER,
    signer: SignerOption = None,
    rpc: RpcOption = None,
    name: Name = None,
    description: Description = None,
    image: Image = None,
    uri: Annotated[
        str | None, typer.Option("--uri", help="Where the file will be; else its well-known place below `public_url`.")
    ] = None,
    inline: Annotated[bool, typer.Option("--inline", help="Put the whole file on chain; costs far more gas.")] = False,
    another: Annotated[bool, typer.Option("--another", help="Register even if the wallet has a registration.")] = False,
    out_folder: OutFolder = _HERE,
    index: Annotated[Path | None, typer.Option("--index", metavar="FILE", help="The local index to use.")] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Register the seller, unless it is registered already, and write the file that proves it."""
    with exit_on_error(as_json=as_json):
        from buyer.wiring import closing
        from registry.wiring import the_index

        seller = _seller(config, name, description, image)
        with closing(_wallet(signer)) as wallet, the_index(index) as books:
            clerk = _clerk(seller, wallet, rpc, dry_run=dry_run, yes=yes)
            done = asyncio.run(clerk.ensure(books, seller, uri=uri, inline=inline, another=another, folder=out_folder))
        _print(done, dry_run=dry_run, as_json=as_json)


@register_commands.command("set-uri")
def set_uri(
    agent: AgentNumber,
    uri: Annotated[str, typer.Argument(metavar="URI", help="https://, ipfs:// or data:")],
    *,
    config: SellerFile = _SELLER,
    signer: SignerOption = None,
    rpc: RpcOption = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Change where the registration file of your agent is."""
    with exit_on_error(as_json=as_json):
        from buyer.wiring import closing

        with closing(_wallet(signer)) as wallet:
            clerk = _clerk(_seller(config), wallet, rpc, dry_run=dry_run, yes=yes)
            done = asyncio.run(clerk.set_uri(agent, uri))
        _print(done, dry_run=dry_run, as_json=as_json)


@register_commands.command("set-wallet")
def set_wallet(
    agent: AgentNumber,
    *,
    wallet: Annotated[
        str, typer.Option("--wallet", metavar="KIND:PLACE", help="The payee's wallet, which signs its consent.")
    ],
    config: SellerFile = _SELLER,
    signer: SignerOption = None,
    rpc: RpcOption = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Name the wallet that your agent is paid to. Buyers refuse payees that are neither this nor the owner."""
    with exit_on_error(as_json=as_json):
        from buyer.wiring import closing

        with closing(_wallet(signer)) as owner, closing(_wallet(wallet)) as payee:
            clerk = _clerk(_seller(config), owner, rpc, dry_run=dry_run, yes=yes)
            done = asyncio.run(clerk.set_wallet(agent, payee))
        _print(done, dry_run=dry_run, as_json=as_json)


@register_commands.command("well-known")
def well_known(
    agent: Annotated[
        list[str], typer.Argument(metavar="AGENT…", help="Ids of your agents, as 42 or eip155:84532:0x…/42.")
    ],
    *,
    config: SellerFile = _SELLER,
    name: Name = None,
    description: Description = None,
    image: Image = None,
    out_folder: OutFolder = _HERE,
    as_json: Json = False,
) -> None:
    """Write the file that proves your agents, again: after a change of `seller.yaml`, or for another chain."""
    with exit_on_error(as_json=as_json):
        from contracts.networks import Network
        from gateway.registering import Done, write_well_known
        from registry.agent_id import AgentId, parse_agent_id
        from registry.chains import chain_of

        seller = _seller(config, name, description, image)
        agents = []
        for text in agent:
            spelled = f"{seller.network.caip2}:{text}" if text.isdigit() else text
            chain_id, identity, number = parse_agent_id(spelled)
            agents.append(AgentId(chain_id, identity or chain_of(Network(chain_id)).identity, number))
        path = write_well_known(out_folder, seller, agents)
        done = Done(agents[0], changed=True, uri=seller.well_known_url, file=path)
        _print(done, dry_run=False, as_json=as_json)


def _seller(config: Path, name: str | None = None, description: str | None = None, image: str | None = None) -> Seller:
    from registry.registration import read_seller

    return read_seller(config, name=name, description=description, image=image)


def _wallet(spec: str | None) -> Any:
    from buyer.signers import open_signer
    from contracts.errors import UsageError

    if spec is None:
        raise UsageError("--signer: is required", remedy="name the owner's wallet: --signer keyfile:PATH")
    return open_signer(spec)


def _clerk(seller: Seller, wallet: Any, rpc: list[str] | None, *, dry_run: bool, yes: bool) -> Any:
    from buyer.wiring import confirm
    from gateway.registering import Clerk
    from gateway.sending import Sending
    from registry.chains import chain_of

    urls = given_rpc_urls(rpc) or list(seller.rpc_urls)
    sending = Sending(seller.network, wallet, dry_run, lambda question: confirm(question, yes=yes))
    return Clerk(chain_of(seller.network), sending, urls)


def _print(done: Done, *, dry_run: bool, as_json: bool) -> None:
    document = done.document(dry_run=dry_run)

    def human() -> None:
        out.print(f"[bold]agent[/]  {escape(document['agent'] or 'gets its id when it is registered')}")
        if done.uri:
            shown = done.uri if len(done.uri) <= 100 else done.uri[:97] + "..."
            out.print(f"[bold]file[/]   {escape(printable(shown))}")
        if not done.changed:
            out.print("nothing to do: the chain says this already")
        elif done.sent.gas_limit:
            for line in done.sent.lines(dry_run=dry_run):
                out.print(line)
        if done.file:
            out.print(f"wrote {escape(done.file)}: serve it at its address, as application/json")
        for note in done.notes:
            out.print(f"[yellow]{escape(printable(note))}[/]")

    print_document(document, as_json=as_json, human=human)
