// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC1967Utils} from "@openzeppelin/contracts/proxy/ERC1967/ERC1967Utils.sol";
import {ERC721} from "@openzeppelin/contracts/token/ERC721/ERC721.sol";
import {ERC721URIStorage} from "@openzeppelin/contracts/token/ERC721/extensions/ERC721URIStorage.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";

/// @notice A stand-in for the ERC-8004 Identity Registry on local chains: the public interface, its events, reverts and
/// storage slot of the id counter. Without constructor state or immutables, so that its runtime code can be put at any
/// address. An upgrade is recorded and logged, but this code stays.
contract TestIdentityRegistry is ERC721URIStorage {
    struct MetadataEntry {
        string metadataKey;
        bytes metadataValue;
    }

    /// The id counter is the first field, as clients read it there by eth_getStorageAt.
    struct State {
        uint256 lastId;
        mapping(uint256 agentId => mapping(string key => bytes)) metadata;
        address owner;
        bool initialized;
    }

    event Registered(uint256 indexed agentId, string agentURI, address indexed owner);
    event URIUpdated(uint256 indexed agentId, string newURI, address indexed updatedBy);
    event MetadataSet(
        uint256 indexed agentId,
        string indexed indexedMetadataKey,
        string metadataKey,
        bytes metadataValue
    );
    event OwnershipTransferred(address indexed previousOwner, address indexed newOwner);
    event Initialized(uint64 version);

    error OwnableUnauthorizedAccount(address account);
    error InvalidInitialization();

    bytes32 private constant STATE_SLOT = 0xa040f782729de4970518741823ec1276cbcd41a0c7493f62d173341566a04e00;
    bytes32 private constant WALLET_TYPE_HASH =
        keccak256("AgentWalletSet(uint256 agentId,address newWallet,address owner,uint256 deadline)");
    bytes32 private constant DOMAIN_TYPE_HASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 private constant WALLET_KEY_HASH = keccak256("agentWallet");
    string private constant WALLET_KEY = "agentWallet";
    string private constant DOMAIN_NAME = "ERC8004IdentityRegistry";
    string private constant DOMAIN_VERSION = "1";
    uint256 private constant DEADLINE_AHEAD_MAX_S = 5 minutes;

    constructor() ERC721("", "") {}

    modifier onlyOwner() {
        if (msg.sender != _state().owner) revert OwnableUnauthorizedAccount(msg.sender);
        _;
    }

    function initialize() external {
        State storage state = _state();
        if (state.initialized) revert InvalidInitialization();
        state.initialized = true;
        state.owner = msg.sender;
        emit OwnershipTransferred(address(0), msg.sender);
        emit Initialized(2);
    }

    // Registration

    function register() external returns (uint256 agentId) {
        agentId = _mintNext(msg.sender);
        emit Registered(agentId, "", msg.sender);
        _setWallet(agentId, abi.encodePacked(msg.sender));
    }

    function register(string memory agentURI) external returns (uint256 agentId) {
        agentId = _register(msg.sender, agentURI);
    }

    function register(string memory agentURI, MetadataEntry[] memory metadata) external returns (uint256 agentId) {
        agentId = _register(msg.sender, agentURI);
        for (uint256 i = 0; i < metadata.length; i++) {
            _setMetadata(agentId, metadata[i].metadataKey, metadata[i].metadataValue);
        }
    }

    /// @notice For benchmarks only, not part of the standard: many registrations in one transaction, for any owners.
    function registerMany(address[] calldata owners, string[] calldata agentURIs) external {
        for (uint256 i = 0; i < owners.length; i++) {
            _register(owners[i], agentURIs[i]);
        }
    }

    function setAgentURI(uint256 agentId, string calldata newURI) external {
        _requireAuthorized(agentId);
        _setTokenURI(agentId, newURI);
        emit URIUpdated(agentId, newURI, msg.sender);
    }

    // Metadata

    function setMetadata(uint256 agentId, string memory metadataKey, bytes memory metadataValue) external {
        _requireAuthorized(agentId);
        _setMetadata(agentId, metadataKey, metadataValue);
    }

    function getMetadata(uint256 agentId, string memory metadataKey) external view returns (bytes memory) {
        return _state().metadata[agentId][metadataKey];
    }

    function getAgentWallet(uint256 agentId) external view returns (address) {
        return address(bytes20(_state().metadata[agentId][WALLET_KEY]));
    }

    function setAgentWallet(uint256 agentId, address newWallet, uint256 deadline, bytes calldata signature) external {
        _requireAuthorized(agentId);
        require(newWallet != address(0), "bad wallet");
        require(block.timestamp <= deadline, "expired");
        require(deadline <= block.timestamp + DEADLINE_AHEAD_MAX_S, "deadline too far");
        bytes32 proof = keccak256(abi.encode(WALLET_TYPE_HASH, agentId, newWallet, ownerOf(agentId), deadline));
        bytes32 digest = MessageHashUtils.toTypedDataHash(_domainSeparator(), proof);
        require(SignatureChecker.isValidSignatureNow(newWallet, digest, signature), "invalid wallet sig");
        _setWallet(agentId, abi.encodePacked(newWallet));
    }

    function unsetAgentWallet(uint256 agentId) external {
        _requireAuthorized(agentId);
        _setWallet(agentId, "");
    }

    // What clients ask

    function isAuthorizedOrOwner(address spender, uint256 agentId) external view returns (bool) {
        return _isAuthorized(ownerOf(agentId), spender, agentId);
    }

    function eip712Domain()
        external
        view
        returns (bytes1, string memory, string memory, uint256, address, bytes32, uint256[] memory)
    {
        return (hex"0f", DOMAIN_NAME, DOMAIN_VERSION, block.chainid, address(this), bytes32(0), new uint256[](0));
    }

    function getVersion() external pure returns (string memory) {
        return "2.0.0";
    }

    function name() public pure override returns (string memory) {
        return "AgentIdentity";
    }

    function symbol() public pure override returns (string memory) {
        return "AGENT";
    }

    // The registry's owner

    function owner() external view returns (address) {
        return _state().owner;
    }

    function transferOwnership(address newOwner) public onlyOwner {
        State storage state = _state();
        emit OwnershipTransferred(state.owner, newOwner);
        state.owner = newOwner;
    }

    function renounceOwnership() external {
        transferOwnership(address(0));
    }

    function proxiableUUID() external pure returns (bytes32) {
        return ERC1967Utils.IMPLEMENTATION_SLOT;
    }

    function upgradeToAndCall(address newImplementation, bytes calldata data) external payable onlyOwner {
        ERC1967Utils.upgradeToAndCall(newImplementation, data);
    }

    // Inside

    function _register(address to, string memory agentURI) private returns (uint256 agentId) {
        agentId = _mintNext(to);
        _setTokenURI(agentId, agentURI);
        emit Registered(agentId, agentURI, to);
        _setWallet(agentId, abi.encodePacked(to));
    }

    function _mintNext(address to) private returns (uint256 agentId) {
        agentId = _state().lastId++;
        _safeMint(to, agentId);
    }

    /// A new owner gets no payments into the former owner's wallet.
    function _update(address to, uint256 tokenId, address auth) internal override returns (address from) {
        if (_ownerOf(tokenId) != address(0)) {
            _setWallet(tokenId, "");
        }
        return super._update(to, tokenId, auth);
    }

    function _setMetadata(uint256 agentId, string memory key, bytes memory value) private {
        require(keccak256(bytes(key)) != WALLET_KEY_HASH, "reserved key");
        _state().metadata[agentId][key] = value;
        emit MetadataSet(agentId, key, key, value);
    }

    function _setWallet(uint256 agentId, bytes memory value) private {
        _state().metadata[agentId][WALLET_KEY] = value;
        emit MetadataSet(agentId, WALLET_KEY, WALLET_KEY, value);
    }

    function _requireAuthorized(uint256 agentId) private view {
        require(_isAuthorized(ownerOf(agentId), msg.sender, agentId), "Not authorized");
    }

    function _domainSeparator() private view returns (bytes32) {
        bytes32 nameHash = keccak256(bytes(DOMAIN_NAME));
        bytes32 versionHash = keccak256(bytes(DOMAIN_VERSION));
        return keccak256(abi.encode(DOMAIN_TYPE_HASH, nameHash, versionHash, block.chainid, address(this)));
    }

    function _state() private pure returns (State storage state) {
        assembly {
            state.slot := STATE_SLOT
        }
    }
}
