"""Memory: whether a job fits before it runs, where the memory went when it has, and what to do when it did not suffice.

Weights (sizes) + job → Estimate → Verdict against the Capacity → Change, Advice
readings of the running process → Run (monitor) → plot, JSON, and factors that correct the next estimate
"""
