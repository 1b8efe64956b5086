-- Trusted reviewers are looked up by who they are.
CREATE INDEX feedback_events_by_client ON feedback_events (client);
