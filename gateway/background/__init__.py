"""Work that can wait: kept until sellers have nothing better to do, and bought at their background price."""
