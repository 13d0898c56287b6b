"""Annealed importance sampling: log p(x) from below, from both sides, and the rate-distortion curve.

========= ======================================================================================
module    what is inside
========= ======================================================================================
`path`    `Annealing`: the start, the inverse temperatures, the leapfrog steps
`chains`  the move of Hamiltonian Monte Carlo, the preliminary run, the weighted chains
`results` what the chains tell: `Annealed`, `Bracket`, `RateDistortion`, with notices
`bounds`  `ais` and `bracket`
========= ======================================================================================
"""

from pyro_vae.evaluate.annealing.bounds import ais, bracket
from pyro_vae.evaluate.annealing.path import Annealing
from pyro_vae.evaluate.annealing.results import Annealed, Bracket, RateDistortion

__all__ = ["Annealed", "Annealing", "Bracket", "RateDistortion", "ais", "bracket"]
