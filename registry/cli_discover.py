"""`farebox discover`: find sellers in the ERC-8004 registries, check them, and search without a network."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts.console import exit_on_error, given_rpc_urls, out, print_document
from registry.experience import own_calls
from registry.options import Agent, AllowPrivate, Chain, IndexFile, IpfsGateway, Json, RpcOption, stranger_fetcher
from registry.wiring import gateways, the_index

if TYPE_CHECKING:
    from contracts.storage import Connection
    from registry.listings import Listing
    from registry.search import Result

__all__ = ["commands"]

commands = typer.Typer(no_args_is_help=True, help="Find sellers in the ERC-8004 registries, and check them.")


@commands.command()
def sync(
    chain: Chain,
    *,
    rpc: RpcOption = None,
    index: IndexFile = None,
    files: Annotated[bool, typer.Option("--files/--no-files", help="Fetch registration files that are due.")] = True,
    probe: Annotated[bool, typer.Option("--probe/--no-probe", help="Ask sellers for their price; never pays.")] = True,
    bazaar: Annotated[
        list[str] | None,
        typer.Option("--bazaar", metavar="URL", help="Also read what this facilitator lists; repeatable."),
    ] = None,
    ipfs_gateway: IpfsGateway = None,
    allow_private: AllowPrivate = False,
    as_json: Json = False,
) -> None:
    """Bring the local index up to date: events of the chain, registration files, prices and proofs.

    May be interrupted at any time, and goes on where it was.
    """
    with exit_on_error(as_json=as_json), the_index(index) as opened:
        from contracts.errors import UsageError
        from contracts.networks import parse_network
        from registry.upkeep import Upkeep, keep_up

        network = parse_network(chain, "--chain")
        urls = given_rpc_urls(rpc)
        if not urls:
            raise UsageError("--rpc: is required", remedy="name an endpoint of the chain with --rpc, or in FAREBOX_RPC")
        upkeep = Upkeep(
            network=network,
            rpc_urls=urls,
            files=files,
            probe=probe,
            bazaar=bazaar or [],
            gateways=gateways(ipfs_gateway, allow_private=allow_private),
        )

        async def run() -> dict[str, Any]:
            async with stranger_fetcher(allow_private=allow_private) as fetcher:
                return await keep_up(opened, fetcher, upkeep)

        document = asyncio.run(run())
        read = document["files"]

        def human() -> None:
            out.print(f"{document['agents']} agents on {network.label}, up to block {document['head_block']}")
            out.print(f"files: {read['read']} read, {read['unchanged']} unchanged, {read['failed']} failed")
            out.print(f"sellers asked: {document['surveyed']}; listed by facilitators: {document['listed']}")

        print_document(document, as_json=as_json, human=human)


@commands.command()
def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help='Words, as in "code model".')],
    *,
    max_price: Annotated[
        str | None, typer.Option("--max-price", metavar="DOLLARS", help='Most one call may cost, as "0.01".')
    ] = None,
    network: Annotated[
        str | None, typer.Option("--network", metavar="NETWORK", help="Only sellers paid on this network.")
    ] = None,
    chain: Annotated[
        str | None, typer.Option("--chain", metavar="NETWORK", help="Only agents registered on this chain.")
    ] = None,
    verified: Annotated[bool, typer.Option("--verified", help="Only agents whose every proof holds.")] = False,
    limit: Annotated[int, typer.Option("--limit", metavar="N", help="How many.")] = 20,
    explain: Annotated[bool, typer.Option("--explain", help="Show the factors of each score.")] = False,
    index: IndexFile = None,
    as_json: Json = False,
) -> None:
    """Search the local index, the best first. Asks nobody and sends nothing."""
    with exit_on_error(as_json=as_json), the_index(index, must_exist=True) as opened:
        from contracts.networks import parse_network
        from registry.listings import listed_about, search_listings
        from registry.search import Query, dollars
        from registry.search import search as find
        from registry.shown import listing_document, print_listings, print_results, result_document

        wanted = Query(
            text=query,
            max_price=None if max_price is None else dollars(max_price, "--max-price"),
            network=None if network is None else parse_network(network, "--network"),
            chain_id=None if chain is None else parse_network(chain, "--chain").chain_id,
            is_verified=verified,
            limit=limit,
        )
        now_s, calls = int(time.time()), own_calls()

        def read(connection: Connection) -> tuple[list[dict[str, Any]], list[Result], list[Listing]]:
            results = find(connection, wanted, now_s, calls)
            documents = [
                {
                    **result_document(result, explain=explain),
                    "listed": [listing_document(listing) for listing in listed_about(connection, result)],
                }
                for result in results
            ]
            return documents, results, search_listings(connection, wanted, results)

        documents, results, listings = opened.database.read(read)
        document = {"ok": True, "results": documents, "listings": [listing_document(each) for each in listings]}

        def human() -> None:
            print_results(results, explain=explain)
            print_listings(listings)

        print_document(document, as_json=as_json, human=human)


@commands.command()
def show(agent: Agent, index: IndexFile = None, as_json: Json = False) -> None:
    """Show what the index has of one agent."""
    with exit_on_error(as_json=as_json), the_index(index, must_exist=True) as opened:
        from registry.candidates import find_candidate, read_standing
        from registry.shown import agent_document, print_agent

        candidate = opened.database.read(lambda connection: find_candidate(connection, agent))
        standing, warnings = opened.database.read(lambda connection: read_standing(connection, candidate))
        document = {"ok": True, **agent_document(candidate, standing, warnings)}
        print_document(document, as_json=as_json, human=lambda: print_agent(document))


@commands.command()
def uri(
    location: Annotated[str, typer.Argument(metavar="AGENT|URI", help="An agent of the index, or any agent URI.")],
    ipfs_gateway: IpfsGateway = None,
    allow_private: AllowPrivate = False,
    index: IndexFile = None,
    as_json: Json = False,
) -> None:
    """Fetch a registration file now, under the network guard, and show what it says and what is odd about it."""
    with exit_on_error(as_json=as_json):
        from contracts.errors import SellerUnreachable, UsageError
        from registry.agent_id import parse_agent_id
        from registry.candidates import find_candidate
        from registry.documents import read_document
        from registry.retrieve import retrieve
        from registry.shown import print_card, untrusted

        target = location
        try:
            parse_agent_id(location)
        except UsageError:
            pass
        else:
            with the_index(index, must_exist=True) as opened:
                target = opened.database.read(lambda connection: find_candidate(connection, location)).on_chain.uri

        through = gateways(ipfs_gateway, allow_private=allow_private)

        async def run() -> Any:
            async with stranger_fetcher(allow_private=allow_private) as fetcher:
                return await retrieve(target, fetcher, through)

        found = asyncio.run(run())
        if found.data is None:
            raise SellerUnreachable(f"the file cannot be had: {found.error}", remedy="the code says why")
        read = read_document(found.data)
        document = {
            "ok": True,
            "bytes": len(found.data),
            "content_hash": "0x" + found.content_hash.hex(),
            "warnings": [*found.codes, *read.warnings],
            "untrusted": None if read.card is None else untrusted(read.card),
        }
        print_document(document, as_json=as_json, human=lambda: print_card(document))


@commands.command()
def count(chain: Chain, rpc: RpcOption = None, index: IndexFile = None, as_json: Json = False) -> None:
    """Count the agents of a chain exactly: by one storage read with --rpc, else as of the last sync."""
    with exit_on_error(as_json=as_json):
        from contracts.errors import NameUnknown
        from contracts.evm.rpc import Rpc
        from contracts.evm.token import read_head
        from contracts.networks import parse_network
        from registry.chains import chain_of
        from registry.reading import read_count

        network = parse_network(chain, "--chain")
        urls = given_rpc_urls(rpc)

        async def live() -> tuple[int, int]:
            async with Rpc(urls) as client:
                block = (await read_head(client)).number
                return await read_count(client, chain_of(network), block), block

        if urls:
            agents, block = asyncio.run(live())
        else:
            with the_index(index, must_exist=True) as opened:
                row = opened.chain(network.chain_id)
            if row is None or row["agent_count"] is None:
                raise NameUnknown(f"{network.label}: was never synced", remedy="name an endpoint with --rpc")
            agents, block = row["agent_count"], row["head_block"]
        document = {"ok": True, "chain": network.caip2, "agents": agents, "block": block, "is_live": bool(urls)}
        print_document(
            document, as_json=as_json, human=lambda: out.print(f"{agents} agents on {network.label} at block {block}")
        )


@commands.command("export")
def export_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="To write; a name ending in .gz is compressed.")],
    chain_only: Annotated[
        bool, typer.Option("--chain-only", help="Leave out files, prices and listings: only what the chain says.")
    ] = False,
    index: IndexFile = None,
    as_json: Json = False,
) -> None:
    """Write the index to a file, for a machine without a network."""
    with exit_on_error(as_json=as_json), the_index(index, must_exist=True) as opened:
        from registry.export import export_index

        rows = export_index(opened, file, chain_only=chain_only)
        document = {"ok": True, "file": str(file), "rows": rows}
        print_document(document, as_json=as_json, human=lambda: out.print(f"{rows} rows to {file}", markup=False))


@commands.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="As `farebox discover export` wrote it.")],
    index: IndexFile = None,
    as_json: Json = False,
) -> None:
    """Take an exported index into this one: all of it, or nothing."""
    with exit_on_error(as_json=as_json), the_index(index) as opened:
        from registry.bazaar import write_listing_texts
        from registry.export import import_index
        from registry.gather import write_texts

        rows = import_index(opened, file)
        write_texts(opened.database)
        opened.database.transact(write_listing_texts)
        document = {"ok": True, "file": str(file), "rows": rows}
        print_document(document, as_json=as_json, human=lambda: out.print(f"{rows} rows from {file}", markup=False))
