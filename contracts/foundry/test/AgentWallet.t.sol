// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AgentWallet} from "../src/AgentWallet.sol";
import {AgentWalletFactory} from "../src/AgentWalletFactory.sol";
import {Messages} from "../src/shared/Messages.sol";
import {Base} from "./Base.sol";

/// @notice W1, W2, W6: what a day can move, slot by slot.
contract SlotsTest is Base {
    function setUp() public {
        _deploy();
    }

    function testEverySlotOfTheDayPaysOnceByEitherRail() public {
        for (uint256 slot; slot < SLOTS; ++slot) {
            require(_pay(slot % 2 == 0 ? TRANSFER : RECEIVE, _payment(address(usd), slot, UNIT)), "usd");
            require(_pay(slot % 2 == 0 ? EXACT_KIND : UPTO_KIND, _payment(address(plain), slot, UNIT)), "plain");
        }
        for (uint8 kind = TRANSFER; kind <= UPTO_KIND; ++kind) {
            address token = kind <= RECEIVE ? address(usd) : address(plain);
            require(!_pay(kind, _payment(token, SLOTS - 1, UNIT)), "a slot paid twice");
        }
        require(usd.balanceOf(PAYEE) == uint256(UNIT) * SLOTS, "usd sum");
        require(plain.balanceOf(PAYEE) == uint256(UNIT) * SLOTS, "plain sum");
    }

    /// @dev All numbers a slot can have: the values agreed to add up to unit x slots, to the atom.
    function testSumOverAll65536SlotsIsTheDaysBudget() public view {
        uint256 sum;
        for (uint256 slot; slot <= type(uint16).max; ++slot) sum += this.agreedValue(slot);
        require(sum == uint256(UNIT) * SLOTS, "the slots of a day add up to another sum");
    }

    /// @dev External, so that the memory of one slot is gone before the next.
    function agreedValue(uint256 slot) external view returns (uint256) {
        return _agrees(TRANSFER, _payment(address(usd), slot, UNIT)) ? UNIT : 0;
    }

    function testFuzzASlotPaysAnyValueUpToTheUnit(uint256 value, uint8 kindSeed) public view {
        (uint8 kind, address token) = _rail(kindSeed);
        require(_agrees(kind, _payment(token, 0, value % (uint256(UNIT) + 1))), "within the unit");
        if (value > UNIT) require(!_agrees(kind, _payment(token, 0, value)), "above the unit");
    }

    function testFuzzAPaymentLiesInsideItsDay(uint256 validAfter, uint256 validBefore, uint8 kindSeed) public view {
        (uint8 kind, address token) = _rail(kindSeed);
        Messages.Payment memory payment = _payment(token, 0, UNIT);
        (uint256 start, uint256 end) = (payment.validAfter, payment.validBefore);
        payment.validAfter = start + (validAfter % 3 days) - 1 days;
        payment.validBefore = end + (validBefore % 3 days) - 1 days;
        bool inside = payment.validAfter >= start && payment.validBefore <= end;
        require(_agrees(kind, payment) == inside, "inside its day");
        (payment.validAfter, payment.validBefore) = (validAfter, validBefore);
        inside = validAfter >= start && validBefore <= end;
        require(_agrees(kind, payment) == inside, "anywhere in time");
    }

    function testFuzzAnotherDaysSlotNeedsItsOwnDay(uint256 day) public view {
        Messages.Payment memory payment = _payment(address(usd), 0, UNIT);
        if (day == payment.day) return;
        payment.day = day;
        require(!_agrees(TRANSFER, payment), "a slot of another day, today");
    }

    function testTomorrowsSlotsAreSignedTodayAndPayTomorrow() public {
        vm.warp(block.timestamp + 1 days);
        Messages.Payment memory payment = _payment(address(plain), 0, UNIT);
        vm.warp(block.timestamp - 1 days);
        require(_agrees(EXACT_KIND, payment), "signed ahead");
        require(!_pay(EXACT_KIND, payment), "paid ahead");
        vm.warp(block.timestamp + 1 days);
        require(_pay(EXACT_KIND, payment), "not paid on its day");
    }

    function testFuzzNonceIsInjective(
        uint16 id,
        uint24 day,
        uint16 slot,
        uint16 otherId,
        uint24 otherDay,
        uint16 otherSlot
    ) public view {
        bool same = id == otherId && day == otherDay && slot == otherSlot;
        require((wallet.nonceOf(id, day, slot) == wallet.nonceOf(otherId, otherDay, otherSlot)) == same, "injective");
    }

    /// @dev Bits that the contract would cut off must not open a nonce beside the slots'.
    function testFuzzOversizedNumbersOpenNoOtherNonce(uint256 dayJunk, uint256 slotJunk, uint8 kindSeed) public view {
        (uint8 kind, address token) = _rail(kindSeed);
        Messages.Payment memory payment = _payment(token, 0, UNIT);
        bytes32 own = _nonce(token, payment);
        unchecked {
            payment.slot += slotJunk << 16;
            payment.day += dayJunk << 24;
        }
        bytes32 other = _nonce(token, payment);
        if (other != own) require(!_agreesTo(kind, payment, other), "a nonce that is no slot's");
        payment = _payment(token, 0, UNIT);
        payment.slot |= slotJunk << 16;
        other = _nonce(token, payment);
        if (other != own) require(!_agreesTo(kind, payment, other), "a nonce beyond the slots");
    }

    function testFuzzNoOtherNonceIsAgreedTo(bytes32 nonce, uint256 slot, uint256 extra, uint8 kindSeed) public view {
        (uint8 kind, address token) = _rail(kindSeed);
        Messages.Payment memory payment = _payment(token, slot % SLOTS, UNIT);
        if (kind != UPTO_KIND) payment.facilitator = extra;
        bytes32 own = _nonce(token, payment);
        if (nonce != own) require(!_agreesTo(kind, payment, nonce), "any nonce");
        bytes32 near = own ^ bytes32(uint256(1) << (extra % 256));
        require(!_agreesTo(kind, payment, near), "a nonce one bit away");
    }

    function testFuzzAPolicyChangeStopsTheDayAndHoldsFromTheNext(uint96 unit, uint16 slots) public {
        unit = uint96(unit % 1e9) + 1;
        slots = slots % 1000 + 1;
        require(_pay(TRANSFER, _payment(address(usd), 0, UNIT)), "before");
        _setPolicy(wallet, address(usd), AgentWallet.Rail.Eip3009, unit, slots, 0);
        require(!_agrees(TRANSFER, _payment(address(usd), 1, 1)), "the rest of the day");
        require(wallet.spendable(address(usd), _today()) == 0, "spendable");
        vm.warp(block.timestamp + 1 days);
        require(_agrees(TRANSFER, _payment(address(usd), slots - 1, unit)), "the next day");
        require(!_agrees(TRANSFER, _payment(address(usd), slots, unit)), "beyond the slots");
        require(wallet.spendable(address(usd), _today()) == uint256(unit) * slots, "spendable tomorrow");
    }

    function testARailThatChangesLeavesNoTwoRailsInOneDay() public {
        _setPolicy(wallet, address(usd), AgentWallet.Rail.Permit2, UNIT, SLOTS, 0);
        require(!_agrees(TRANSFER, _payment(address(usd), 0, UNIT)), "old rail, same day");
        require(!_agrees(EXACT_KIND, _payment(address(usd), 0, UNIT)), "new rail, same day");
        vm.warp(block.timestamp + 1 days);
        require(!_agrees(TRANSFER, _payment(address(usd), 0, UNIT)), "old rail, next day");
        require(_agrees(EXACT_KIND, _payment(address(usd), 0, UNIT)), "new rail, next day");
    }

    function testATokenHasOneRail() public view {
        require(!_agrees(EXACT_KIND, _payment(address(usd), 0, UNIT)), "usd by Permit2");
        require(!_agrees(UPTO_KIND, _payment(address(usd), 0, UNIT)), "usd by upto");
        Messages.Payment memory payment = _payment(address(plain), 0, UNIT);
        for (uint8 kind = TRANSFER; kind <= RECEIVE; ++kind) {
            bytes32 typeHash = kind == TRANSFER ? Messages.TRANSFER_TYPEHASH : Messages.RECEIVE_TYPEHASH;
            bytes32 message = Messages.hashAuthorization(
                typeHash,
                address(wallet),
                payment,
                _nonce(address(plain), payment)
            );
            bytes32 digest = Messages.digest(plain.DOMAIN_SEPARATOR(), message);
            require(!_isMagic(digest, _sign(kind, payment, digest)), "plain by EIP-3009");
            digest = Messages.digest(0, message);
            require(!_isMagic(digest, _sign(kind, payment, digest)), "plain in the empty domain");
        }
    }

    function testCancelledSlotsPayNothing() public {
        vm.prank(AGENT);
        wallet.cancelSlots(address(usd), _today(), 1, 3);
        vm.prank(OWNER);
        wallet.cancelSlots(address(plain), _today(), 1, 3);
        for (uint256 slot; slot < SLOTS; ++slot) {
            bool kept = slot == 0 || slot == 4;
            require(_pay(TRANSFER, _payment(address(usd), slot, UNIT)) == kept, "usd");
            require(_pay(EXACT_KIND, _payment(address(plain), slot, UNIT)) == kept, "plain");
        }
    }

    function testFuzzCancellingBurnsTheNamedSlotsAndNoOther(uint16 first, uint16 last) public {
        vm.assume(first <= last && last - first < 2_000);
        vm.prank(OWNER);
        wallet.cancelSlots(address(plain), _today(), first, last);
        uint256 start = first > 300 ? uint256(first) - 300 : 0;
        uint256 end = uint256(last) + 300 > type(uint16).max ? type(uint16).max : uint256(last) + 300;
        for (uint256 slot = start; slot <= end; slot += 7) _requireBurned(slot, slot >= first && slot <= last);
        _requireBurned(first, true);
        _requireBurned(last, true);
        if (first > 0) _requireBurned(first - 1, false);
        if (last < type(uint16).max) _requireBurned(uint256(last) + 1, false);
    }

    function testCancellingPassesOverWhatIsUsedAndLeavesNoRightBehind() public {
        require(_pay(TRANSFER, _payment(address(usd), 1, UNIT)), "pay");
        vm.prank(AGENT);
        wallet.cancelSlots(address(usd), _today(), 0, 4);
        Messages.Payment memory payment = _payment(address(usd), 4, UNIT);
        bytes32 message = Messages.hashCancel(address(wallet), _nonce(address(usd), payment));
        require(!_isMagic(Messages.digest(usd.DOMAIN_SEPARATOR(), message), ""), "still agrees to a cancellation");
        require(!_isMagic(0, ""), "agrees to nothing");
    }

    function testNobodyElseCancels() public {
        vm.expectPartialRevert(AgentWallet.NotAgent.selector);
        wallet.cancelSlots(address(usd), _today(), 0, 1);
    }

    function _requireBurned(uint256 slot, bool burned) private view {
        uint256 nonce = uint256(wallet.nonceOf(wallet.policy(address(plain)).id, _today(), uint16(slot)));
        bool bit = (PERMIT2.nonceBitmap(address(wallet), nonce >> 8) >> (nonce & 0xff)) & 1 == 1;
        require(bit == burned, burned ? "not burned" : "burned beside");
    }

    function _rail(uint8 seed) private view returns (uint8 kind, address token) {
        kind = TRANSFER + seed % 4;
        token = kind <= RECEIVE ? address(usd) : address(plain);
    }
}

/// @notice W1: what is counted by the wallet itself, reserved payments and drips.
contract CountedTest is Base {
    function setUp() public {
        _deploy();
    }

    function testAReservedPaymentIsPaidOnceWithItsOwnNonce() public {
        Messages.Payment memory payment = _payment(address(usd), 0, 20_000);
        require(_reserve(payment, "terms"), "reserve");
        require(_payReserved(payment, "terms"), "pay");
        require(!_payReserved(payment, "terms"), "pay twice");
    }

    function testFuzzReservedPaymentsStayWithinTheDaysCap(uint256[6] memory values) public {
        uint256 sum;
        for (uint256 index; index < values.length; ++index) {
            uint256 value = values[index] % (uint256(RESERVE_CAP) + 2);
            bool fits = sum + value <= RESERVE_CAP;
            require(_reserve(_payment(address(usd), 0, value), bytes32(index)) == fits, "the cap");
            if (fits) sum += value;
        }
        require(!_reserve(_payment(address(usd), 0, type(uint256).max), "most"), "an overflow");
        vm.warp(block.timestamp + 1 days);
        require(_reserve(_payment(address(usd), 0, RESERVE_CAP), "next"), "the next day");
    }

    function testAReservationEndsWithItsDay() public {
        Messages.Payment memory payment = _payment(address(usd), 0, 1);
        payment.validBefore += 1;
        require(!_reserve(payment, "late"), "longer than the day");
        payment.validBefore -= 1;
        require(_reserve(payment, "terms"), "reserve");
        bytes32 digest = _digest(RECEIVE, payment, "terms");
        require(_isMagic(digest, abi.encodePacked(RESERVED, _approval(wallet, digest))), "on its day");
        vm.warp(block.timestamp + 1 days);
        require(!_isMagic(digest, abi.encodePacked(RESERVED, _approval(wallet, digest))), "the day after");
    }

    function testAReservationNeedsTheAgentsSignatureAndAPolicyInForce() public {
        Messages.Payment memory payment = _payment(address(usd), 0, 1);
        require(_reserve(payment, "terms"), "reserve");
        bytes32 digest = _digest(RECEIVE, payment, "terms");
        require(!_isMagic(digest, abi.encodePacked(RESERVED, _ecdsa(AGENT_KEY, digest))), "another message");
        _setPolicy(wallet, address(usd), AgentWallet.Rail.Eip3009, UNIT, SLOTS, RESERVE_CAP);
        require(!_isMagic(digest, abi.encodePacked(RESERVED, _approval(wallet, digest))), "a pending policy");
        require(!_reserve(payment, "more"), "reserving under a pending policy");
    }

    function testReservingNeedsTheAgentAndEip3009() public {
        vm.expectPartialRevert(AgentWallet.NotAgent.selector);
        wallet.reserve(address(usd), PAYEE, 1, 0, block.timestamp, 0);
        require(!_reserve(_payment(address(plain), 0, 1), "terms"), "Permit2");
        require(!_reserve(_payment(address(dripped), 0, 1), "terms"), "drip");
        require(!_reserve(_payment(address(unlisted), 0, 1), "terms"), "unlisted");
    }

    function testFuzzDripsADayStayWithinTheLimit(uint256[8] memory spends) public {
        uint256 limit = uint256(UNIT) * SLOTS;
        uint256 before = dripped.balanceOf(address(wallet));
        for (uint256 index; index < spends.length; ++index) {
            wallet.drip(address(dripped));
            require(dripped.balanceOf(AGENT) <= limit, "more than a day's money at hand");
            uint256 spent = spends[index] % (dripped.balanceOf(AGENT) + 1);
            vm.prank(AGENT);
            dripped.transfer(PAYEE, spent);
        }
        require(before - dripped.balanceOf(address(wallet)) <= limit, "the day's limit");
        vm.warp(block.timestamp + 1 days);
        wallet.drip(address(dripped));
        require(dripped.balanceOf(AGENT) == limit, "filled up the next day");
    }

    function testADripNeedsItsRailAnAgentAndAPolicyInForce() public {
        vm.expectPartialRevert(AgentWallet.WrongRail.selector);
        wallet.drip(address(usd));
        vm.prank(OWNER);
        wallet.setAgent(address(0));
        vm.expectPartialRevert(AgentWallet.NotAgent.selector);
        wallet.drip(address(dripped));
        vm.prank(OWNER);
        wallet.setAgent(AGENT);
        _setPolicy(wallet, address(dripped), AgentWallet.Rail.Drip, UNIT, SLOTS, 0);
        vm.expectPartialRevert(AgentWallet.PolicyPending.selector);
        wallet.drip(address(dripped));
    }

    function _reserve(Messages.Payment memory payment, bytes32 nonce) private returns (bool done) {
        bytes memory data = abi.encodeCall(
            wallet.reserve,
            (
                address(uint160(payment.token)),
                address(uint160(payment.to)),
                payment.value,
                payment.validAfter,
                payment.validBefore,
                nonce
            )
        );
        vm.prank(AGENT);
        (done, ) = address(wallet).call(data);
    }

    function _payReserved(Messages.Payment memory payment, bytes32 nonce) private returns (bool) {
        bytes32 digest = _digest(RECEIVE, payment, nonce);
        return _settle(RECEIVE, payment, nonce, abi.encodePacked(RESERVED, _approval(wallet, digest)));
    }
}

contract FactoryTest is Base {
    function setUp() public {
        _deploy();
    }

    function testFuzzAWalletStandsWhereItsOwnerAgentAndSaltPutIt(address owner, address agent, bytes32 salt) public {
        vm.assume(owner != address(0));
        AgentWalletFactory factory = new AgentWalletFactory(FORWARDER, PERMIT2, address(EXACT), address(UPTO));
        address foretold = factory.addressOf(owner, agent, salt);
        AgentWallet made = AgentWallet(payable(factory.create(owner, agent, salt)));
        require(address(made) == foretold, "elsewhere");
        require(made.owner() == owner && made.agent() == agent, "somebody else's");
        require(made.isTrustedForwarder(FORWARDER) && address(made.PERMIT2()) == address(PERMIT2), "other parts");
        require(factory.create(owner, agent, salt) == foretold, "not twice the same");
        require(factory.addressOf(AGENT, agent, salt) != foretold || owner == AGENT, "another owner's address");
    }
}
