"""Floor 1: a model as torch and as files, the methods that fit interventions, and the plan."""
