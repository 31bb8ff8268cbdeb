"""What others can check without Bakeout: signatures, bills of materials, records of what was asked to be erased."""
