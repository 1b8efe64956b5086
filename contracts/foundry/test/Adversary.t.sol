// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

import {AgentWallet} from "../src/AgentWallet.sol";
import {TestUSD} from "../src/TestUSD.sol";
import {Messages} from "../src/shared/Messages.sol";
import {Base} from "./Base.sol";

/// @notice A token that claims the EIP-712 domain of another one, to have payments signed that move the other.
contract LyingToken {
    TestUSD private immutable VICTIM;

    constructor(TestUSD victim) {
        VICTIM = victim;
    }

    // solhint-disable-next-line func-name-mixedcase
    function DOMAIN_SEPARATOR() external view returns (bytes32) {
        return VICTIM.DOMAIN_SEPARATOR();
    }

    function name() external view returns (string memory) {
        return VICTIM.name();
    }

    function version() external view returns (string memory) {
        return VICTIM.version();
    }
}

/// @notice A dollar that tells its signing domain by EIP-5267 only, as tokens on OpenZeppelin's EIP712 do.
contract ModernUSD is ERC3009 {
    constructor() ERC20("Modern Dollar", "MUSD") EIP712("Modern Dollar", "1") {}

    // solhint-disable-next-line func-name-mixedcase
    function DOMAIN_SEPARATOR() external view returns (bytes32) {
        return _domainSeparatorV4();
    }
}

/// @notice W3, W4, W5, W7: all the other things that somebody with the agent's key, or anybody, may try.
contract AdversaryTest is Base {
    function setUp() public {
        _deploy();
    }

    /// @dev Each message is asked with every kind of signature the wallet knows, and as an account would sign it.
    function _requireRefused(bytes32 digest, string memory what) private view {
        for (uint8 kind = 0; kind <= 8; ++kind) {
            for (uint256 index; index < 3; ++index) {
                address token = [address(usd), address(plain), address(unlisted)][index];
                Messages.Payment memory payment = _payment(token, 0, UNIT);
                payment.facilitator = uint160(PAYEE);
                require(!_isMagic(digest, _sign(kind, payment, digest)), what);
            }
            require(!_isMagic(digest, abi.encodePacked(kind, _approval(wallet, digest))), what);
        }
        require(!_isMagic(digest, _approval(wallet, digest)), what);
        require(!_isMagic(digest, _ecdsa(AGENT_KEY, digest)), what);
        require(!_isMagic(digest, abi.encodePacked(_ecdsa(AGENT_KEY, digest), hex"00")), what);
        require(!_isMagic(digest, ""), what);
    }

    function testAPermitIsRefusedForEveryToken() public view {
        bytes32 message = keccak256(
            abi.encode(usd.PERMIT_TYPEHASH(), wallet, AGENT, uint256(1), usd.nonces(address(wallet)), block.timestamp)
        );
        _requireRefused(Messages.digest(usd.DOMAIN_SEPARATOR(), message), "permit");
        _requireRefused(Messages.digest(plain.DOMAIN_SEPARATOR(), message), "permit of the plain token");
        _requireRefused(Messages.digest(unlisted.DOMAIN_SEPARATOR(), message), "permit of an unlisted token");
    }

    function testPermit2sAllowancesAreRefused() public view {
        bytes32 details = keccak256(
            "PermitDetails(address token,uint160 amount,uint48 expiration,uint48 nonce)"
        );
        details = keccak256(abi.encode(details, address(plain), uint256(1), block.timestamp + 1, uint256(0)));
        bytes32 typeHash = keccak256(
            "PermitSingle(PermitDetails details,address spender,uint256 sigDeadline)PermitDetails(address token,uint160 amount,uint48 expiration,uint48 nonce)"
        );
        _requireRefusedByPermit2(keccak256(abi.encode(typeHash, details, AGENT, block.timestamp)), "PermitSingle");
        typeHash = keccak256(
            "PermitBatch(PermitDetails[] details,address spender,uint256 sigDeadline)PermitDetails(address token,uint160 amount,uint48 expiration,uint48 nonce)"
        );
        bytes32 list = keccak256(abi.encode(details));
        _requireRefusedByPermit2(keccak256(abi.encode(typeHash, list, AGENT, block.timestamp)), "PermitBatch");
    }

    function testPermit2TransfersWithoutOurWitnessAreRefused() public view {
        Messages.Payment memory payment = _payment(address(plain), 0, UNIT);
        uint256 nonce = uint256(_nonce(address(plain), payment));
        bytes32 permissions = keccak256("TokenPermissions(address token,uint256 amount)");
        permissions = keccak256(abi.encode(permissions, address(plain), uint256(UNIT)));
        bytes32 typeHash = keccak256(
            "PermitTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline)TokenPermissions(address token,uint256 amount)"
        );
        bytes32 message = keccak256(abi.encode(typeHash, permissions, AGENT, nonce, payment.validBefore));
        _requireRefusedByPermit2(message, "PermitTransferFrom");
        message = keccak256(abi.encode(typeHash, permissions, address(EXACT), nonce, payment.validBefore));
        _requireRefusedByPermit2(message, "PermitTransferFrom of the proxy");
        typeHash = keccak256(
            "PermitBatchTransferFrom(TokenPermissions[] permitted,address spender,uint256 nonce,uint256 deadline)TokenPermissions(address token,uint256 amount)"
        );
        bytes32 list = keccak256(abi.encode(permissions));
        message = keccak256(abi.encode(typeHash, list, address(EXACT), nonce, payment.validBefore));
        _requireRefusedByPermit2(message, "PermitBatchTransferFrom");
    }

    function testAnotherSpenderIsRefused() public view {
        Messages.Payment memory payment = _payment(address(plain), 0, UNIT);
        payment.facilitator = uint160(PAYEE);
        bytes32 nonce = _nonce(address(plain), payment);
        _requireRefusedByPermit2(Messages.hashExact(payment, nonce, AGENT), "exact");
        _requireRefusedByPermit2(Messages.hashExact(payment, nonce, address(UPTO)), "exact witness, upto proxy");
        _requireRefusedByPermit2(Messages.hashUpto(payment, nonce, AGENT), "upto");
        _requireRefusedByPermit2(Messages.hashUpto(payment, nonce, address(EXACT)), "upto witness, exact proxy");
    }

    function testCancellationsPersonalMessagesAndTransactionsAreRefused() public view {
        bytes32 message = Messages.hashCancel(address(wallet), wallet.nonceOf(1, _today(), 0));
        _requireRefused(Messages.digest(usd.DOMAIN_SEPARATOR(), message), "cancel");
        _requireRefused(keccak256("\x19Ethereum Signed Message:\n5hello"), "personal message");
        _requireRefused(keccak256("any hash"), "any hash");
        _requireRefused(0, "zero");
    }

    function testFuzzNoHashIsAgreedToThatIsNoPayment(bytes32 digest) public view {
        _requireRefused(digest, "any hash");
    }

    function testFuzzAnUnlistedTokenIsRefusedWhateverElseIsSaid(uint8 kindSeed, uint256 slot, uint256 value) public {
        uint8 kind = TRANSFER + kindSeed % 4;
        address listed = kind <= RECEIVE ? address(usd) : address(plain);
        Messages.Payment memory payment = _payment(address(unlisted), slot % SLOTS, value % UNIT);
        payment.facilitator = uint160(listed);
        bytes32 nonce = _nonce(listed, payment);
        require(!_agreesTo(kind, payment, nonce), "agreed");
        bytes memory signature = _sign(kind, payment, _digest(kind, payment, nonce));
        require(!_settle(kind, payment, nonce, signature), "paid");
        require(unlisted.balanceOf(address(wallet)) == FUNDS, "moved");
    }

    function testATokenThatClaimsAnothersDomainIsNotListed() public {
        LyingToken liar = new LyingToken(unlisted);
        vm.expectPartialRevert(AgentWallet.UnknownDomain.selector);
        _setPolicyOf(address(liar));
        Messages.Payment memory payment = _payment(address(unlisted), 0, UNIT);
        bytes32 digest = _digest(TRANSFER, payment, wallet.nonceOf(4, _today(), 0));
        payment.token = uint160(address(liar));
        require(!_isMagic(digest, _sign(TRANSFER, payment, digest)), "the other token's money");
    }

    function testATokenThatTellsItsDomainByEip5267IsListed() public {
        address modern = address(new ModernUSD());
        _setPolicyOf(modern);
        require(_agrees(TRANSFER, _payment(modern, 0, UNIT)), "its own domain");
    }

    function testATokenWithoutADomainIsNotListedForEip3009() public {
        vm.expectRevert();
        _setPolicyOf(address(0xdead));
    }

    function testASecondWalletOfTheSameAgentIsNotBoundByTheFirst() public {
        AgentWallet second = _newWallet();
        for (uint8 kind = EXACT_KIND; kind <= UPTO_KIND; ++kind) {
            Messages.Payment memory payment = _payment(address(plain), kind, UNIT);
            bytes32 digest = _digest(kind, payment, _nonce(address(plain), payment));
            bytes memory signature = _sign(kind, payment, digest);
            require(_isMagic(digest, signature), "its own");
            require(second.isValidSignature(digest, signature) != MAGIC, "replayed");
        }
    }

    function testOnlyTheAgentsApprovalCounts() public {
        Messages.Payment memory payment = _payment(address(usd), 0, UNIT);
        bytes32 digest = _digest(TRANSFER, payment, _nonce(address(usd), payment));
        bytes memory own = _sign(TRANSFER, payment, digest);
        bytes memory raw = abi.encodePacked(TRANSFER, _ecdsa(AGENT_KEY, digest), abi.encode(payment));
        bytes memory other = abi.encodePacked(TRANSFER, _ecdsa(0xbad, digest), abi.encode(payment));
        bytes memory none = abi.encodePacked(TRANSFER, new bytes(65), abi.encode(payment));
        require(_isMagic(digest, own), "the agent's");
        require(!_isMagic(digest, raw), "the message itself");
        require(!_isMagic(digest, other), "another key");
        require(!_isMagic(digest, none), "no signature");
        vm.prank(OWNER);
        wallet.setAgent(address(0));
        require(!_isMagic(digest, own), "frozen");
        require(!_isMagic(digest, none), "frozen, and no signature");
        require(!_pay(TRANSFER, payment), "paid while frozen");
    }

    function testFuzzSixtyFiveBytesAreNeverEnough(bytes32 digest, uint256 slot) public view {
        Messages.Payment memory payment = _payment(address(usd), slot % SLOTS, UNIT);
        bytes32 good = _digest(TRANSFER, payment, _nonce(address(usd), payment));
        require(!_isMagic(good, _ecdsa(AGENT_KEY, good)), "the message");
        require(!_isMagic(good, _approval(wallet, good)), "the approval");
        require(!_isMagic(digest, _ecdsa(AGENT_KEY, digest)), "any message");
        require(!_isMagic(digest, _approval(wallet, digest)), "any approval");
    }

    function testFuzzAskingNeverReverts(bytes32 digest, bytes calldata signature) public view {
        require(wallet.isValidSignature(digest, signature) != MAGIC, "agreed");
    }

    function testFuzzAskingWithFullLengthNeverReverts(
        bytes32 digest,
        uint8 kind,
        bytes32[10] calldata words,
        bool listed
    ) public view {
        Messages.Payment memory payment = abi.decode(abi.encode(words), (Messages.Payment));
        if (listed) payment.token = uint160(kind % 2 == 0 ? address(usd) : address(plain));
        bytes memory approval = abi.encodePacked(words[8], words[9], kind);
        require(!_isMagic(digest, abi.encodePacked(kind, approval, abi.encode(payment))), "agreed");
        require(!_isMagic(digest, abi.encodePacked(kind, approval)), "agreed to a reservation");
    }

    function testTheAgentIsNotTheOwner() public {
        bytes[] memory calls = new bytes[](5);
        calls[0] = abi.encodeCall(wallet.execute, (PAYEE, 1 ether, ""));
        calls[1] = abi.encodeCall(wallet.execute, (address(usd), 0, abi.encodeCall(usd.transfer, (AGENT, 1))));
        calls[2] = abi.encodeCall(wallet.setPolicy, (address(usd), AgentWallet.Rail.Eip3009, 1, 1, 1));
        calls[3] = abi.encodeCall(wallet.setAgent, (PAYEE));
        calls[4] = abi.encodeCall(wallet.transferOwnership, (AGENT));
        for (uint256 index; index < calls.length; ++index) {
            for (uint256 way; way < 3; ++way) {
                // Plainly; with the owner's address behind it, which only the forwarder may put there; by the forwarder.
                bytes memory data = way == 0 ? calls[index] : abi.encodePacked(calls[index], way == 1 ? OWNER : AGENT);
                vm.prank(way == 2 ? FORWARDER : AGENT);
                (bool done, ) = address(wallet).call(data);
                require(!done, "the agent acted as the owner");
            }
        }
        require(address(wallet).balance == 1 ether, "ether left");
    }

    function testTheForwarderSpeaksForTheOwnerItNames() public {
        bytes memory data = abi.encodePacked(abi.encodeCall(wallet.setAgent, (PAYEE)), OWNER);
        vm.prank(FORWARDER);
        (bool done, ) = address(wallet).call(data);
        require(done && wallet.agent() == PAYEE, "the owner, gasless");
    }

    function testFuzzOnlyTheOwnerIsTheOwner(address caller, bytes20 suffix) public {
        vm.assume(caller != OWNER && caller != FORWARDER);
        bytes memory data = abi.encodePacked(abi.encodeCall(wallet.setAgent, (caller)), suffix);
        vm.prank(caller);
        (bool done, ) = address(wallet).call(data);
        require(!done && wallet.agent() == AGENT, "somebody else");
    }

    function testOwnershipMovesInTwoStepsAndIsNeverLost() public {
        vm.prank(OWNER);
        wallet.transferOwnership(PAYEE);
        require(wallet.owner() == OWNER, "before it was accepted");
        vm.prank(PAYEE);
        wallet.acceptOwnership();
        require(wallet.owner() == PAYEE, "after");
        vm.prank(PAYEE);
        vm.expectRevert();
        wallet.renounceOwnership();
    }

    function testTheOwnerTakesEverythingBack() public {
        vm.prank(OWNER);
        wallet.execute(address(usd), 0, abi.encodeCall(usd.transfer, (OWNER, FUNDS)));
        vm.prank(OWNER);
        wallet.execute(PAYEE, 1 ether, "");
        require(usd.balanceOf(OWNER) == FUNDS && PAYEE.balance == 1 ether, "all of it");
        vm.prank(OWNER);
        vm.expectPartialRevert(AgentWallet.CallFailed.selector);
        wallet.execute(address(usd), 0, abi.encodeCall(usd.transfer, (OWNER, 1)));
    }

    function _requireRefusedByPermit2(bytes32 message, string memory what) private view {
        _requireRefused(Messages.digest(PERMIT2.DOMAIN_SEPARATOR(), message), what);
    }

    function _setPolicyOf(address token) private {
        vm.prank(OWNER);
        wallet.setPolicy(token, AgentWallet.Rail.Eip3009, UNIT, SLOTS, 0);
    }
}
