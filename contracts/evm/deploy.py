"""Deploy a compiled contract. The only module that imports web3, and only when it is called."""

from __future__ import annotations

from collections.abc import Callable

from contracts.errors import LocalError
from contracts.evm.artifact import load_artifact
from contracts.limits import DEVNET_POLL_S, DEVNET_RECEIPT_TIMEOUT_S
from contracts.nesting import recursion_limit_kept

__all__ = ["DeployFailed", "deploy"]


class DeployFailed(LocalError):
    """The deployment transaction was refused or reverted."""

    code = "deploy_failed"
    remedy = "check the constructor arguments against the contract's abi"


def deploy(
    rpc_url: str,
    sender: str,
    artifact_name: str,
    *constructor_args: object,
    after_sending: Callable[[], None] = lambda: None,
) -> str:
    """Deploy one artifact from `sender`, an account that the node signs for; return its checksummed address.

    `after_sending` is called before the wait for the receipt; a chain that mines on demand mines there. Raises
    `UsageError` for an unknown artifact and `DeployFailed` when the arguments do not fit, the constructor reverts or
    no receipt comes in time.
    """
    with recursion_limit_kept():
        from web3 import HTTPProvider, Web3
        from web3.exceptions import Web3Exception

    artifact = load_artifact(artifact_name)
    web3 = Web3(HTTPProvider(rpc_url))
    contract = web3.eth.contract(abi=artifact.abi, bytecode=artifact.bytecode)
    try:
        transaction = contract.constructor(*constructor_args).transact({"from": Web3.to_checksum_address(sender)})
        after_sending()
        receipt = web3.eth.wait_for_transaction_receipt(transaction, DEVNET_RECEIPT_TIMEOUT_S, DEVNET_POLL_S)
    except (Web3Exception, TypeError) as error:
        raise DeployFailed(f"{artifact_name}: {error}") from error
    address = receipt["contractAddress"]
    if receipt["status"] != 1 or address is None:
        raise DeployFailed(f"{artifact_name}: the constructor reverted")
    return address
