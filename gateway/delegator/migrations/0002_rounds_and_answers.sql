-- A run whose plan failed is planned anew, once: round 1. Attempts say by which plan they were made.
ALTER TABLE runs ADD COLUMN round INTEGER NOT NULL DEFAULT 0;
ALTER TABLE attempts ADD COLUMN round INTEGER NOT NULL DEFAULT 0;

-- Answers of cacheable nodes. The key is made of the tenant too, so that no question of one finds another's answer.
CREATE TABLE answers (
    key TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    result BLOB NOT NULL,
    kept_ms INTEGER NOT NULL
);
CREATE INDEX answers_by_age ON answers (tenant, kept_ms);
