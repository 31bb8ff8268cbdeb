"""Files: hashed and written."""
