"""Forms of a query: the same question as people ask it in a conversation, for fitting a refusal and for testing it."""
