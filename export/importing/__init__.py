"""Plans out of what other tools wrote, and out of other plans."""
