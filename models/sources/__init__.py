"""What other tools write, read as interventions: PEFT adapters, checkpoint pairs, control vectors, directions."""
