"""The Solidity workshop: forge tests, named mutants, and what lays a forge project out from the sources."""
