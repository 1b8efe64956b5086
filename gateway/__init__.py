"""Serve: the OpenAI-shaped gateway, its command line, metrics and dashboards."""
