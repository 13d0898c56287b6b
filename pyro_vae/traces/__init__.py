"""Log-probabilities (K, B) from a Pyro model, a Pyro guide and data.

No other room handles Pyro's traces.
"""

from pyro_vae.traces.enumeration import MOST_STATES, Sites, counted, numbers_of_states, states_of
from pyro_vae.traces.messengers import Drawing, Latents
from pyro_vae.traces.observations import described, observations, observed, simulate, simulate_arguments
from pyro_vae.traces.particles import (
    Particles,
    crossed,
    draw_latents,
    is_reparameterized,
    particles,
    run_guide,
    singles,
)
from pyro_vae.traces.programs import Program, Programs, inputs_of, layers, library_path, parameters, parameters_used
from pyro_vae.traces.sites import Evaluations, Observation, filled_where_masked
from pyro_vae.traces.summation import States
from pyro_vae.traces.unconstrained import Densities, Unconstrained

__all__ = [
    "MOST_STATES",
    "Densities",
    "Drawing",
    "Evaluations",
    "Latents",
    "Observation",
    "Particles",
    "Program",
    "Programs",
    "Sites",
    "States",
    "Unconstrained",
    "counted",
    "crossed",
    "described",
    "draw_latents",
    "filled_where_masked",
    "inputs_of",
    "is_reparameterized",
    "layers",
    "library_path",
    "numbers_of_states",
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
