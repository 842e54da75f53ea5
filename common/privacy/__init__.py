"""Events, accountants, the plan, secret randomness and clipping: what privacy rests on."""
