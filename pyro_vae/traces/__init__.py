"""Log-probabilities (K, B) from a Pyro model, a Pyro guide and data.

No other room handles Pyro's traces.
"""

from pyro_vae.traces.enumeration import MOST_STATES, Sites, states_of
from pyro_vae.traces.messengers import Drawing, Latents
from pyro_vae.traces.observations import described, observations, observed, simulate, simulate_arguments
from pyro_vae.traces.particles import Particles, crossed, draw_latents, particles, run_guide, singles
from pyro_vae.traces.programs import Program, Programs, inputs_of, layers, library_path, parameters, parameters_used
from pyro_vae.traces.sites import Observation, filled_where_masked
from pyro_vae.traces.unconstrained import Densities, Unconstrained

__all__ = [
    "MOST_STATES",
    "Densities",
    "Drawing",
    "Latents",
    "Observation",
    "Particles",
    "Program",
    "Programs",
    "Sites",
    "Unconstrained",
    "crossed",
    "described",
    "draw_latents",
    "filled_where_masked",
    "inputs_of",
    "layers",
    "library_path",
    "observations",
    "observed",
    "parameters",
    "parameters_used",
    "particles",
    "run_guide",
    "simulate",
    "simulate_arguments",
    "singles",
    "states_of",
]
