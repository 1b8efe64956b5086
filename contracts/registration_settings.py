"""`registration:` in `seller.yaml`: how a seller is described where buyers look. Whoever sells reads that file, too."""

from __future__ import annotations

from contracts.settings import StrictModel

__all__ = ["RegistrationSettings"]


class RegistrationSettings(StrictModel):
    """What `farebox register` writes into the registration file; without a name, the host is the name."""

    name: str | None = None
    description: str = ""
    image: str = ""
