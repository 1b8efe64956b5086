// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AgentWallet} from "../src/AgentWallet.sol";
import {Plain18} from "../src/Plain18.sol";
import {TestUSD} from "../src/TestUSD.sol";
import {X402ExactPermit2Proxy} from "../src/X402ExactPermit2Proxy.sol";
import {X402UptoPermit2Proxy} from "../src/X402UptoPermit2Proxy.sol";
import {Messages} from "../src/shared/Messages.sol";
import {IPermit2} from "../src/shared/Permit2Payment.sol";

/// @notice The part of forge's cheat codes that these tests use.
interface Vm {
    function addr(uint256 key) external pure returns (address);
    function assume(bool condition) external pure;
    function deal(address account, uint256 wei_) external;
    function etch(address target, bytes calldata code) external;
    function expectPartialRevert(bytes4 selector) external;
    function expectRevert() external;
    function parseBytes(string calldata text) external pure returns (bytes memory);
    function prank(address sender) external;
    function readFile(string calldata path) external view returns (string memory);
    function sign(uint256 key, bytes32 digest) external pure returns (uint8 v, bytes32 r, bytes32 s);
    function warp(uint256 timestamp) external;
}

interface IAllowancePermit2 is IPermit2 {
    function DOMAIN_SEPARATOR() external view returns (bytes32);
}

/// @notice A wallet with three tokens and an adversary who holds its agent's key.
abstract contract Base {
    Vm internal constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));
    IAllowancePermit2 internal constant PERMIT2 = IAllowancePermit2(0x000000000022D473030F116dDEE9F6B43aC78BA3);
    X402ExactPermit2Proxy internal constant EXACT =
        X402ExactPermit2Proxy(0x402085c248EeA27D92E8b30b2C58ed07f9E20001);
    X402UptoPermit2Proxy internal constant UPTO =
        X402UptoPermit2Proxy(0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002);

    uint256 internal constant AGENT_KEY = 0xA6E47;
    uint96 internal constant UNIT = 10_000;
    uint16 internal constant SLOTS = 5;
    uint96 internal constant RESERVE_CAP = 25_000;
    uint256 internal constant FUNDS = 1e24;
    uint8 internal constant TRANSFER = 1;
    uint8 internal constant RECEIVE = 2;
    uint8 internal constant EXACT_KIND = 3;
    uint8 internal constant UPTO_KIND = 4;
    uint8 internal constant RESERVED = 5;
    bytes4 internal constant MAGIC = 0x1626ba7e;

    address internal immutable AGENT = vm.addr(AGENT_KEY);
    address internal constant OWNER = address(0x0e4);
    address internal constant FORWARDER = address(0xf04);
    address internal constant PAYEE = address(0xbee);

    AgentWallet internal wallet;
    TestUSD internal usd;
    TestUSD internal unlisted;
    Plain18 internal plain;
    Plain18 internal dripped;

    function _deploy() internal {
        vm.warp(20_000 days + 12 hours);
        vm.etch(address(PERMIT2), vm.parseBytes(vm.readFile("permit2.hex")));
        vm.etch(address(EXACT), address(new X402ExactPermit2Proxy()).code);
        vm.etch(address(UPTO), address(new X402UptoPermit2Proxy()).code);
        usd = new TestUSD("USDC", "USDC", "2");
        unlisted = new TestUSD("Other Dollar", "OTHER", "2");
        plain = new Plain18("Plain Dollar", "PLAIN");
        dripped = new Plain18("Dripped Dollar", "DRIP");
        wallet = _newWallet();
    }

    function _newWallet() internal returns (AgentWallet made) {
        made = new AgentWallet(FORWARDER, OWNER, AGENT, PERMIT2, address(EXACT), address(UPTO));
        usd.mint(address(made), FUNDS);
        unlisted.mint(address(made), FUNDS);
        plain.mint(address(made), FUNDS);
        dripped.mint(address(made), FUNDS);
        _approvePermit2(made, address(plain));
        _approvePermit2(made, address(usd));
        _approvePermit2(made, address(unlisted));
        vm.deal(address(made), 1 ether);
        _setPolicy(made, address(usd), AgentWallet.Rail.Eip3009, UNIT, SLOTS, RESERVE_CAP);
        _setPolicy(made, address(plain), AgentWallet.Rail.Permit2, UNIT, SLOTS, RESERVE_CAP);
        _setPolicy(made, address(dripped), AgentWallet.Rail.Drip, UNIT, SLOTS, 0);
    }

    function _approvePermit2(AgentWallet made, address token) private {
        bytes memory data = abi.encodeWithSignature("approve(address,uint256)", PERMIT2, type(uint256).max);
        vm.prank(OWNER);
        made.execute(token, 0, data);
    }

    function _setPolicy(
        AgentWallet made,
        address token,
        AgentWallet.Rail rail,
        uint96 unit,
        uint16 slots,
        uint96 reserveCap
    ) internal {
        vm.prank(OWNER);
        made.setPolicy(token, rail, unit, slots, reserveCap);
    }

    function _today() internal view returns (uint24) {
        return uint24(block.timestamp / 1 days);
    }

    /// @dev A payment of `slot` today, valid as long as the day allows.
    function _payment(address token, uint256 slot, uint256 value) internal view returns (Messages.Payment memory) {
        uint256 day = _today();
        return
            Messages.Payment({
                token: uint160(token),
                to: uint160(PAYEE),
                value: value,
                validAfter: day * 1 days,
                validBefore: (day + 1) * 1 days - 1,
                day: day,
                slot: slot,
                facilitator: 0
            });
    }

    /// @dev The nonce of a payment's slot as arithmetic gives it, also for numbers that fit no slot.
    function _nonce(address token, Messages.Payment memory payment) internal view returns (bytes32) {
        uint256 base = uint256(wallet.nonceOf(wallet.policy(token).id, 0, 0));
        unchecked {
            return bytes32(base + (payment.day << 16) + payment.slot);
        }
    }

    function _digest(
        uint8 kind,
        Messages.Payment memory payment,
        bytes32 nonce
    ) internal view returns (bytes32) {
        if (kind == EXACT_KIND) {
            return Messages.digest(PERMIT2.DOMAIN_SEPARATOR(), Messages.hashExact(payment, nonce, address(EXACT)));
        }
        if (kind == UPTO_KIND) {
            return Messages.digest(PERMIT2.DOMAIN_SEPARATOR(), Messages.hashUpto(payment, nonce, address(UPTO)));
        }
        bytes32 typeHash = kind == TRANSFER ? Messages.TRANSFER_TYPEHASH : Messages.RECEIVE_TYPEHASH;
        bytes32 domain = TestUSD(address(uint160(payment.token))).DOMAIN_SEPARATOR();
        return Messages.digest(domain, Messages.hashAuthorization(typeHash, address(wallet), payment, nonce));
    }

    function _ecdsa(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    /// @dev The agent's signature of `Approve(digest)` in the domain of `made`.
    function _approval(AgentWallet made, bytes32 digest) internal view returns (bytes memory) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("AgentWallet"),
                keccak256("1"),
                block.chainid,
                address(made)
            )
        );
        bytes32 message = keccak256(abi.encode(keccak256("Approve(bytes32 digest)"), digest));
        return _ecdsa(AGENT_KEY, keccak256(abi.encodePacked(hex"1901", domain, message)));
    }

    function _sign(
        uint8 kind,
        Messages.Payment memory payment,
        bytes32 digest
    ) internal view returns (bytes memory) {
        return abi.encodePacked(kind, _approval(wallet, digest), abi.encode(payment));
    }

    /// @dev Whether the wallet agrees to a payment that the agent signed with the nonce of its slot.
    function _agrees(uint8 kind, Messages.Payment memory payment) internal view returns (bool) {
        return _agreesTo(kind, payment, _nonce(address(uint160(payment.token)), payment));
    }

    function _agreesTo(
        uint8 kind,
        Messages.Payment memory payment,
        bytes32 nonce
    ) internal view returns (bool) {
        bytes32 digest = _digest(kind, payment, nonce);
        return _isMagic(digest, _sign(kind, payment, digest));
    }

    function _isMagic(bytes32 digest, bytes memory signature) internal view returns (bool) {
        return wallet.isValidSignature(digest, signature) == MAGIC;
    }

    /// @dev Let the token or Permit2 judge the payment. The caller is the payee of RECEIVE and the facilitator of upto.
    function _settle(
        uint8 kind,
        Messages.Payment memory payment,
        bytes32 nonce,
        bytes memory signature
    ) internal returns (bool done) {
        address token = address(uint160(payment.token));
        address to = address(uint160(payment.to));
        IPermit2.PermitTransferFrom memory permit = IPermit2.PermitTransferFrom(
            IPermit2.TokenPermissions(token, payment.value),
            uint256(nonce),
            payment.validBefore
        );
        bytes memory data;
        address target;
        if (kind == EXACT_KIND) {
            X402ExactPermit2Proxy.Witness memory witness = X402ExactPermit2Proxy.Witness(to, payment.validAfter);
            (target, data) = (
                address(EXACT),
                abi.encodeCall(EXACT.settle, (permit, address(wallet), witness, signature))
            );
        } else if (kind == UPTO_KIND) {
            address facilitator = address(uint160(payment.facilitator));
            X402UptoPermit2Proxy.Witness memory witness = X402UptoPermit2Proxy.Witness(
                to,
                facilitator,
                payment.validAfter
            );
            (target, data) = (
                address(UPTO),
                abi.encodeCall(UPTO.settle, (permit, payment.value, address(wallet), witness, signature))
            );
            vm.prank(facilitator);
        } else {
            string memory name = kind == TRANSFER
                ? "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"
                : "receiveWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)";
            (target, data) = (
                token,
                abi.encodeWithSignature(
                    name,
                    wallet,
                    to,
                    payment.value,
                    payment.validAfter,
                    payment.validBefore,
                    nonce,
                    signature
                )
            );
            vm.prank(to);
        }
        (done, ) = target.call(data);
    }

    /// @dev Sign and settle at the slot's own nonce.
    function _pay(uint8 kind, Messages.Payment memory payment) internal returns (bool) {
        bytes32 nonce = _nonce(address(uint160(payment.token)), payment);
        return _settle(kind, payment, nonce, _sign(kind, payment, _digest(kind, payment, nonce)));
    }
}
