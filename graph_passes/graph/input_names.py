"""The names of a decoder graph's rarer inputs, as exporters have them."""

# By which optimum's merged decoders choose between a graph with past and one without.
MERGED = "use_cache_branch"
# Of how many last tokens there are logits; 0: of all.
LOGITS_TO_KEEP = ("num_logits_to_keep", "logits_to_keep")
