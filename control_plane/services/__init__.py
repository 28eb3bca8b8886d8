"""Use cases: one transaction, one `now`, a domain call, a wake-up. What both transports call."""
