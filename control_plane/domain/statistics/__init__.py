"""What the results say: sums per participant in, frozen numbers out.

Every participant counts once, as what was randomised; no function draws or guesses, so the same sums
give the same answer. A number that is not defined is None, with the reason beside it; never NaN or
infinity.

Parts of SciPy are named from its top (`scipy.special.ndtri`), which loads a part when it is first used: they take
about as long to load as the rest of the control plane, and a process that is asked for no result never needs them.
"""
