"""A process beside each rank that notices when the rank no longer takes steps, says where it stands, and ends it."""
