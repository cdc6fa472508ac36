"""What was learnt, and what follows from it: records, the run directory, statistics, verdicts, comparisons, history."""
