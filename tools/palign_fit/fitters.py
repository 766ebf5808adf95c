"""The fitter of a method: everything that no subject changes is prepared once, from the cache if there."""

from __future__ import annotations

from collections.abc import Callable

from palign_fit.cache import Cache
from palign_fit.fit import Settings
from palign_fit.inventory import Inventory
from palign_fit.model import SubjectModel
from palign_fit.one_by_one import OneByOne
from palign_fit.population import Fitter


def prepare_fitter(
    model: SubjectModel,
    inventory: Inventory,
    settings: Settings,
    *,
    checkpoint: str,
    cache: Cache,
    tick: Callable[[int], None] = lambda _: None,
) -> Fitter:
    """What fits subjects by ``settings.method``.

    ``checkpoint`` is the content digest that ``cache`` knows the model by (``checkpoint.digest``);
    ``tick`` hears how many texts the model has read. Raises InputError for settings that do not suit the
    model, FitError for a model that cannot be used.
    """
    return OneByOne(model, inventory, settings, tick)
