"""Who sells what: identities, registration files, the local index and ranking."""
