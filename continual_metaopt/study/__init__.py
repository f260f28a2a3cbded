"""Many runs: reading a study, planning, checking and executing it."""
