"""The default learner: a bank of small experts that learn alike with different steps, mixed by what each has got right."""
