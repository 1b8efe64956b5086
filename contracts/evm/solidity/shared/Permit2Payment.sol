// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {ReentrancyGuard} from "@openzeppelin/contracts/utils/ReentrancyGuard.sol";

/// @notice The part of Permit2 that moves tokens by one signature with a witness.
interface IPermit2 {
    struct TokenPermissions {
        address token;
        uint256 amount;
    }

    struct PermitTransferFrom {
        TokenPermissions permitted;
        uint256 nonce;
        uint256 deadline;
    }

    struct SignatureTransferDetails {
        address to;
        uint256 requestedAmount;
    }

    function permitWitnessTransferFrom(
        PermitTransferFrom calldata permit,
        SignatureTransferDetails calldata transferDetails,
        address owner,
        bytes32 witness,
        string calldata witnessTypeString,
        bytes calldata signature
    ) external;

    function invalidateUnorderedNonces(uint256 wordPos, uint256 mask) external;

    function nonceBitmap(address owner, uint256 wordPos) external view returns (uint256);
}

/// @title What both x402 Permit2 proxies do: move tokens to where the payer's witness says, from its day on
/// @notice Compatible re-implementation for tests, made from the published interface; not the audited bytecode.
/// @dev Nothing is set at construction that matters, so the runtime code works wherever a local chain puts it.
abstract contract Permit2Payment is ReentrancyGuard {
    struct EIP2612Permit {
        uint256 value;
        uint256 deadline;
        bytes32 r;
        bytes32 s;
        uint8 v;
    }

    IPermit2 public constant PERMIT2 = IPermit2(0x000000000022D473030F116dDEE9F6B43aC78BA3);

    event Settled();
    event SettledWithPermit();
    event EIP2612PermitFailed(address indexed token, address indexed owner, bytes reason);

    error InvalidAmount();
    error InvalidOwner();
    error InvalidDestination();
    error PaymentTooEarly();
    error Permit2612AmountMismatch();

    /// @dev The caller has bound `to` and `validAfter` into `witnessHash`, so the payer's signature covers them.
    function _move(
        IPermit2.PermitTransferFrom calldata permit,
        uint256 amount,
        address owner,
        address to,
        uint256 validAfter,
        bytes32 witnessHash,
        string memory witnessTypeString,
        bytes calldata signature
    ) internal {
        require(amount != 0, InvalidAmount());
        require(owner != address(0), InvalidOwner());
        require(to != address(0), InvalidDestination());
        require(block.timestamp >= validAfter, PaymentTooEarly());
        PERMIT2.permitWitnessTransferFrom(
            permit,
            IPermit2.SignatureTransferDetails(to, amount),
            owner,
            witnessHash,
            witnessTypeString,
            signature
        );
    }

    /// @dev A permit that fails is reported and not fatal: somebody may have submitted it before us.
    function _approvePermit2(
        EIP2612Permit calldata permit2612,
        IPermit2.TokenPermissions calldata permitted,
        address owner
    ) internal {
        require(permit2612.value == permitted.amount, Permit2612AmountMismatch());
        try
            IERC20Permit(permitted.token).permit(
                owner,
                address(PERMIT2),
                permit2612.value,
                permit2612.deadline,
                permit2612.v,
                permit2612.r,
                permit2612.s
            )
        {} catch (bytes memory reason) {
            emit EIP2612PermitFailed(permitted.token, owner, reason);
        }
    }
}
