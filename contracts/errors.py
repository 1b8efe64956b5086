"""The errors that the rooms share, in one tree. What one room alone raises stands there; docs/errors.md lists all.

FareboxError
├── LocalError                    our own configuration, machine or misuse
│   ├── ConfigInvalid             a setting is missing, unknown or malformed
│   ├── UsageError                a command was called with words it cannot take
│   ├── PoolRestored              the pool is an older copy, and the chain was not asked yet
│   ├── StoreUnavailable          our database cannot be read or written
│   ├── ChainUnavailable          no RPC endpoint answered in time
│   ├── FacilitatorUnavailable    no facilitator answered in time
│   ├── SettlementUnavailable     the settlement queue is full or stands still
│   ├── SignerFailed              the signer refused or could not be reached
│   ├── NameUnknown               no purchase, model or file of that name
│   └── LocalRefusal              our own policy says no
│       ├── PriceAboveCap         the seller asks more than the purchase allows
│       ├── BudgetExceeded        a total, daily or per-client budget would be passed
│       ├── InsufficientBalance   the wallet does not cover what it would sign
│       ├── InsufficientAllowance the wallet lets Permit2 move less than it would sign
│       ├── PayerHasCode          the wallet address is a contract
│       ├── TermsNotAllowed       asset, network, payee or validity outside the policy
│       ├── AuthorizationsExhausted   the pool has nothing left to spend
│       ├── RequestInProgress     this request id is already being paid for
│       ├── RequestChanged        this request id was presented with another content
│       └── RequestAlreadyPaid    this request was paid and answered before
└── RemoteError                   the other side broke the agreement
    ├── SellerUnreachable         no connection, or no answer in time
    ├── NotForSale                the endpoint answers, but asks for no payment
    ├── TermsChanged              the seller no longer honours the pinned terms
    ├── UpstreamFailed            the model server failed before it answered
    ├── OutcomeUnknown            money may have moved; only the chain can tell
    ├── MalformedMessage          a message, header or body does not parse
    ├── AnswerOverLimit           the answer was paid for, and is too long or too slow
    ├── AboveCeiling              the request may cost more than its payment allows
    └── PaymentRefused            a payment that parses but is not acceptable
        ├── NoMatchingOffer       the echoed terms are none of ours
        ├── ExtensionEchoMismatch   an extension of ours comes back changed
        ├── InvalidSignature      the signature is not the payer's
        ├── RecipientMismatch     it pays somebody else
        ├── TokenMismatch         it pays in another token
        ├── SpenderMismatch       it allows another contract to move the money
        ├── FacilitatorMismatch   it allows another account to settle
        ├── AmountMismatch        it pays another amount
        ├── PaymentExpired        its time is over, or ends too soon to settle
        ├── PaymentNotYetValid    its time has not begun
        ├── PaymentReplayed       it was used before
        ├── PaymentRevoked        the payer took it back
        ├── InsufficientFunds     the payer's balance does not cover it
        ├── AllowanceRequired     the payer lets Permit2 move less than it
        ├── ContractPayer         the payer is a contract that does not vouch for the signature
        ├── TokenPaused           the token moves nothing for anybody now
        ├── PartyBlocked          the token moves nothing from or to one of the two
        ├── FactoryNotAllowed     it would be deployed by a factory we do not call
        ├── ExposureExceeded      too much unsettled money with this payer
        └── SettlementFailed      the chain or the facilitator said no

`code` is stable and machine-readable; `http_status` is what a server answers; `exit_code` is what a
command exits with (0 ok, 1 failed, 2 usage, 3 payment refused, 4 over a cap, 5 seller unreachable,
6 outcome unknown); `remedy` is one line of what to do. Errors of a payment also carry `x402_reason`,
the string other x402 implementations use for the same refusal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from contracts.wire import SettlementResponse

__all__ = [
    "AboveCeiling",
    "AllowanceRequired",
    "AmountMismatch",
    "AnswerOverLimit",
    "AuthorizationsExhausted",
    "BudgetExceeded",
    "ChainUnavailable",
    "ConfigInvalid",
    "ContractPayer",
    "ExposureExceeded",
    "ExtensionEchoMismatch",
    "FacilitatorMismatch",
    "FacilitatorUnavailable",
    "FactoryNotAllowed",
    "FareboxError",
    "InsufficientAllowance",
    "InsufficientBalance",
    "InsufficientFunds",
    "InvalidSignature",
    "LocalError",
    "LocalRefusal",
    "MalformedMessage",
    "NameUnknown",
    "NoMatchingOffer",
    "NotForSale",
    "OutcomeUnknown",
    "PartyBlocked",
    "PayerHasCode",
    "PaymentExpired",
    "PaymentNotYetValid",
    "PaymentRefused",
    "PaymentReplayed",
    "PaymentRevoked",
    "PoolRestored",
    "PriceAboveCap",
    "RecipientMismatch",
    "RemoteError",
    "RequestAlreadyPaid",
    "RequestChanged",
    "RequestInProgress",
    "SellerUnreachable",
    "SettlementFailed",
    "SettlementUnavailable",
    "SignerFailed",
    "SpenderMismatch",
    "StoreUnavailable",
    "TermsChanged",
    "TermsNotAllowed",
    "TokenMismatch",
    "TokenPaused",
    "UpstreamFailed",
    "UsageError",
]


class FareboxError(Exception):
    """Root of everything Farebox raises on purpose.

    `message` says what happened and to which field; it is safe to show to a client.
    """

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    remedy: ClassVar[str] = "see the message"
    retry_after_s: ClassVar[int | None] = None

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.advice = remedy or self.remedy


class LocalError(FareboxError):
    """Ours: configuration, machine or misuse. Never answered with 402."""

    code = "local_error"


class ConfigInvalid(LocalError):
    """A setting is missing, unknown or malformed; start-up fails closed."""

    code, exit_code = "config_invalid", 2
    remedy = "correct the named setting and start again"


class UsageError(LocalError):
    """A command or function was called with values it cannot take."""

    code, http_status, exit_code = "usage", 400, 2
    remedy = "run the command with --help"


class StoreUnavailable(LocalError):
    """Our database cannot be read or written, so no money may move."""

    code, http_status, retry_after_s = "store_unavailable", 503, 5
    remedy = "check the disk and the `store` setting"


class PoolRestored(LocalError):
    """The pool was restored from a backup: what looks unspent in it may have been sent since."""

    code, http_status, retry_after_s = "pool_restored", 503, 60
    remedy = "run `farebox process --all`, which asks the chain"


class ChainUnavailable(LocalError):
    """No RPC endpoint gave an answer in time."""

    code, http_status, retry_after_s = "chain_unavailable", 503, 5
    remedy = "check the `rpc` setting; several endpoints may be listed"


class FacilitatorUnavailable(LocalError):
    """No facilitator gave a usable answer in time."""

    code, http_status, retry_after_s = "facilitator_unavailable", 503, 5
    remedy = "check `settler.url`"


class SettlementUnavailable(LocalError):
    """The settlement worker is behind or stopped; nothing was taken."""

    code, http_status, retry_after_s = "settlement_unavailable", 503, 5
    remedy = "start `farebox settle`, or look at its log"


class SignerFailed(LocalError):
    """The signer refused, gave a wrong signature, or could not be reached."""

    code, http_status = "signer_failed", 503
    remedy = "check --signer and that the signer is running"


class NameUnknown(LocalError):
    """No purchase, model or file has that name."""

    code, http_status, exit_code = "not_found", 404, 2
    remedy = "run `farebox list`"


class LocalRefusal(LocalError):
    """Our own policy says no; nothing left this machine."""

    code, http_status, exit_code = "refused_by_policy", 402, 4


class PriceAboveCap(LocalRefusal):
    """The seller asks more than the purchase allows."""

    code = "price_above_cap"
    remedy = "raise --max-price for this purchase, or choose another seller"


class BudgetExceeded(LocalRefusal):
    """A total, daily or per-client budget would be passed."""

    code = "budget_exceeded"
    remedy = "raise --max-total or --max-per-day, or wait for the next day"


class InsufficientBalance(LocalRefusal):
    """The wallet does not cover everything it would have signed for."""

    code = "insufficient_balance"
    remedy = "fund the wallet, or sign for less"


class InsufficientAllowance(LocalRefusal):
    """The wallet lets Permit2 move less than everything it would have signed for: the cap that the chain holds."""

    code = "insufficient_allowance"
    remedy = "run `farebox approve`"


class PayerHasCode(LocalRefusal):
    """The wallet address is a contract (EIP-7702 included), so the token would refuse its key's signature."""

    code = "payer_has_code"
    remedy = "use a wallet address without code"


class TermsNotAllowed(LocalRefusal):
    """Asset, network, payee, host or validity lies outside the policy."""

    code = "terms_not_allowed"
    remedy = "allow the named value in the policy, or choose another offer"


class AuthorizationsExhausted(LocalRefusal):
    """The pool has no authorization left for this model."""

    code = "authorizations_exhausted"
    remedy = "run `farebox refill NAME`"


class RequestInProgress(LocalRefusal):
    """The same request id is already being paid for; wait for its answer."""

    code, http_status, exit_code, retry_after_s = "request_in_progress", 409, 1, 1
    remedy = "wait, then repeat the request with the same id"


class RequestChanged(LocalRefusal):
    """The same request id came with another content; its payment is for what was presented first."""

    code, http_status, exit_code = "request_id_reused", 400, 2
    remedy = "give every request an id of its own"


class RequestAlreadyPaid(LocalRefusal):
    """The request was paid and answered, and the answer can no longer be had."""

    code, http_status, exit_code = "request_already_paid", 409, 1
    remedy = "send it as a new request to buy it again"


class RemoteError(FareboxError):
    """The other side broke the agreement."""

    code, http_status = "remote_error", 502


class SellerUnreachable(RemoteError):
    """No connection, or nothing heard in time; no payment left."""

    code, http_status, exit_code, retry_after_s = "seller_unavailable", 503, 5, 5
    remedy = "check the address and that the seller is up"


class NotForSale(RemoteError):
    """The endpoint answers but asks for no x402 payment."""

    code, exit_code = "not_for_sale", 5
    remedy = "call it without paying, or correct the URL"


class TermsChanged(RemoteError):
    """The seller no longer honours the pinned price, payee, asset or network."""

    code, http_status, exit_code = "terms_changed", 402, 3
    remedy = "run `farebox probe` and buy again under the new terms"


class UpstreamFailed(RemoteError):
    """The model server failed before it answered; nothing is charged."""

    code = "upstream_failed"
    remedy = "repeat the request; it was not charged"


class OutcomeUnknown(RemoteError):
    """The payment was sent and its fate is open; only the chain can tell."""

    code, exit_code = "outcome_unknown", 6
    remedy = "repeat the same request, or run `farebox process` to ask the chain"


class MalformedMessage(RemoteError):
    """A header, body or field is not what the protocol says it is."""

    code, http_status, exit_code = "malformed", 400, 3
    x402_reason: ClassVar[str] = "invalid_payload"
    remedy = "send the field as the x402 specification writes it"


class AnswerOverLimit(RemoteError):
    """The seller's answer is longer than its reader takes, or takes longer; what is paid for it stays paid.

    `receipt` is the seller's receipt, when it gave one.
    """

    code = "answer_over_limit"
    remedy = "raise the named limit and repeat the request, which presents the same payment; or leave this seller"

    def __init__(self, message: str, *, remedy: str | None = None, receipt: SettlementResponse | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.receipt = receipt


class AboveCeiling(RemoteError):
    """A request that is sold by usage may come to more than the amount its payment authorizes."""

    code, http_status, exit_code = "above_ceiling", 400, 4
    remedy = "ask for fewer tokens"


class PaymentRefused(RemoteError):
    """A payment that parses but cannot be accepted; the answer offers the right terms again."""

    code, http_status, exit_code = "payment_invalid", 402, 3
    x402_reason: str = "invalid_payload"

    def __init__(self, message: str, *, remedy: str | None = None, x402_reason: str | None = None) -> None:
        """`x402_reason` is the word for this refusal on another rail than EIP-3009, whose words the classes carry."""
        super().__init__(message, remedy=remedy)
        if x402_reason is not None:
            self.x402_reason = x402_reason


class NoMatchingOffer(PaymentRefused):
    """The payment echoes terms that are none of ours."""

    code, x402_reason = "no_matching_offer", "invalid_payment_requirements"
    remedy = "pay one of the offers in `accepts`, echoed unchanged"


class ExtensionEchoMismatch(PaymentRefused):
    """The payment echoes an extension that the 402 declared, and lacks or changes a part of its `info`."""

    code, x402_reason = "extension_echo_mismatch", "extension_echo_mismatch"
    remedy = "echo what the 402 declares and add to it, or leave `extensions` out"


class InvalidSignature(PaymentRefused):
    """The signature is not the payer's over these terms (wrong key, domain, or form)."""

    code, x402_reason = "invalid_signature", "invalid_exact_evm_payload_signature"
    remedy = "sign with the domain name and version in `extra`"


class RecipientMismatch(PaymentRefused):
    """The authorization pays somebody else."""

    code, x402_reason = "recipient_mismatch", "invalid_exact_evm_payload_recipient_mismatch"
    remedy = "sign for the offer's payTo"


class AmountMismatch(PaymentRefused):
    """The authorization is for another amount than the price."""

    code, x402_reason = "amount_mismatch", "invalid_exact_evm_payload_authorization_value_mismatch"
    remedy = "sign for exactly the offer's amount"


class TokenMismatch(PaymentRefused):
    """The Permit2 authorization is for another token than the offer's."""

    code, x402_reason = "token_mismatch", "permit2_token_mismatch"
    remedy = "sign for the offer's asset"


class SpenderMismatch(PaymentRefused):
    """The Permit2 authorization names another spender than the x402 proxy of its scheme."""

    code, x402_reason = "spender_mismatch", "invalid_permit2_spender"
    remedy = "sign with the x402 proxy of the offer's scheme as spender"


class FacilitatorMismatch(PaymentRefused):
    """The `upto` authorization allows another account than the offer's facilitatorAddress to settle."""

    code, x402_reason = "facilitator_mismatch", "upto_facilitator_mismatch"
    remedy = "sign with the facilitatorAddress in the offer's `extra` as witness.facilitator"


class PaymentExpired(PaymentRefused):
    """validBefore is past, or too near for a settlement."""

    code, x402_reason = "payment_expired", "invalid_exact_evm_payload_authorization_valid_before"
    remedy = "sign with a later validBefore"


class PaymentNotYetValid(PaymentRefused):
    """validAfter lies in the future."""

    code, x402_reason = "payment_not_yet_valid", "invalid_exact_evm_payload_authorization_valid_after"
    remedy = "wait until validAfter, or sign with 0"


class PaymentReplayed(PaymentRefused):
    """This authorization was used before, here or on chain."""

    code, x402_reason = "payment_replayed", "invalid_exact_evm_nonce_already_used"
    remedy = "use another authorization"


class InsufficientFunds(PaymentRefused):
    """The payer's balance does not cover what it has signed here."""

    code, x402_reason = "insufficient_funds", "insufficient_funds"
    remedy = "fund the payer"


class PaymentRevoked(PaymentRefused):
    """The payer cancelled this authorization on chain."""

    code, x402_reason = "payment_revoked", "invalid_exact_evm_nonce_already_used"
    remedy = "use another authorization"


class AllowanceRequired(PaymentRefused):
    """The payer's token lets Permit2 move less than the payment."""

    # 412 by the specification: what is missing is one approval, and not another payment.
    code, http_status, x402_reason = "permit2_allowance_required", 412, "permit2_allowance_required"
    remedy = "approve Permit2 for the token, then send the same payment again"


class ContractPayer(PaymentRefused):
    """The payer is a contract (EIP-7702 included) and does not vouch for the signature, whoever's it is."""

    code, x402_reason = "contract_payer", "invalid_exact_evm_payload_signature"
    remedy = "sign as the contract's isValidSignature (ERC-1271) wants it, or pay from an address without code"


class TokenPaused(PaymentRefused):
    """The token's contract is paused: nobody's transfer succeeds."""

    code, x402_reason = "token_paused", "invalid_exact_evm_transaction_simulation_failed"
    remedy = "nothing was charged; send the same payment again when the token moves"


class PartyBlocked(PaymentRefused):
    """The token's contract refuses transfers of this payer, or to this seller."""

    code, x402_reason = "party_blocked", "invalid_exact_evm_transaction_simulation_failed"
    remedy = "pay from another address; if every payer hears this, the seller's payTo is blocked"


class FactoryNotAllowed(PaymentRefused):
    """The paying wallet is not deployed, and its factory (ERC-6492) is none that this seller calls."""

    code, x402_reason = "factory_not_allowed", "eip6492_factory_not_allowed"
    remedy = "deploy the wallet first, then pay again"


class ExposureExceeded(PaymentRefused):
    """The seller will not extend more unsettled credit."""

    code, http_status, x402_reason, retry_after_s = "exposure_exceeded", 429, "unexpected_settle_error", 5
    remedy = "wait until earlier payments have settled, then send the same payment"


class SettlementFailed(PaymentRefused):
    """The chain or the facilitator refused the transfer."""

    code, x402_reason = "settlement_failed", "transaction_failed"
    remedy = "check the payer's balance and that the authorization is unused"
