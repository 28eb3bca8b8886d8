"""What the results say: sums per participant in, frozen numbers out.

Every participant counts once, as what was randomised; no function draws or guesses, so the same sums
give the same answer. A number that is not defined is None, with the reason beside it; never NaN or
infinity.
"""
