"""The default learner: a bank of small experts, mixed by what each of them has got right lately."""
