"""From records to numbers: arms, comparisons, verdicts, the rule."""
