// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

interface IIdentity {
    function isAuthorizedOrOwner(address spender, uint256 agentId) external view returns (bool);
}

/// @notice A stand-in for the ERC-8004 Reputation Registry on local chains; see TestIdentityRegistry.
contract TestReputationRegistry {
    struct Feedback {
        int128 value;
        uint8 valueDecimals;
        bool isRevoked;
        string tag1;
        string tag2;
    }

    struct Everything {
        address[] clients;
        uint64[] indexes;
        int128[] values;
        uint8[] decimals;
        string[] tag1s;
        string[] tag2s;
        bool[] revoked;
    }

    event NewFeedback(
        uint256 indexed agentId,
        address indexed clientAddress,
        uint64 feedbackIndex,
        int128 value,
        uint8 valueDecimals,
        string indexed indexedTag1,
        string tag1,
        string tag2,
        string endpoint,
        string feedbackURI,
        bytes32 feedbackHash
    );
    event FeedbackRevoked(uint256 indexed agentId, address indexed clientAddress, uint64 indexed feedbackIndex);
    event ResponseAppended(
        uint256 indexed agentId,
        address indexed clientAddress,
        uint64 feedbackIndex,
        address indexed responder,
        string responseURI,
        bytes32 responseHash
    );
    event Initialized(uint64 version);

    error InvalidInitialization();

    int128 private constant VALUE_MAX = 1e38;
    uint8 private constant DECIMALS_MAX = 18;

    address private identity;
    mapping(uint256 agentId => mapping(address client => Feedback[])) private feedback;
    mapping(uint256 agentId => address[]) private clients;
    mapping(bytes32 feedbackKey => address[]) private responders;

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

    // Writing

    function giveFeedback(
        uint256 agentId,
        int128 value,
        uint8 valueDecimals,
        string memory tag1,
        string memory tag2,
        string memory endpoint,
        string memory feedbackURI,
        bytes32 feedbackHash
    ) external {
        Feedback memory given = Feedback(value, valueDecimals, false, tag1, tag2);
        _announce(agentId, _store(agentId, given), given, endpoint, feedbackURI, feedbackHash);
    }

    function revokeFeedback(uint256 agentId, uint64 feedbackIndex) external {
        Feedback storage given = _at(agentId, msg.sender, feedbackIndex);
        require(!given.isRevoked, "Already revoked");
        given.isRevoked = true;
        emit FeedbackRevoked(agentId, msg.sender, feedbackIndex);
    }

    function appendResponse(
        uint256 agentId,
        address clientAddress,
        uint64 feedbackIndex,
        string calldata responseURI,
        bytes32 responseHash
    ) external {
        _at(agentId, clientAddress, feedbackIndex);
        require(bytes(responseURI).length > 0, "Empty URI");
        responders[keccak256(abi.encode(agentId, clientAddress, feedbackIndex))].push(msg.sender);
        emit ResponseAppended(agentId, clientAddress, feedbackIndex, msg.sender, responseURI, responseHash);
    }

    // Reading

    function getClients(uint256 agentId) external view returns (address[] memory) {
        return clients[agentId];
    }

    function getLastIndex(uint256 agentId, address clientAddress) external view returns (uint64) {
        return uint64(feedback[agentId][clientAddress].length);
    }

    function readFeedback(uint256 agentId, address clientAddress, uint64 feedbackIndex)
        external
        view
        returns (int128, uint8, string memory, string memory, bool)
    {
        Feedback storage given = _at(agentId, clientAddress, feedbackIndex);
        return (given.value, given.valueDecimals, given.tag1, given.tag2, given.isRevoked);
    }

    function readAllFeedback(
        uint256 agentId,
        address[] memory clientAddresses,
        string memory tag1,
        string memory tag2,
        bool includeRevoked
    )
        external
        view
        returns (
            address[] memory,
            uint64[] memory,
            int128[] memory,
            uint8[] memory,
            string[] memory,
            string[] memory,
            bool[] memory
        )
    {
        if (clientAddresses.length == 0) clientAddresses = clients[agentId];
        return _columns(_collect(agentId, clientAddresses, _wanted(tag1, tag2), includeRevoked));
    }

    /// A client named twice counts twice, and values of different tags are averaged: as the registry on chain does.
    function getSummary(uint256 agentId, address[] memory clientAddresses, string memory tag1, string memory tag2)
        external
        view
        returns (uint64 count, int128 summaryValue, uint8 summaryValueDecimals)
    {
        require(clientAddresses.length > 0, "clientAddresses required");
        Everything memory all = _collect(agentId, clientAddresses, _wanted(tag1, tag2), false);
        uint256 found = all.values.length;
        if (found == 0) return (0, 0, 0);
        int256 sum;
        uint64[19] memory uses;
        for (uint256 i = 0; i < found; i++) {
            sum += int256(all.values[i]) * int256(10 ** (DECIMALS_MAX - all.decimals[i]));
            uses[all.decimals[i]]++;
        }
        for (uint8 d = 1; d <= DECIMALS_MAX; d++) {
            if (uses[d] > uses[summaryValueDecimals]) summaryValueDecimals = d;
        }
        sum = sum / int256(found) / int256(10 ** (DECIMALS_MAX - summaryValueDecimals));
        return (uint64(found), int128(sum), summaryValueDecimals);
    }

    function getResponseCount(
        uint256 agentId,
        address clientAddress,
        uint64 feedbackIndex,
        address[] calldata responderAddresses
    ) external view returns (uint64 count) {
        address[] storage all = responders[keccak256(abi.encode(agentId, clientAddress, feedbackIndex))];
        if (responderAddresses.length == 0) return uint64(all.length);
        for (uint256 i = 0; i < all.length; i++) {
            for (uint256 j = 0; j < responderAddresses.length; j++) {
                if (all[i] == responderAddresses[j]) count++;
            }
        }
    }

    // Inside

    function _store(uint256 agentId, Feedback memory given) private returns (uint64 index) {
        require(given.valueDecimals <= DECIMALS_MAX, "too many decimals");
        require(given.value >= -VALUE_MAX && given.value <= VALUE_MAX, "value too large");
        require(!IIdentity(identity).isAuthorizedOrOwner(msg.sender, agentId), "Self-feedback not allowed");
        Feedback[] storage all = feedback[agentId][msg.sender];
        if (all.length == 0) clients[agentId].push(msg.sender);
        all.push(given);
        return uint64(all.length);
    }

    function _announce(
        uint256 agentId,
        uint64 index,
        Feedback memory given,
        string memory endpoint,
        string memory uri,
        bytes32 hash
    ) private {
        emit NewFeedback(
            agentId,
            msg.sender,
            index,
            given.value,
            given.valueDecimals,
            given.tag1,
            given.tag1,
            given.tag2,
            endpoint,
            uri,
            hash
        );
    }

    function _at(uint256 agentId, address client, uint64 index) private view returns (Feedback storage) {
        require(index > 0, "index must be > 0");
        Feedback[] storage all = feedback[agentId][client];
        require(index <= all.length, "index out of bounds");
        return all[index - 1];
    }

    function _columns(Everything memory all)
        private
        pure
        returns (
            address[] memory,
            uint64[] memory,
            int128[] memory,
            uint8[] memory,
            string[] memory,
            string[] memory,
            bool[] memory
        )
    {
        return (all.clients, all.indexes, all.values, all.decimals, all.tag1s, all.tag2s, all.revoked);
    }

    function _wanted(string memory tag1, string memory tag2) private pure returns (bytes32[2] memory) {
        return [keccak256(bytes(tag1)), keccak256(bytes(tag2))];
    }

    function _collect(
        uint256 agentId,
        address[] memory from,
        bytes32[2] memory wanted,
        bool includeRevoked
    ) private view returns (Everything memory all) {
        uint256 found = 0;
        for (uint256 i = 0; i < from.length; i++) {
            found += _matching(feedback[agentId][from[i]], wanted, includeRevoked);
        }
        all = Everything(
            new address[](found),
            new uint64[](found),
            new int128[](found),
            new uint8[](found),
            new string[](found),
            new string[](found),
            new bool[](found)
        );
        uint256 next = 0;
        for (uint256 i = 0; i < from.length; i++) {
            next = _copy(all, next, feedback[agentId][from[i]], from[i], wanted, includeRevoked);
        }
    }

    function _copy(
        Everything memory all,
        uint256 next,
        Feedback[] storage given,
        address client,
        bytes32[2] memory wanted,
        bool includeRevoked
    ) private view returns (uint256) {
        for (uint64 i = 0; i < given.length; i++) {
            Feedback storage one = given[i];
            if (!_isWanted(one, wanted, includeRevoked)) continue;
            all.clients[next] = client;
            all.indexes[next] = i + 1;
            all.values[next] = one.value;
            all.decimals[next] = one.valueDecimals;
            all.tag1s[next] = one.tag1;
            all.tag2s[next] = one.tag2;
            all.revoked[next] = one.isRevoked;
            next++;
        }
        return next;
    }

    function _matching(Feedback[] storage given, bytes32[2] memory wanted, bool includeRevoked)
        private
        view
        returns (uint256 found)
    {
        for (uint256 i = 0; i < given.length; i++) {
            if (_isWanted(given[i], wanted, includeRevoked)) found++;
        }
    }

    function _isWanted(Feedback storage one, bytes32[2] memory wanted, bool includeRevoked)
        private
        view
        returns (bool)
    {
        bytes32 any = keccak256("");
        return (includeRevoked || !one.isRevoked) && (wanted[0] == any || wanted[0] == keccak256(bytes(one.tag1)))
            && (wanted[1] == any || wanted[1] == keccak256(bytes(one.tag2)));
    }
}
