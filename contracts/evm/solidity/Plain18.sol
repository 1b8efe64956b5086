// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20, ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @title A token for tests with 18 decimals and ERC-2612, but without EIP-3009: it is paid through Permit2
/// @notice Anybody may mint. It holds no value.
contract Plain18 is ERC20Permit {
    constructor(string memory name_, string memory symbol_) ERC20(name_, symbol_) ERC20Permit(name_) {}

    function mint(address to, uint256 value) external {
        _mint(to, value);
    }

    function version() external pure returns (string memory) {
        return "1";
    }
}
