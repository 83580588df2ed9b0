"""Many runs under one budget: what to train, one cell after another, and the report from their records."""
