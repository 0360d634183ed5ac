"""All kinds of damage by name."""

from __future__ import annotations

from eval.robustness import cut, meaning, spelling, surface, switching, typos
from eval.robustness.perturbation import Perturbation

KINDS: dict[str, Perturbation] = {
    kind.name: kind for family in (typos, spelling, switching, surface, cut, meaning) for kind in family.KINDS
}
"""Name → perturbation, in the order of tables and pages."""
OUT_OF_DOMAIN = "out_of_domain"
"""Not a damage but questions of other sets; asked for by name like the kinds."""
