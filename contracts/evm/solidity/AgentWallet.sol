// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {ERC2771Context} from "@openzeppelin/contracts/metatx/ERC2771Context.sol";
import {IERC20, SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Context} from "@openzeppelin/contracts/utils/Context.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {ERC165} from "@openzeppelin/contracts/utils/introspection/ERC165.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

import {IERC3009, Messages} from "./shared/Messages.sol";
import {IPermit2} from "./shared/Permit2Payment.sol";

/// @title A wallet that an agent may spend from, within a daily limit that no signature can pass
/// @notice The agent signs payments (ERC-1271); token or Permit2 burn a nonce for each. The wallet agrees only to
/// messages it rebuilt itself, whose nonce is a numbered slot of one day, whose value fits the slot, and whose validity
/// lies inside that day. So a day moves at most unit × slots + reserveCap of a token, whoever holds the agent's key, with
/// no transaction per payment. Everything else is the owner's.
/// @dev The code is final: no proxy, no delegatecall, no multicall. Trusted: the owner, the forwarder, Permit2 and the
/// two x402 proxies, and that a listed token burns its nonces and keeps to validity windows.
contract AgentWallet is ERC2771Context, Ownable2Step, EIP712, ERC165, IERC1271 {
    using SafeERC20 for IERC20;
    using SafeCast for uint256;

    /// @notice How a token is paid. One at a time: each has nonces of its own, and two would double the budget.
    enum Rail {
        None,
        Eip3009,
        Permit2,
        Drip
    }

    /// @dev One storage word. `id` tells tokens apart in Permit2's nonces, which all tokens share.
    struct Policy {
        uint96 unit;
        uint96 reserveCap;
        uint16 slots;
        uint16 id;
        uint24 fromDay;
        Rail rail;
    }

    /// @dev What was reserved or dripped on `day`; another day starts at zero.
    struct Used {
        uint24 day;
        uint128 value;
    }

    struct Reservation {
        address token;
        uint24 day;
    }

    /// @dev The first byte of a signature; then the agent's r ‖ s ‖ v, then, but for KIND_RESERVED, the payment.
    uint8 private constant KIND_TRANSFER = 1;
    uint8 private constant KIND_RECEIVE = 2;
    uint8 private constant KIND_EXACT = 3;
    uint8 private constant KIND_UPTO = 4;
    uint8 private constant KIND_RESERVED = 5;
    uint256 private constant SLOT_SIGNATURE_LENGTH = 1 + 65 + 8 * 32;
    uint256 private constant RESERVED_SIGNATURE_LENGTH = 1 + 65;

    bytes4 private constant REFUSED = 0xffffffff;
    bytes32 private constant APPROVE_TYPEHASH = keccak256("Approve(bytes32 digest)");
    /// @dev The upper 200 bits of every slot's nonce; the rest is token id, day and slot, and nothing is free.
    uint256 private constant NONCE_TAG = uint256(keccak256("Farebox AgentWallet slot 1")) >> 56;

    IPermit2 public immutable PERMIT2;
    address public immutable EXACT_PROXY;
    address public immutable UPTO_PROXY;

    address public agent;
    uint16 private _lastId;
    mapping(address token => Policy) private _policies;
    mapping(address token => bytes32) private _domains;
    mapping(address token => Used) private _used;
    mapping(bytes32 digest => Reservation) private _reservations;
    /// @dev The one cancellation the wallet agrees to while it asks the token for it.
    bytes32 private transient _cancelling;

    event PolicySet(
        address indexed token,
        Rail rail,
        uint96 unit,
        uint16 slots,
        uint96 reserveCap,
        uint24 fromDay
    );
    event AgentSet(address indexed agent);
    event Reserved(address indexed token, address indexed to, uint256 value, bytes32 nonce, bytes32 digest);
    event Dripped(address indexed token, address indexed agent, uint256 value);
    event SlotsCancelled(address indexed token, uint24 day, uint16 first, uint16 last);

    error NotAgent(address caller);
    error OverBudget(uint256 used, uint256 cap);
    error WrongRail(Rail rail);
    error PolicyPending(uint24 fromDay);
    error OutsideToday(uint256 validBefore);
    error UnknownDomain(address token);
    error NoSlots(uint16 first, uint16 last);
    error CallFailed(bytes reason);

    /// @param forwarder ERC-2771 forwarder for gasless calls, as trusted as the owner; zero for none.
    /// @param agent_ Zero makes a wallet that is frozen until `setAgent`.
    constructor(
        address forwarder,
        address owner_,
        address agent_,
        IPermit2 permit2,
        address exactProxy,
        address uptoProxy
    ) ERC2771Context(forwarder) Ownable(owner_) EIP712("AgentWallet", "1") {
        PERMIT2 = permit2;
        EXACT_PROXY = exactProxy;
        UPTO_PROXY = uptoProxy;
        agent = agent_;
        emit AgentSet(agent_);
    }

    receive() external payable {}

    /// @notice Set what the agent may spend of `token` per day (UTC): `slots` payments of at most `unit` each, and
    /// `reserveCap` in reserved ones. Rail None ends it.
    /// @dev A token's first policy holds at once. A change holds from the next day on and nothing may be spent until
    /// then, so that no day sees two budgets.
    function setPolicy(
        address token,
        Rail rail,
        uint96 unit,
        uint16 slots,
        uint96 reserveCap
    ) external onlyOwner {
        Policy storage policy_ = _policies[token];
        uint24 fromDay = _today();
        if (policy_.id == 0) {
            policy_.id = ++_lastId;
        } else {
            ++fromDay;
        }
        if (rail == Rail.Eip3009) _domains[token] = _domainOf(token);
        (policy_.rail, policy_.unit, policy_.slots) = (rail, unit, slots);
        (policy_.reserveCap, policy_.fromDay) = (reserveCap, fromDay);
        emit PolicySet(token, rail, unit, slots, reserveCap, fromDay);
    }

    /// @notice Name the key that signs payments; zero freezes the wallet. Holds at once.
    function setAgent(address agent_) external onlyOwner {
        agent = agent_;
        emit AgentSet(agent_);
    }

    /// @notice Anything the owner wants done: withdraw, approve Permit2, rescue a token.
    function execute(
        address to,
        uint256 value,
        bytes calldata data
    ) external payable onlyOwner returns (bytes memory) {
        (bool done, bytes memory result) = to.call{value: value}(data);
        require(done, CallFailed(result));
        return result;
    }

    /// @notice Burn the slots `first` to `last`, both included, of one day, signed or not.
    function cancelSlots(address token, uint24 day, uint16 first, uint16 last) external {
        if (_msgSender() != owner()) _requireAgent();
        require(first <= last, NoSlots(first, last));
        Policy memory policy_ = _policies[token];
        emit SlotsCancelled(token, day, first, last);
        uint256 start = uint256(nonceOf(policy_.id, day, first));
        uint256 end = uint256(nonceOf(policy_.id, day, last));
        if (policy_.rail == Rail.Permit2) {
            _cancelInPermit2(start, end);
        } else if (policy_.rail == Rail.Eip3009) {
            _cancelInToken(token, start, end);
        } else {
            revert WrongRail(policy_.rail);
        }
    }

    /// @notice Allow one ReceiveWithAuthorization with a nonce that others dictate, as escrows and channels do. It
    /// counts against the day's `reserveCap` and is good until the day ends.
    function reserve(
        address token,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce
    ) external returns (bytes32 digest) {
        _requireAgent();
        Policy memory policy_ = _policyInForce(token, Rail.Eip3009);
        uint24 today = _today();
        require(validBefore < _startOf(today + 1), OutsideToday(validBefore));
        _use(token, value, policy_.reserveCap);
        Messages.Payment memory payment;
        (payment.to, payment.value) = (uint160(to), value);
        (payment.validAfter, payment.validBefore) = (validAfter, validBefore);
        bytes32 message = Messages.hashAuthorization(Messages.RECEIVE_TYPEHASH, address(this), payment, nonce);
        digest = Messages.digest(_domains[token], message);
        _reservations[digest] = Reservation(token, today);
        emit Reserved(token, to, value, nonce, digest);
    }

    /// @notice Fill the agent's own account up to unit × slots, and by no more than that a day. Anybody may call.
    function drip(address token) external returns (uint256 value) {
        Policy memory policy_ = _policyInForce(token, Rail.Drip);
        address to = agent;
        require(to != address(0), NotAgent(to));
        uint256 limit = uint256(policy_.unit) * policy_.slots;
        uint256 room = Math.saturatingSub(limit, Math.max(IERC20(token).balanceOf(to), _usedToday(token)));
        value = Math.min(room, IERC20(token).balanceOf(address(this)));
        if (value == 0) return 0;
        _use(token, value, limit);
        emit Dripped(token, to, value);
        IERC20(token).safeTransfer(to, value);
    }

    /// @notice ERC-1271: whether the agent may make this payment. Never reverts, and never agrees to 65 bytes, which
    /// senders would take for the signature of an account.
    function isValidSignature(bytes32 hash, bytes calldata signature) external view returns (bytes4) {
        if (hash == 0) return REFUSED;
        if (hash == _cancelling) return IERC1271.isValidSignature.selector;
        bool allowed = false;
        if (signature.length == SLOT_SIGNATURE_LENGTH) {
            Messages.Payment memory payment = abi.decode(signature[66:], (Messages.Payment));
            allowed = _digestOfSlot(uint8(signature[0]), payment) == hash;
        } else if (signature.length == RESERVED_SIGNATURE_LENGTH) {
            allowed = uint8(signature[0]) == KIND_RESERVED && _isReserved(hash);
        }
        bool agreed = allowed && _isApproved(hash, signature[1:66]);
        return agreed ? IERC1271.isValidSignature.selector : REFUSED;
    }

    /// @notice The policy of `token`, in force from `fromDay` on.
    function policy(address token) external view returns (Policy memory) {
        return _policies[token];
    }

    /// @notice What the agent may at most move of `token` on `day`, before what was moved already: only the token or
    /// Permit2 know which slots are burned.
    function spendable(address token, uint24 day) external view returns (uint256) {
        Policy memory policy_ = _policies[token];
        if (agent == address(0) || policy_.rail == Rail.None || day < policy_.fromDay) return 0;
        uint256 limit = uint256(policy_.unit) * policy_.slots;
        uint256 used = day == _used[token].day ? _used[token].value : 0;
        if (policy_.rail == Rail.Drip) return limit - used;
        return policy_.rail == Rail.Eip3009 ? limit + policy_.reserveCap - used : limit;
    }

    /// @notice The nonce of one slot: unique in token id, day and slot. 256 slots in a row share a word of Permit2.
    function nonceOf(uint16 id, uint24 day, uint16 slot) public pure returns (bytes32) {
        return bytes32((NONCE_TAG << 56) | (uint256(id) << 40) | (uint256(day) << 16) | slot);
    }

    function supportsInterface(bytes4 interfaceId) public view override returns (bool) {
        return interfaceId == type(IERC1271).interfaceId || super.supportsInterface(interfaceId);
    }

    /// @notice Not possible: what the wallet holds would be lost.
    function renounceOwnership() public view override onlyOwner {
        revert OwnableInvalidOwner(address(0));
    }

    /// @dev The digest of `payment`, or zero, which the wallet never agrees to, when the policy forbids it.
    function _digestOfSlot(uint8 kind, Messages.Payment memory payment) private view returns (bytes32) {
        address token = address(uint160(payment.token));
        Policy memory policy_ = _policies[token];
        if (payment.day < policy_.fromDay || payment.day > type(uint24).max) return 0;
        if (payment.slot >= policy_.slots || payment.value > policy_.unit) return 0;
        if (payment.validAfter < _startOf(payment.day)) return 0;
        if (payment.validBefore >= _startOf(payment.day + 1)) return 0;
        bytes32 nonce = nonceOf(policy_.id, uint24(payment.day), uint16(payment.slot));
        if (policy_.rail == Rail.Eip3009) return _digestForToken(kind, token, payment, nonce);
        if (policy_.rail == Rail.Permit2) return _digestForPermit2(kind, payment, nonce);
        return 0;
    }

    function _digestForToken(
        uint8 kind,
        address token,
        Messages.Payment memory payment,
        bytes32 nonce
    ) private view returns (bytes32) {
        bytes32 typeHash;
        if (kind == KIND_TRANSFER) typeHash = Messages.TRANSFER_TYPEHASH;
        else if (kind == KIND_RECEIVE) typeHash = Messages.RECEIVE_TYPEHASH;
        else return 0;
        bytes32 message = Messages.hashAuthorization(typeHash, address(this), payment, nonce);
        return Messages.digest(_domains[token], message);
    }

    function _digestForPermit2(
        uint8 kind,
        Messages.Payment memory payment,
        bytes32 nonce
    ) private view returns (bytes32) {
        bytes32 message;
        if (kind == KIND_EXACT) message = Messages.hashExact(payment, nonce, EXACT_PROXY);
        else if (kind == KIND_UPTO) message = Messages.hashUpto(payment, nonce, UPTO_PROXY);
        else return 0;
        return Messages.digest(Messages.permit2Domain(address(PERMIT2)), message);
    }

    function _isReserved(bytes32 hash) private view returns (bool) {
        Reservation memory reservation = _reservations[hash];
        Policy memory policy_ = _policies[reservation.token];
        uint24 today = _today();
        return reservation.day == today && policy_.rail == Rail.Eip3009 && policy_.fromDay <= today;
    }

    /// @dev Over the wallet's own domain: a Permit2 message does not name its owner, so a signature of the message
    /// itself would serve every wallet of this agent.
    function _isApproved(bytes32 hash, bytes calldata approval) private view returns (bool) {
        bytes32 digest = _hashTypedDataV4(keccak256(abi.encode(APPROVE_TYPEHASH, hash)));
        (address signer, ECDSA.RecoverError failure, ) = ECDSA.tryRecoverCalldata(digest, approval);
        return failure == ECDSA.RecoverError.NoError && signer == agent;
    }

    function _cancelInPermit2(uint256 start, uint256 end) private {
        for (uint256 word = start >> 8; word <= end >> 8; ++word) {
            uint256 from = word == start >> 8 ? start & 0xff : 0;
            uint256 to = word == end >> 8 ? end & 0xff : 255;
            PERMIT2.invalidateUnorderedNonces(word, (type(uint256).max >> (255 - to + from)) << from);
        }
    }

    function _cancelInToken(address token, uint256 start, uint256 end) private {
        for (uint256 nonce = start; nonce <= end; ++nonce) {
            if (IERC3009(token).authorizationState(address(this), bytes32(nonce))) continue;
            _cancelling = Messages.digest(_domains[token], Messages.hashCancel(address(this), bytes32(nonce)));
            IERC3009(token).cancelAuthorization(address(this), bytes32(nonce), "");
        }
        _cancelling = 0;
    }

    function _policyInForce(address token, Rail rail) private view returns (Policy memory policy_) {
        policy_ = _policies[token];
        require(policy_.rail == rail, WrongRail(policy_.rail));
        require(policy_.fromDay <= _today(), PolicyPending(policy_.fromDay));
    }

    function _use(address token, uint256 value, uint256 cap) private {
        uint256 used = _usedToday(token);
        require(value <= cap && used <= cap - value, OverBudget(used, cap));
        _used[token] = Used(_today(), (used + value).toUint128());
    }

    function _usedToday(address token) private view returns (uint256) {
        Used memory used = _used[token];
        return used.day == _today() ? used.value : 0;
    }

    /// @dev The token's EIP-712 domain, built here with the token's own address in it, so that a token that lies
    /// cannot borrow the domain of another one. `DOMAIN_SEPARATOR` must agree.
    function _domainOf(address token) private view returns (bytes32 domain) {
        domain = Messages.tokenDomain(token);
        require(domain == IERC3009(token).DOMAIN_SEPARATOR(), UnknownDomain(token));
    }

    function _requireAgent() private view {
        address caller = _msgSender();
        require(caller == agent && caller != address(0), NotAgent(caller));
    }

    function _today() private view returns (uint24) {
        return uint24(block.timestamp / 1 days);
    }

    function _startOf(uint256 day) private pure returns (uint256) {
        return day * 1 days;
    }

    function _msgSender() internal view override(Context, ERC2771Context) returns (address) {
        return ERC2771Context._msgSender();
    }

    function _msgData() internal view override(Context, ERC2771Context) returns (bytes calldata) {
        return ERC2771Context._msgData();
    }

    function _contextSuffixLength() internal view override(Context, ERC2771Context) returns (uint256) {
        return ERC2771Context._contextSuffixLength();
    }
}
