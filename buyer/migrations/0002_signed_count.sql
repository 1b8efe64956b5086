-- How many authorizations were ever signed, counted apart from their rows: a lost or doubled row shows.
ALTER TABLE purchases ADD COLUMN signed_count INTEGER NOT NULL DEFAULT 0;
UPDATE purchases SET signed_count =
    (SELECT count(*) FROM authorizations WHERE authorizations.purchase_id = purchases.id);
