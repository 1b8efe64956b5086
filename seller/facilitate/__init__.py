"""`farebox facilitator`: verifies and settles payments for other people's sellers, out of the same engine."""
