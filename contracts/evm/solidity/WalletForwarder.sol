// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC2771Forwarder} from "@openzeppelin/contracts/metatx/ERC2771Forwarder.sol";

/// @title Lets the owner of an AgentWallet sign what somebody else pays the gas for
/// @notice OpenZeppelin's ERC-2771 forwarder as it is: signed requests with nonces and deadlines, nobody in charge.
contract WalletForwarder is ERC2771Forwarder {
    constructor() ERC2771Forwarder("Farebox WalletForwarder") {}
}
