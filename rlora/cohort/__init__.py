"""Cohorts: many policies trained at once on one base, each equal to a run of its own."""
