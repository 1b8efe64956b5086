"""Signs the payments of an AgentWallet: its agent's key approves each, and its contract judges the approval."""

from __future__ import annotations

from collections.abc import Sequence

from buyer.checked import checked_signature
from buyer.signing import Signer
from contracts.address import Address
from contracts.errors import SignerFailed
from contracts.evm.agent_wallet import approval_digest, slot_signature
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization
from contracts.schemes.rails import rail_of
from contracts.typed_data import Domain

__all__ = ["SlotSigner"]


class SlotSigner:
    """A signer for `wallet`, by its agent's key. Its signatures are the contract's (ERC-1271), and not 65 bytes."""

    def __init__(self, agent: Signer, wallet: Address) -> None:
        self._agent = agent
        self._wallet = wallet

    @property
    def address(self) -> Address:
        """The wallet that pays."""
        return self._wallet

    def sign_authorizations(self, authorizations: Sequence[Authorization], offer: Offer) -> list[bytes]:
        """Return one checked signature for each, in order."""
        rail, chain_id = rail_of(offer), offer.network.chain_id
        digests = [rail.digest(authorization, offer) for authorization in authorizations]
        approvals = self._agent.sign_approvals(digests, Domain("AgentWallet", "1", chain_id, self._wallet))
        if len(approvals) != len(digests):
            raise SignerFailed(f"the signer returned {len(approvals)} signatures for {len(digests)}")
        return [
            slot_signature(
                checked_signature(approval_digest(self._wallet, chain_id, digest), approval, self._agent.address),
                authorization,
                offer.asset.address,
                rail.NAME,
            )
            for authorization, digest, approval in zip(authorizations, digests, approvals, strict=True)
        ]
