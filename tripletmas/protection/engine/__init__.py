"""Per-sample gradients without a loop over samples. A closed box with one door: `per_sample.PerSampleGradients`."""
