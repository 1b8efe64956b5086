// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

interface IAgents {
    function isAuthorizedOrOwner(address spender, uint256 agentId) external view returns (bool);
}

/// @notice A stand-in for the ERC-8004 Validation Registry on local chains; see TestIdentityRegistry.
contract TestValidationRegistry {
    struct Status {
        address validator;
        uint256 agentId;
        uint8 response;
        bytes32 responseHash;
        string tag;
        uint256 lastUpdate;
        bool isAnswered;
    }

    event ValidationRequest(
        address indexed validatorAddress, uint256 indexed agentId, string requestURI, bytes32 indexed requestHash
    );
    event ValidationResponse(
        address indexed validatorAddress,
        uint256 indexed agentId,
        bytes32 indexed requestHash,
        uint8 response,
        string responseURI,
        bytes32 responseHash,
        string tag
    );
    event Initialized(uint64 version);

    error InvalidInitialization();

    address private identity;
    mapping(bytes32 requestHash => Status) private requests;
    mapping(uint256 agentId => bytes32[]) private byAgent;
    mapping(address validator => bytes32[]) private byValidator;

    function initialize(address identityRegistry) external {
        if (identity != address(0)) revert InvalidInitialization();
        require(identityRegistry != address(0), "bad identity");
        identity = identityRegistry;
        emit Initialized(2);
    }

    function getVersion() external pure returns (string memory) {
        return "2.0.0";
    }

    function getIdentityRegistry() external view returns (address) {
        return identity;
    }

    function validationRequest(
        address validatorAddress,
        uint256 agentId,
        string calldata requestURI,
        bytes32 requestHash
    ) external {
        require(validatorAddress != address(0), "bad validator");
        require(IAgents(identity).isAuthorizedOrOwner(msg.sender, agentId), "Not authorized");
        Status storage request = requests[requestHash];
        require(request.validator == address(0), "exists");
        request.validator = validatorAddress;
        request.agentId = agentId;
        request.lastUpdate = block.timestamp;
        byAgent[agentId].push(requestHash);
        byValidator[validatorAddress].push(requestHash);
        emit ValidationRequest(validatorAddress, agentId, requestURI, requestHash);
    }

    function validationResponse(
        bytes32 requestHash,
        uint8 response,
        string calldata responseURI,
        bytes32 responseHash,
        string calldata tag
    ) external {
        Status storage request = requests[requestHash];
        require(request.validator != address(0), "unknown");
        require(request.validator == msg.sender, "not validator");
        require(response <= 100, "resp>100");
        request.response = response;
        request.responseHash = responseHash;
        request.tag = tag;
        request.lastUpdate = block.timestamp;
        request.isAnswered = true;
        emit ValidationResponse(msg.sender, request.agentId, requestHash, response, responseURI, responseHash, tag);
    }

    function getValidationStatus(bytes32 requestHash)
        external
        view
        returns (address, uint256, uint8, bytes32, string memory, uint256)
    {
        Status storage s = requests[requestHash];
        require(s.validator != address(0), "unknown");
        return (s.validator, s.agentId, s.response, s.responseHash, s.tag, s.lastUpdate);
    }

    function getSummary(uint256 agentId, address[] calldata validatorAddresses, string calldata tag)
        external
        view
        returns (uint64 count, uint8 averageResponse)
    {
        uint256 sum;
        bytes32[] storage all = byAgent[agentId];
        for (uint256 i = 0; i < all.length; i++) {
            Status storage s = requests[all[i]];
            if (!s.isAnswered || !_isNamed(s.validator, validatorAddresses)) continue;
            if (bytes(tag).length > 0 && keccak256(bytes(tag)) != keccak256(bytes(s.tag))) continue;
            count++;
            sum += s.response;
        }
        averageResponse = count == 0 ? 0 : uint8(sum / count);
    }

    function getAgentValidations(uint256 agentId) external view returns (bytes32[] memory) {
        return byAgent[agentId];
    }

    function getValidatorRequests(address validatorAddress) external view returns (bytes32[] memory) {
        return byValidator[validatorAddress];
    }

    function _isNamed(address validator, address[] calldata named) private pure returns (bool) {
        for (uint256 i = 0; i < named.length; i++) {
            if (named[i] == validator) return true;
        }
        return named.length == 0;
    }
}
