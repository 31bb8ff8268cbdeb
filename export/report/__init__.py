"""The report: one page about one or several artifacts, for people."""
