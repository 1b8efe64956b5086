// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AgentWallet} from "../src/AgentWallet.sol";
import {Messages} from "../src/shared/Messages.sol";
import {Base} from "./Base.sol";

interface IToken {
    function balanceOf(address account) external view returns (uint256);

    function transfer(address to, uint256 value) external returns (bool);

    function transferFrom(address from, address to, uint256 value) external returns (bool);
}

/// @notice Somebody with the agent's key does what they like, while the owner changes policies and days pass. After each
/// step, what left the wallet that day is held against the policy that was in force when the day's spending began.
contract Adversary is Base {
    struct Terms {
        AgentWallet.Rail rail;
        uint256 cap;
        uint16 slots;
        uint96 unit;
        uint24 fromDay;
    }

    uint256 private constant PIECE = 12_000;

    /// @dev What we set, not what the wallet says of it.
    mapping(address token => Terms) private _terms;
    mapping(address token => mapping(uint24 day => uint256)) private _moved;
    mapping(address token => mapping(uint24 day => uint256)) private _bound;
    mapping(address token => uint256) private _held;
    bool public isBroken;

    constructor() {
        _deploy();
        _note(address(usd), AgentWallet.Rail.Eip3009, UNIT, SLOTS, RESERVE_CAP, _today());
        _note(address(plain), AgentWallet.Rail.Permit2, UNIT, SLOTS, 0, _today());
        _note(address(dripped), AgentWallet.Rail.Drip, UNIT, SLOTS, 0, _today());
        for (uint256 index; index < 4; ++index) _held[_token(index)] = FUNDS;
    }

    /// @dev Takes the bound before a step may change the policy, and the sums after it.
    modifier watched() {
        for (uint256 index; index < 4; ++index) _bindToday(_token(index));
        _;
        for (uint256 index; index < 4; ++index) _countToday(_token(index));
        if (address(wallet).balance != 1 ether) isBroken = true;
    }

    function pay(
        uint8 kind,
        uint256 tokenSeed,
        uint256 slot,
        uint256 value,
        uint256 dayAhead,
        uint256 timeSeed
    ) external watched {
        Messages.Payment memory payment = _payment(_token(tokenSeed), slot % (2 * uint256(SLOTS)), value % (3 * UNIT));
        payment.facilitator = uint160(PAYEE);
        payment.day += dayAhead % 3;
        if (timeSeed % 4 == 1) payment.validBefore += 1 days;
        if (timeSeed % 4 == 2) payment.validAfter = 0;
        if (timeSeed % 4 == 3) payment.validBefore += 3 days;
        _attempt(TRANSFER + kind % 4, payment);
    }

    /// @dev The directed step that random numbers do not find: every slot of the day, and some more, at full price.
    function drainEverySlot(uint8 kind, uint256 tokenSeed) external watched {
        address token = _token(tokenSeed);
        uint256 slots = uint256(_terms[token].slots) + 4;
        for (uint256 slot; slot < slots; ++slot) {
            Messages.Payment memory payment = _payment(token, slot, _terms[token].unit);
            payment.facilitator = uint160(PAYEE);
            _attempt(TRANSFER + kind % 4, payment);
        }
    }

    /// @dev Numbers with bits beyond their width, at the nonce that arithmetic makes of them.
    function payOversized(uint8 kind, uint256 tokenSeed, uint256 junk) external watched {
        address token = _token(tokenSeed);
        Messages.Payment memory payment = _payment(token, 0, _terms[token].unit);
        payment.facilitator = uint160(PAYEE);
        payment.slot |= (junk % 8) << 16;
        payment.day |= (junk % 3) << 24;
        _attempt(TRANSFER + kind % 4, payment);
    }

    /// @dev A token without a policy, in the slot of one that has it, with that one named wherever it could be read.
    function payUnlisted(uint8 kind, uint256 listedSeed, uint256 slot) external watched {
        address listed = _token(listedSeed % 2);
        Messages.Payment memory payment = _payment(address(unlisted), slot % SLOTS, 1);
        payment.facilitator = uint160(listed);
        bytes32 nonce = _nonce(listed, payment);
        kind = TRANSFER + kind % 4;
        _settle(kind, payment, nonce, _sign(kind, payment, _digest(kind, payment, nonce)));
    }

    function payAsAnAccount(uint256 tokenSeed, bytes32 nonce, uint256 value, bool approved) external watched {
        Messages.Payment memory payment = _payment(_token(tokenSeed % 2), 0, value % FUNDS);
        uint8 kind = payment.token == uint160(address(usd)) ? TRANSFER : EXACT_KIND;
        bytes32 digest = _digest(kind, payment, nonce);
        _settle(kind, payment, nonce, approved ? _approval(wallet, digest) : _ecdsa(AGENT_KEY, digest));
    }

    function permitOneself(uint256 value) external watched {
        uint256 deadline = block.timestamp;
        bytes32 message = keccak256(
            abi.encode(usd.PERMIT_TYPEHASH(), wallet, AGENT, value, usd.nonces(address(wallet)), deadline)
        );
        bytes32 digest = Messages.digest(usd.DOMAIN_SEPARATOR(), message);
        Messages.Payment memory payment = _payment(address(usd), 0, UNIT);
        try usd.permit(address(wallet), AGENT, value, deadline, _sign(TRANSFER, payment, digest)) {} catch {}
        try usd.permit(address(wallet), AGENT, value, deadline, _approval(wallet, digest)) {} catch {}
        vm.prank(AGENT);
        try usd.transferFrom(address(wallet), AGENT, value) {} catch {}
    }

    function reserveAndPay(uint256 value, bytes32 nonce, uint256 later) external watched {
        Messages.Payment memory payment = _payment(address(usd), 0, value % (2 * uint256(RESERVE_CAP)));
        if (later % 3 == 0) payment.validBefore += 1 days;
        vm.prank(AGENT);
        try
            wallet.reserve(
                address(usd),
                PAYEE,
                payment.value,
                payment.validAfter,
                payment.validBefore,
                nonce
            )
        {} catch {}
        bytes32 digest = _digest(RECEIVE, payment, nonce);
        _settle(RECEIVE, payment, nonce, abi.encodePacked(RESERVED, _approval(wallet, digest)));
    }

    function reserveTheRest(uint256 pieces) external watched {
        for (uint256 index; index <= pieces % 5; ++index) {
            bytes32 nonce = keccak256(abi.encode(block.timestamp, index));
            Messages.Payment memory payment = _payment(address(usd), 0, PIECE);
            vm.prank(AGENT);
            try
                wallet.reserve(
                    address(usd),
                    PAYEE,
                    payment.value,
                    payment.validAfter,
                    payment.validBefore,
                    nonce
                )
            {} catch {}
            bytes32 digest = _digest(RECEIVE, payment, nonce);
            _settle(RECEIVE, payment, nonce, abi.encodePacked(RESERVED, _approval(wallet, digest)));
        }
    }

    function dripAndSpend(uint256 times) external watched {
        for (uint256 index; index <= times % 4; ++index) {
            try wallet.drip(address(dripped)) {} catch {}
            uint256 held = dripped.balanceOf(AGENT);
            vm.prank(AGENT);
            dripped.transfer(PAYEE, held);
        }
    }

    function callAsTheAgent(uint256 what, bool suffixed) external watched {
        bytes[4] memory calls = [
            abi.encodeCall(wallet.execute, (PAYEE, 1 ether, "")),
            abi.encodeCall(wallet.execute, (address(usd), 0, abi.encodeCall(usd.transfer, (AGENT, 1)))),
            abi.encodeCall(wallet.setPolicy, (address(usd), AgentWallet.Rail.Eip3009, type(uint96).max, 9, 9)),
            abi.encodeCall(wallet.cancelSlots, (address(plain), _today(), 0, 1))
        ];
        vm.prank(AGENT);
        bytes memory data = suffixed ? abi.encodePacked(calls[what % 4], OWNER) : calls[what % 4];
        (bool done, ) = address(wallet).call(data);
        if (done && what % 4 != 3) isBroken = true;
    }

    /// @dev One time in four: a change stops the rest of the day, and most days should be spent.
    function ownerSetsPolicy(uint256 tokenSeed, uint8 rail, uint96 unit, uint16 slots, uint96 cap) external watched {
        if (unit % 4 != 0) return;
        address token = _token(tokenSeed % 3);
        // Only the dollar speaks EIP-3009, and only it may change rails.
        AgentWallet.Rail rail_ = token == address(usd) ? AgentWallet.Rail(rail % 4) : _terms[token].rail;
        (unit, slots, cap) = (unit % (4 * UNIT), slots % (3 * SLOTS), cap % (2 * RESERVE_CAP));
        _setPolicy(wallet, token, rail_, unit, slots, cap);
        _note(token, rail_, unit, slots, rail_ == AgentWallet.Rail.Eip3009 ? cap : 0, _today() + 1);
    }

    function ownerFreezesOrNot(bool frozen) external watched {
        address agent = frozen && wallet.agent() == AGENT ? address(0) : AGENT;
        vm.prank(OWNER);
        wallet.setAgent(agent);
    }

    function passTime(uint256 seconds_) external watched {
        vm.warp(block.timestamp + (seconds_ % 24 hours));
    }

    function _attempt(uint8 kind, Messages.Payment memory payment) private {
        if (kind <= RECEIVE && payment.token != uint160(address(usd))) kind = EXACT_KIND;
        bytes32 nonce = _nonce(address(uint160(payment.token)), payment);
        bytes32 digest = _digest(kind, payment, nonce);
        _settle(kind, payment, nonce, _sign(kind, payment, digest));
    }

    function _token(uint256 seed) private view returns (address) {
        return [address(usd), address(plain), address(dripped), address(unlisted)][seed % 4];
    }

    function _note(
        address token,
        AgentWallet.Rail rail,
        uint96 unit,
        uint16 slots,
        uint256 cap,
        uint24 fromDay
    ) private {
        uint256 bound = rail == AgentWallet.Rail.None ? 0 : uint256(unit) * slots + cap;
        _terms[token] = Terms(rail, bound, slots, unit, fromDay);
    }

    /// @dev A day's bound is the policy in force; once that was replaced, what the day moved already is all it moves.
    function _bindToday(address token) private {
        Terms memory terms = _terms[token];
        _bound[token][_today()] = terms.fromDay <= _today() ? terms.cap : _moved[token][_today()];
    }

    function _countToday(address token) private {
        uint256 held = IToken(token).balanceOf(address(wallet));
        _moved[token][_today()] += _held[token] - held;
        _held[token] = held;
        if (_moved[token][_today()] > _bound[token][_today()]) isBroken = true;
    }
}

contract InvariantTest {
    Adversary private _adversary;

    function setUp() public {
        _adversary = new Adversary();
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(_adversary);
    }

    function invariantADayMovesNoMoreThanItsPolicyAllows() public view {
        require(!_adversary.isBroken(), "more left the wallet than the day's policy allows");
    }
}
