"""LiteLLM in front of the gateway: the proxy configuration, its callback, and how to start it.

LiteLLM pins versions that Farebox outgrew, so it runs in an environment of its own and is never imported here.
"""
