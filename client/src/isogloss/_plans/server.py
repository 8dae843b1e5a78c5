"""Plans that ask a server about itself."""

from isogloss._messages import health_request, models_request, read_health, read_models
from isogloss._plans.run import Call, Plan
from isogloss.results import HealthReport, ModelInfo


def health(model: str) -> Plan[HealthReport]:
    """Returns how the server, or `model` alone, fares."""
    response = yield Call("Health", health_request(model))
    return read_health(response)


def models() -> Plan[list[ModelInfo]]:
    """Returns the models that the server offers, the default first."""
    response = yield Call("ListModels", models_request())
    return read_models(response)
