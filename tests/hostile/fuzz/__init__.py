"""Seeded, structured mutations of everything that Bakeout reads, in forked workers with a watchdog."""
