"""The methods that fit interventions, a module each."""
