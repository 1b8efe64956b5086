-- Where the token itself burns the nonce, the table's own key says the same; only other registries need the second index.
DROP INDEX payments_by_registry;
CREATE UNIQUE INDEX payments_by_registry ON payments (chain_id, registry, payer, nonce) WHERE registry <> token;
