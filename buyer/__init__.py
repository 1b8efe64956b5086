"""Spend: probe, policy, signers, the authorization pool and the payment flow."""
