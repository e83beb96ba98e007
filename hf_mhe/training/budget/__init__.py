"""A budget: how much of the penalty each optimizer step computes, so that it costs a given share of the step."""
