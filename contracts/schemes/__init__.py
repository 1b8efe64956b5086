"""Payment schemes, one module each with the same four parts: message, digest, static checks, settle call."""
