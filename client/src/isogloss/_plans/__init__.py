"""What each method of a client does, written once for the blocking and the asyncio client.

A plan is a generator that does no input or output of its own: it yields a Call, is sent the response or thrown the
exception, and returns the result. A client runs it, waiting in its own manner.
"""

from isogloss._plans.bulk import Bulk
from isogloss._plans.compare import nearest, pairwise, similarity
from isogloss._plans.embed import embed
from isogloss._plans.limits import KnownModels
from isogloss._plans.patience import Pace
from isogloss._plans.run import Call, Plan, Run
from isogloss._plans.server import health, models

__all__ = [
    "Bulk",
    "Call",
    "KnownModels",
    "Pace",
    "Plan",
    "Run",
    "embed",
    "health",
    "models",
    "nearest",
    "pairwise",
    "similarity",
]
