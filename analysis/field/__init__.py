"""Many learners side by side: ranking, equal time, controls."""
