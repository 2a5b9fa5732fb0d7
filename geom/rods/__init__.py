"""Differentiable elastic rods, single and branched: the value `Rod`, kinematics, energies, and rods in time."""

from geom.rods.clips import Cable, guess_rod, load_cable, save_cable
from geom.rods.contact import Contacts, make_contacts
from geom.rods.dynamics import State, Track, rollout, start, step
from geom.rods.energy import elastic_energy, elastic_forces
from geom.rods.hessian import elastic_hessian
from geom.rods.identify import Clips, Identification, identify, predict, track_errors
from geom.rods.implicit import implicit_euler, implicit_midpoint
from geom.rods.kinematics import directors_without_twist, edge_tangents, natural_strain, strains, transport
from geom.rods.planning import Plan, plan
from geom.rods.residual import Residual, fit_residual, predict_with
from geom.rods.rod import Rod, Section, circular_section, make_rod
from geom.rods.statics import equilibrium, potential_energy
from geom.rods.stepper import Stepper

__all__ = [
    "Rod",
    "Section",
    "circular_section",
    "make_rod",
    "State",
    "Track",
    "start",
    "rollout",
    "step",
    "Stepper",
    "Contacts",
    "make_contacts",
    "Cable",
    "guess_rod",
    "load_cable",
    "save_cable",
    "Clips",
    "Identification",
    "identify",
    "predict",
    "track_errors",
    "Plan",
    "plan",
    "Residual",
    "fit_residual",
    "predict_with",
    "elastic_energy",
    "elastic_forces",
    "elastic_hessian",
    "implicit_euler",
    "implicit_midpoint",
    "equilibrium",
    "potential_energy",
    "directors_without_twist",
    "edge_tangents",
    "natural_strain",
    "strains",
    "transport",
]
