// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC5267} from "@openzeppelin/contracts/interfaces/IERC5267.sol";
import {IERC20Metadata} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Metadata.sol";

/// @notice The part of an EIP-3009 token, in the form that asks contracts (bytes signature), that a wallet needs.
interface IERC3009 {
    function cancelAuthorization(address authorizer, bytes32 nonce, bytes calldata signature) external;

    function authorizationState(address authorizer, bytes32 nonce) external view returns (bool);

    // solhint-disable-next-line func-name-mixedcase
    function DOMAIN_SEPARATOR() external view returns (bytes32);

    function version() external view returns (string memory);
}

/// @title The EIP-712 messages of x402 payments: EIP-3009, and Permit2 with the witness of either x402 proxy
library Messages {
    /// @dev One slot's payment as its signature carries it: whole words, so that nothing is cut off before it is hashed
    /// and decoding cannot fail. `validBefore` is Permit2's deadline; `facilitator` is read for `upto` only.
    struct Payment {
        uint256 token;
        uint256 to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        uint256 day;
        uint256 slot;
        uint256 facilitator;
    }

    bytes32 internal constant TRANSFER_TYPEHASH =
        keccak256(
            "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
        );
    bytes32 internal constant RECEIVE_TYPEHASH =
        keccak256(
            "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
        );
    bytes32 internal constant CANCEL_TYPEHASH = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)");
    bytes32 internal constant EXACT_TYPEHASH =
        keccak256(
            "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,Witness witness)TokenPermissions(address token,uint256 amount)Witness(address to,uint256 validAfter)"
        );
    bytes32 internal constant UPTO_TYPEHASH =
        keccak256(
            "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,Witness witness)TokenPermissions(address token,uint256 amount)Witness(address to,address facilitator,uint256 validAfter)"
        );
    bytes32 private constant EXACT_WITNESS_TYPEHASH = keccak256("Witness(address to,uint256 validAfter)");
    bytes32 private constant UPTO_WITNESS_TYPEHASH =
        keccak256("Witness(address to,address facilitator,uint256 validAfter)");
    bytes32 private constant PERMISSIONS_TYPEHASH = keccak256("TokenPermissions(address token,uint256 amount)");
    bytes32 private constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 private constant PERMIT2_DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,uint256 chainId,address verifyingContract)");

    function digest(bytes32 domain, bytes32 message) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", domain, message));
    }

    /// @param typeHash `TRANSFER_TYPEHASH` or `RECEIVE_TYPEHASH`
    function hashAuthorization(
        bytes32 typeHash,
        address from,
        Payment memory payment,
        bytes32 nonce
    ) internal pure returns (bytes32) {
        return
            keccak256(
                abi.encode(
                    typeHash,
                    from,
                    payment.to,
                    payment.value,
                    payment.validAfter,
                    payment.validBefore,
                    nonce
                )
            );
    }

    function hashCancel(address authorizer, bytes32 nonce) internal pure returns (bytes32) {
        return keccak256(abi.encode(CANCEL_TYPEHASH, authorizer, nonce));
    }

    function hashExact(Payment memory payment, bytes32 nonce, address spender) internal pure returns (bytes32) {
        bytes32 witness = keccak256(abi.encode(EXACT_WITNESS_TYPEHASH, payment.to, payment.validAfter));
        return _hashPermit(EXACT_TYPEHASH, payment, nonce, spender, witness);
    }

    function hashUpto(Payment memory payment, bytes32 nonce, address spender) internal pure returns (bytes32) {
        bytes32 witness = keccak256(
            abi.encode(UPTO_WITNESS_TYPEHASH, payment.to, payment.facilitator, payment.validAfter)
        );
        return _hashPermit(UPTO_TYPEHASH, payment, nonce, spender, witness);
    }

    /// @dev Permit2's domain has no version.
    function permit2Domain(address permit2) internal view returns (bytes32) {
        return keccak256(abi.encode(PERMIT2_DOMAIN_TYPEHASH, keccak256("Permit2"), block.chainid, permit2));
    }

    /// @dev From what the token says its name and version are: as USDC does, else as EIP-5267 has it.
    function tokenDomain(address token) internal view returns (bytes32) {
        try IERC3009(token).version() returns (string memory version) {
            return _domain(IERC20Metadata(token).name(), version, token);
        } catch {
            (, string memory name, string memory version, , , , ) = IERC5267(token).eip712Domain();
            return _domain(name, version, token);
        }
    }

    function _domain(string memory name, string memory version, address token) private view returns (bytes32) {
        return
            keccak256(
                abi.encode(DOMAIN_TYPEHASH, keccak256(bytes(name)), keccak256(bytes(version)), block.chainid, token)
            );
    }

    function _hashPermit(
        bytes32 typeHash,
        Payment memory payment,
        bytes32 nonce,
        address spender,
        bytes32 witness
    ) private pure returns (bytes32) {
        bytes32 permitted = keccak256(abi.encode(PERMISSIONS_TYPEHASH, payment.token, payment.value));
        return keccak256(abi.encode(typeHash, permitted, spender, nonce, payment.validBefore, witness));
    }
}
