"""The chain: JSON-RPC client, token reads, Multicall3, and a local devnet with Farebox's test contracts."""
