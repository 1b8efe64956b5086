// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Create2} from "@openzeppelin/contracts/utils/Create2.sol";

import {AgentWallet} from "./AgentWallet.sol";
import {IPermit2} from "./shared/Permit2Payment.sol";

/// @title Puts each AgentWallet at an address that follows from its owner, agent and salt
/// @notice Anybody may create anybody's wallet: owner and agent are part of the address, so nobody can get another
/// owner's address, and creating twice gives the same wallet.
contract AgentWalletFactory {
    address public immutable FORWARDER;
    IPermit2 public immutable PERMIT2;
    address public immutable EXACT_PROXY;
    address public immutable UPTO_PROXY;

    event WalletCreated(address indexed wallet, address indexed owner, address indexed agent, bytes32 salt);

    constructor(address forwarder, IPermit2 permit2, address exactProxy, address uptoProxy) {
        FORWARDER = forwarder;
        PERMIT2 = permit2;
        EXACT_PROXY = exactProxy;
        UPTO_PROXY = uptoProxy;
    }

    /// @notice Create the wallet unless it exists, and return its address.
    function create(address owner, address agent, bytes32 salt) external returns (address wallet) {
        wallet = addressOf(owner, agent, salt);
        if (wallet.code.length != 0) return wallet;
        emit WalletCreated(wallet, owner, agent, salt);
        Create2.deploy(0, salt, _creationCode(owner, agent));
    }

    /// @notice Where the wallet of this owner, agent and salt is or will be.
    function addressOf(address owner, address agent, bytes32 salt) public view returns (address) {
        return Create2.computeAddress(salt, keccak256(_creationCode(owner, agent)));
    }

    function _creationCode(address owner, address agent) private view returns (bytes memory) {
        bytes memory arguments = abi.encode(FORWARDER, owner, agent, PERMIT2, EXACT_PROXY, UPTO_PROXY);
        return bytes.concat(type(AgentWallet).creationCode, arguments);
    }
}
