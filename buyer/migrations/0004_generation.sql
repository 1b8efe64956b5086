-- Counters that only grow, kept here and in a file of the home: a store whose counters lag behind is an older copy.
-- `leases`: synced writes of the pool; `sends`: authorizations about to leave.
CREATE TABLE pool_state (
    id INTEGER PRIMARY KEY,
    pool_id TEXT,
    leases INTEGER NOT NULL,
    sends INTEGER NOT NULL
);
INSERT INTO pool_state (id, leases, sends) VALUES (1, 0, 0);
-- When a restored copy was noticed; until the chain was asked, nothing of the purchase is handed out.
ALTER TABLE purchases ADD COLUMN restored_s INTEGER;
