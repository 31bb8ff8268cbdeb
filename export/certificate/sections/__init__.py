"""The sections of a certificate: each measures one thing, and says what it could not."""
