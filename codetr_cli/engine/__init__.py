"""The verbs as plain functions on built objects; they log and report, they never print."""
