"""The certificate of forgetting: a fixed, versioned protocol that is run on an artifact and its base model."""
