-- Payments by several rails. The contract that burns a payment's nonce is its token (EIP-3009) or Permit2, where one
-- nonce is good for one token only; so a payer's nonce is used once in a registry, and, whatever the rail, once for a token.
ALTER TABLE payments ADD COLUMN rail TEXT NOT NULL DEFAULT 'eip3009' CHECK (rail IN ('eip3009', 'permit2', 'upto'));
ALTER TABLE payments ADD COLUMN registry BLOB CHECK (length(registry) = 20);
UPDATE payments SET registry = token;
CREATE UNIQUE INDEX payments_by_registry ON payments (chain_id, registry, payer, nonce);

-- The only account that may settle (`upto`); NULL where anybody may.
ALTER TABLE payments ADD COLUMN facilitator BLOB CHECK (length(facilitator) = 20);
-- What is charged, at most value_atomic; NULL while that is not known, and the whole value is counted.
ALTER TABLE payments ADD COLUMN charged_atomic TEXT;
-- What a metered answer has come to while it still passes: charged if its process ends. Not counted in any sum.
ALTER TABLE payments ADD COLUMN metered_atomic TEXT;
-- 1 where a contract judged the signature, so that it must judge it again to settle.
ALTER TABLE payments ADD COLUMN contract_payer INTEGER NOT NULL DEFAULT 0;
-- An EIP-2612 permit that comes with the payment: value, deadline (32 bytes each), signature (65 bytes).
ALTER TABLE payments ADD COLUMN token_permit BLOB CHECK (length(token_permit) = 129);
-- The name that the client gave its payment.
ALTER TABLE payments ADD COLUMN payment_id TEXT;
CREATE INDEX payments_by_id ON payments (chain_id, payer, payment_id) WHERE payment_id IS NOT NULL;
