"""What the methods let one choose between, by name. Apart from them, so that a recipe is read without loading torch."""

from typing import Literal

# Neuron Adjust: what neurons are ranked by.
Selection = Literal["difference", "standardised"]
# LUNAR: how the edited weight is solved for, and what the answers are redirected to.
Solver = Literal["closed_form", "gradient"]
Aim = Literal["shift", "reference"]
