// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// @title The smallest contract that can pay: it agrees to whatever its owner signed
/// @notice For tests only. It has no spending limit, and its owner's signature is not bound to this wallet.
contract TestWallet is IERC1271 {
    address public immutable owner;

    constructor(address owner_) {
        owner = owner_;
    }

    /// @dev The owner's signature may be followed by further bytes, as smart wallets' signatures are longer than 65.
    function isValidSignature(bytes32 hash, bytes calldata signature) external view returns (bytes4) {
        if (signature.length < 65) return 0xffffffff;
        (address signer, ECDSA.RecoverError failure, ) = ECDSA.tryRecoverCalldata(hash, signature[:65]);
        bool agreed = failure == ECDSA.RecoverError.NoError && signer == owner;
        return agreed ? IERC1271.isValidSignature.selector : bytes4(0xffffffff);
    }
}
